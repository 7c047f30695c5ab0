//! What is found out once.

use std::sync::OnceLock;

/// The value that is kept, which `find` finds the first time.
///
/// Threads that come at the same time each find it, and the first to end counts. Nobody waits for another: a child that
/// was forked meanwhile, in which that other does not exist, would wait for ever.
#[inline]
pub(crate) fn once<T>(kept: &'static OnceLock<T>, find: impl FnOnce() -> T) -> &'static T {
    match kept.get() {
        Some(value) => value,
        None => keep(kept, find),
    }
}

#[cold]
fn keep<T>(kept: &'static OnceLock<T>, find: impl FnOnce() -> T) -> &'static T {
    let value = find();
    kept.get_or_init(|| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_another_looks_does_not_wait() {
        static KEPT: OnceLock<u32> = OnceLock::new();
        let found = once(&KEPT, || {
            let other = std::thread::spawn(|| *once(&KEPT, || 1));
            assert_eq!(other.join().unwrap(), 1);
            2
        });
        assert_eq!(*found, 1);
    }
}
