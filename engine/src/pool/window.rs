//! How many of the last connections handed out were reused.

/// Connections handed out that a window looks back on.
pub(super) const WINDOW: usize = 1024;

/// The last [`WINDOW`] connections handed out.
#[derive(Debug)]
pub(super) struct Window {
    reused: [u64; WINDOW / 64],
    next: usize,
    count: usize,
    reused_count: usize,
}

impl Window {
    pub(super) fn new() -> Window {
        Window {
            reused: [0; WINDOW / 64],
            next: 0,
            count: 0,
            reused_count: 0,
        }
    }

    pub(super) fn push(&mut self, reused: bool) {
        let (word, bit) = (self.next / 64, 1u64 << (self.next % 64));
        if self.count == WINDOW {
            self.reused_count -= usize::from(self.reused[word] & bit != 0);
        } else {
            self.count += 1;
        }
        self.reused[word] = if reused {
            self.reused[word] | bit
        } else {
            self.reused[word] & !bit
        };
        self.reused_count += usize::from(reused);
        self.next = (self.next + 1) % WINDOW;
    }

    /// The share that was reused; `None` if the window is empty.
    pub(super) fn ratio(&self) -> Option<f64> {
        (self.count > 0).then(|| self.reused_count as f64 / self.count as f64)
    }

    /// The share that was reused, of a full window.
    pub(super) fn full_ratio(&self) -> Option<f64> {
        self.ratio().filter(|_| self.count == WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_counts_the_last_ones(pushed in proptest::collection::vec(any::<bool>(), 0..3 * WINDOW)) {
            let mut window = Window::new();
            for &reused in &pushed {
                window.push(reused);
            }
            let last = &pushed[pushed.len().saturating_sub(WINDOW)..];
            let reused = last.iter().filter(|&&reused| reused).count();
            let ratio = (!last.is_empty()).then(|| reused as f64 / last.len() as f64);
            prop_assert_eq!(window.ratio(), ratio);
            prop_assert_eq!(window.full_ratio(), ratio.filter(|_| last.len() == WINDOW));
        }
    }
}
