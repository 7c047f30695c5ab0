//! The queue under loom, which tries every order in which threads may run and every value that a load may see:
//! `queue.rs` compiled a second time, as it is, with [`queue_sync`].
#![allow(dead_code)] // what no model uses
#![allow(clippy::duplicate_mod)] // meant: see above

#[path = "../queue.rs"]
mod queue;
#[path = "sync.rs"]
mod queue_sync;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use queue::Queue;

/// Checks a model in all orders with up to `preemptions` switches that no thread asked for.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Takes all there is, and checks that what each thread pushed comes in order.
fn take_all(queue: &Queue<(usize, usize)>, next: &mut [usize; 2]) {
    while let Some((thread, number)) = queue.pop() {
        assert_eq!(number, next[thread]);
        next[thread] += 1;
    }
}

/// Two threads push two values and one, for which there are two places or four: what found a place is taken, once and in
/// order, and none is missing at the end.
#[test]
fn loom_what_each_thread_pushes_is_taken_once_and_in_order() {
    for places in [2, 4] {
        check(2, move || {
            let queue = Arc::new(Queue::new(places));
            let threads = [0, 1].map(|thread| {
                let queue = queue.clone();
                thread::spawn(move || {
                    let mut pushed = 0;
                    for _ in 0..2 - thread {
                        pushed += usize::from(queue.push((thread, pushed)).is_ok());
                    }
                    pushed
                })
            });
            let mut next = [0; 2];
            take_all(&queue, &mut next);
            let pushed = threads.map(|thread| thread.join().unwrap());
            take_all(&queue, &mut next);
            assert_eq!(next, pushed);
            assert!(queue.is_empty());
            assert!(places == 2 || pushed == [2, 1]);
        });
    }
}

/// Of the places that were left out, what was pushed first is taken first, even if it is not the first that is seen.
#[test]
fn loom_what_was_left_out_is_taken_in_order() {
    check(3, || {
        let queue = Arc::new(Queue::new(4));
        let thread = {
            let queue = queue.clone();
            thread::spawn(move || {
                for number in 0..2 {
                    queue.push((0, number)).unwrap();
                }
            })
        };
        let mut next = [0; 2];
        // The first time may leave out both.
        take_all(&queue, &mut next);
        take_all(&queue, &mut next);
        thread.join().unwrap();
        take_all(&queue, &mut next);
        assert_eq!(next, [2, 0]);
    });
}

/// What a thread pushes after it has seen what another did comes after that.
#[test]
fn loom_another_thread_goes_on_in_order() {
    check(3, || {
        let queue = Arc::new(Queue::new(4));
        let done = Arc::new(AtomicUsize::new(0));
        let first = {
            let (queue, done) = (queue.clone(), done.clone());
            thread::spawn(move || {
                queue.push((0, 0)).unwrap();
                done.store(1, Ordering::Release);
            })
        };
        let second = {
            let (queue, done) = (queue.clone(), done.clone());
            thread::spawn(move || {
                queue.push((1, 0)).unwrap();
                let goes_on = done.load(Ordering::Acquire) == 1;
                if goes_on {
                    queue.push((0, 1)).unwrap();
                }
                goes_on
            })
        };
        let mut next = [0; 2];
        take_all(&queue, &mut next);
        first.join().unwrap();
        let went_on = second.join().unwrap();
        take_all(&queue, &mut next);
        assert_eq!(next, [1 + usize::from(went_on), 1]);
    });
}

/// A thread that pushes wakes one that has looked in vain and then said that it sleeps.
#[test]
fn loom_what_is_pushed_is_seen_before_sleep_or_wakes() {
    check(4, || {
        let queue = Arc::new(Queue::new(2));
        let asleep = Arc::new(AtomicUsize::new(0));
        let threads = [0, 1].map(|thread| {
            let (queue, asleep) = (queue.clone(), asleep.clone());
            thread::spawn(move || {
                queue.push((thread, 0)).unwrap();
                loom::sync::atomic::fence(Ordering::SeqCst);
                asleep.load(Ordering::Relaxed) == 1
            })
        });
        asleep.store(1, Ordering::Relaxed);
        loom::sync::atomic::fence(Ordering::SeqCst);
        let sleeps = queue.is_empty();
        let rang = threads.map(|thread| thread.join().unwrap());
        assert!(!sleeps || rang == [true, true]);
    });
}

/// Wherever one thread has come to with its push, what another has pushed is taken.
#[test]
fn loom_nobody_waits_for_another_thread() {
    check(4, || {
        let queue = Arc::new(Queue::new(4));
        let slow = {
            let queue = queue.clone();
            thread::spawn(move || queue.push((0, 0)).unwrap())
        };
        let quick = {
            let queue = queue.clone();
            thread::spawn(move || queue.push((1, 0)).unwrap())
        };
        quick.join().unwrap();
        assert!(!queue.is_empty());
        let mut next = [0; 2];
        take_all(&queue, &mut next);
        assert_eq!(next[1], 1);
        slow.join().unwrap();
        take_all(&queue, &mut next);
        assert_eq!(next, [1, 1]);
    });
}
