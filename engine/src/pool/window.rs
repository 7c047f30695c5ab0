//! How many of the last connections handed out were reused.

use std::collections::VecDeque;

/// Connections handed out that a window looks back on.
const WINDOW: usize = 1024;

/// Whether each of the last [`WINDOW`] connections handed out was reused.
#[derive(Debug, Default)]
pub(super) struct Window {
    last: VecDeque<bool>,
    reused_count: usize,
}

impl Window {
    pub(super) fn push(&mut self, reused: bool) {
        if self.last.len() == WINDOW {
            let oldest = self.last.pop_front();
            self.reused_count -= usize::from(oldest == Some(true));
        }
        self.last.push_back(reused);
        self.reused_count += usize::from(reused);
    }

    /// The share that was reused; `None` if the window is empty.
    pub(super) fn ratio(&self) -> Option<f64> {
        let count = self.last.len();
        (count > 0).then(|| self.reused_count as f64 / count as f64)
    }

    /// The share that was reused, of a full window.
    pub(super) fn full_ratio(&self) -> Option<f64> {
        self.ratio().filter(|_| self.last.len() == WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_counts_the_last_ones(pushed in proptest::collection::vec(any::<bool>(), 0..3 * WINDOW)) {
            let mut window = Window::default();
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
