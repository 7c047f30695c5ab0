//! What any client of this user can do to the segment that all share.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::scene::{PATIENCE, Scene, answer, frame, until};
use crate::stats::Transport;
use crate::sys::segment;

/// New clients get in, and those that are in go on.
fn all_is_well(scene: &Scene) {
    let mut next = scene.villain();
    assert!(next.ends.tx.push(&frame(b"hello"), 0));
    next.wake_server();
    assert_eq!(&answer(&mut next)[24..], b"hello");
    drop(next);
    scene.is_unharmed();
}

#[test]
fn it_is_cut_short() {
    let scene = Scene::new();
    let path = segment::path(&scene.name);
    let length = std::fs::metadata(&path).unwrap().len();
    // The server's part and all; the workers' words; the slots.
    for left_bytes in [0, 100, 4096, 8192, length - 1] {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(left_bytes).unwrap();
        until("it is long again", || {
            file.metadata().unwrap().len() >= length
        });
        // Who opens it before the server has looked finds no server of this version.
        std::thread::sleep(Duration::from_millis(300));
        all_is_well(&scene);
    }
    // Over and over.
    for _ in 0..20 {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        scene.witness_works();
    }
    std::thread::sleep(Duration::from_millis(300));
    all_is_well(&scene);
}

#[test]
fn it_is_made_longer_or_closed_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let path = segment::path(&scene.name);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let before = file.metadata().unwrap();
    file.set_len(1 << 30).unwrap();
    file.set_permissions(PermissionsExt::from_mode(0o000))
        .unwrap();
    let now = || file.metadata().unwrap();
    until("it is as it was", || {
        (now().len(), now().permissions()) == (before.len(), before.permissions())
    });
    all_is_well(&scene);
}

#[test]
fn it_is_written_over() {
    let scene = Scene::new();
    let control = scene.control();
    for word in [0, 1, u64::MAX] {
        for at in (0..control.segment.bytes()).step_by(8) {
            control.segment.word64(at).store(word, Ordering::Release);
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(scene.server.stats().connections(Transport::Shm), 1);
        all_is_well(&scene);
    }
}

/// The words on which the server's threads sleep are among what is lost.
#[test]
fn a_server_stops_all_the_same() {
    for cut in [true, false] {
        let scene = Scene::new();
        let control = scene.control();
        let path = segment::path(&scene.name);
        let server = scene.into_server();
        // Nobody calls, and all are asleep.
        std::thread::sleep(Duration::from_millis(50));
        if cut {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
        } else {
            for at in (0..control.segment.bytes()).step_by(8) {
                control.segment.word64(at).store(0, Ordering::Release);
            }
        }
        let start = Instant::now();
        server.stop();
        assert!(start.elapsed() < PATIENCE, "it waits for nobody");
        assert!(!std::path::Path::new(&path).exists());
    }
}
