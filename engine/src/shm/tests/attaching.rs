//! Who gets which segment: servers and clients that meet by a name.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::join::join_opened;
use super::super::layout;
use super::super::leftovers::connection_name;
use super::super::slots::{SLOTS, Slot, Stage};
use super::super::{Control, ShmError, join};
use super::instance;
use super::scene::{PATIENCE, Scene, answer, frame, until};
use crate::client::Client;
use crate::server::Server;
use crate::sys::segment::{self, Segment};
use crate::wire::{control_segment_name, msg_type};

#[test]
fn clients_that_stop_half_way_through_attaching() {
    let scene = Scene::new();
    let control = scene.control();
    for index in 0..SLOTS {
        // Claimed, or requested by nobody, or nonsense. The server is not called.
        control.slot(index).overwrite([1, 2, 0x55][index % 3]);
    }
    // The server frees the slots in time, and the next client gets one.
    let next = join(&scene.name, None, 0, PATIENCE).unwrap();
    drop(next);
    scene.is_unharmed();
}

/// Of servers that start at the same moment one gets the instance, also after one that died.
#[test]
fn servers_that_start_at_once() {
    let instance = instance();
    let path = crate::sys::segment::path(&control_segment_name(&instance));
    for round in 0..1000 {
        if round % 2 == 1 {
            // As a server that was killed left it.
            drop(Segment::create(&control_segment_name(&instance), 4096, 0).unwrap());
        }
        let begin = std::sync::Barrier::new(4);
        let made: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                begin.wait();
                Control::create(&instance)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let alive = made.iter().filter(|made| made.is_ok()).count();
        assert_eq!(alive, 1, "in round {round}: {made:?}");
        drop(made);
        assert!(!std::path::Path::new(&path).exists());
    }
}

#[test]
fn many_clients_come_and_go() {
    let scene = Scene::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let name = &scene.name;
            scope.spawn(move || {
                for _ in 0..25 {
                    let mut end = join(name, None, 0, PATIENCE).unwrap();
                    assert!(end.ends.tx.push(&frame(b"hello"), 0));
                    end.wake_server();
                    assert_eq!(&answer(&mut end)[24..], b"hello");
                }
            });
        }
    });
    scene.is_unharmed();
}

#[test]
fn a_live_servers_segment_is_never_taken_over() {
    let scene = Scene::new();
    let error = Server::builder()
        .shm(&scene.instance)
        .start()
        .unwrap_err()
        .to_string();
    let pid = std::process::id();
    assert!(
        error.contains(&format!("another server, pid {pid}, is using it")),
        "{error}"
    );
    scene.witness_works();
}

/// A process that waited for the lock has it when the server dies, and is no server.
#[test]
fn whoever_holds_a_dead_servers_lock_is_not_called_a_server() {
    let scene = Scene::new();
    let instance = instance();
    let path = segment::path(&control_segment_name(&instance));
    let mut bytes = std::fs::read(segment::path(&scene.name)).unwrap();
    bytes[24] ^= 1; // its start ticks
    std::fs::write(&path, bytes).unwrap();
    let held = std::fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let error = Server::builder().shm(&instance).start().unwrap_err();
    let said = error.to_string();
    assert!(said.contains("another process holds its lock"), "{said}");
    drop(held);
    drop(Server::builder().shm(&instance).start().unwrap());
}

/// Whatever is left under the name: a client may have cut it short before its server died.
#[test]
fn what_a_dead_server_left_is_replaced_whatever_its_length() {
    let instance = instance();
    let path = segment::path(&control_segment_name(&instance));
    for bytes in [0, 100, 4096, 1 << 31] {
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        drop(file);
        let server = Server::builder().shm(&instance).start().unwrap();
        let client = Client::connect(&format!("shm:{instance}")).unwrap();
        assert_eq!(client.call(msg_type::ECHO, b"x").unwrap(), b"x");
        drop(server);
        assert!(!std::path::Path::new(&path).exists());
    }
}

/// What a server and a client say of a name that leads to no segment.
fn refusals(instance: &str) -> [String; 2] {
    let server = Server::builder().shm(instance).start().unwrap_err();
    let client = Client::connect(&format!("shm:{instance}")).unwrap_err();
    [server.to_string(), client.to_string()]
}

#[test]
fn links_folders_and_pipes_are_neither_followed_nor_replaced() {
    let instance = instance();
    let path = segment::path(&control_segment_name(&instance));
    let target = segment::path(&format!("lapce_ipc_v2_{instance}_target"));
    std::fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    for said in refusals(&instance) {
        assert!(
            said.contains("it is a symbolic link, which is never"),
            "{said}"
        );
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&target).unwrap();
    std::fs::create_dir(&path).unwrap();
    for said in refusals(&instance) {
        assert!(said.contains("it is no file"), "{said}");
    }
    std::fs::remove_dir(&path).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(pipe.unwrap().success());
    for said in refusals(&instance) {
        assert!(said.contains("it is no file"), "{said}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn anothers_file_is_not_trusted() {
    let instance = instance();
    let path = segment::path(&control_segment_name(&instance));
    std::fs::write(&path, [0; 100]).unwrap();
    // Only root may give a file away; for others this is a file of their own, which is replaced.
    let given = std::os::unix::fs::chown(&path, Some(65_534), None).is_ok();
    if given {
        for said in refusals(&instance) {
            assert!(said.contains("it belongs to user 65534"), "{said}");
        }
        std::fs::remove_file(&path).unwrap();
    } else {
        drop(Server::builder().shm(&instance).start().unwrap());
    }
}

#[test]
fn a_segment_of_another_layout_is_told_from_ours() {
    let scene = Scene::new();
    let instance = instance();
    let path = segment::path(&control_segment_name(&instance));
    let mut bytes = std::fs::read(segment::path(&scene.name)).unwrap();
    let connect = || {
        Client::connect(&format!("shm:{instance}"))
            .unwrap_err()
            .to_string()
    };
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(connect().contains("it has 16383 bytes"), "{}", connect());
    // Magic, version, length.
    for at in [0, 8, 12] {
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(
            connect().contains("its layout is not this version's"),
            "{}",
            connect()
        );
        bytes[at] ^= 1;
    }
    // Start ticks: the process with the server's number is another.
    bytes[24] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        connect().contains("is gone; start lapce_ipc_server again"),
        "{}",
        connect()
    );
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn only_this_user_may_open_segments() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let mode = std::fs::metadata(segment::path(&scene.name)).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let villain = scene.villain();
    let mode = villain.file.metadata().unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

/// A client that was stopped while it attached does not disturb whoever has its slot now.
#[test]
fn a_client_that_comes_too_late_finds_its_slot_gone() {
    let scene = Scene::new();
    let control = scene.control();
    let slot = control.slot(0);
    let late = slot.step(slot.state(), Stage::Claimed).unwrap();
    until("the slot is freed", || !slot.state().is_same_turn(late));
    let other = slot.step(slot.state(), Stage::Claimed).unwrap();
    assert_eq!(slot.step(late, Stage::Requested), None);
    assert_eq!(slot.state(), other);
    scene.is_unharmed();
}

/// The first slot in this stage, once there is one.
fn slot_in(control: &Control, stage: Stage) -> Slot<'_> {
    let find = || {
        (0..SLOTS)
            .map(|index| control.slot(index))
            .find(|slot| slot.state().stage() == Some(stage))
    };
    until("a slot has come so far", || find().is_some());
    find().unwrap()
}

/// The process may live on, and another server have the name: who waited for this one would miss it.
#[test]
fn a_server_that_has_stopped_is_not_waited_for() {
    let instance = instance();
    let server = Server::builder().shm(&instance).start().unwrap();
    let control = Arc::new(Control::open(&control_segment_name(&instance)).unwrap());
    drop(server);
    let _next = Server::builder().shm(&instance).start().unwrap();
    let begin = Instant::now();
    let refused = join_opened(control.clone(), None, 0, PATIENCE).unwrap_err();
    assert!(matches!(refused, ShmError::Missing(_)), "{refused}");
    // Also where it left no slot free.
    for index in 0..SLOTS {
        control.slot(index).overwrite(1);
    }
    let refused = join_opened(control, None, 0, PATIENCE).unwrap_err();
    assert!(matches!(refused, ShmError::Missing(_)), "{refused}");
    assert!(begin.elapsed() < PATIENCE / 4);
}

/// Anybody may free a slot: the client believes the server's word in the connection's own segment.
#[test]
fn a_slot_that_somebody_frees_is_no_connection() {
    let instance = instance();
    // The server is played by hand.
    let control = Control::create(&instance).unwrap();
    let name = control_segment_name(&instance);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| join(&name, None, 0, PATIENCE));
        for (turn, freed_too_early) in [(0, true), (1, true), (2, false)] {
            let slot = slot_in(&control, Stage::Requested);
            let connection = connection_name(&name, turn);
            let (segment, _) =
                Segment::create(&connection, layout::SEGMENT_BYTES, layout::PAGE).unwrap();
            for (at, value) in [
                (layout::AT_VERSION, layout::VERSION),
                (layout::AT_CAPACITY, layout::CAPACITY as u32),
            ] {
                segment.word32(at).store(value, Ordering::Relaxed);
            }
            let magic = segment.word64(layout::AT_MAGIC);
            magic.store(layout::MAGIC, Ordering::Release);
            slot.set_name(&connection);
            slot.step(slot.state(), Stage::Ready).unwrap();
            let slot = slot_in(&control, Stage::Mapped);
            if !freed_too_early {
                let delivered = segment.word32(layout::AT_DELIVERED);
                delivered.store(1, Ordering::Release);
            }
            // The client frees it itself if it was quicker to see that.
            let _ = slot.step(slot.state(), Stage::Free);
            segment::unlink(&connection).unwrap();
        }
        client.join().unwrap().unwrap();
    });
}

#[test]
fn what_a_killed_server_left_of_connections_is_removed() {
    let instance = instance();
    let name = control_segment_name(&instance);
    let longer = control_segment_name(&format!("{instance}_x"));
    let with_pid = |pid: u32| {
        let mut bytes = vec![0; 4096];
        bytes[layout::AT_SERVER_PID..][..4].copy_from_slice(&pid.to_ne_bytes());
        bytes
    };
    // A number that no process can have, our own, and one that was not written yet.
    let left = [
        (connection_name(&name, 1), with_pid(u32::MAX)),
        (connection_name(&name, 2), with_pid(std::process::id())),
        (connection_name(&name, u64::MAX), vec![0; 3]),
    ];
    let mut not_hexadecimal = connection_name(&name, 5);
    not_hexadecimal.replace_range(not_hexadecimal.len() - 1.., "g");
    let kept = [
        (connection_name(&name, 3), with_pid(1)),
        (connection_name(&longer, 1), with_pid(u32::MAX)),
        (connection_name(&name, 4) + "0", with_pid(u32::MAX)),
        (not_hexadecimal, with_pid(u32::MAX)),
    ];
    for (name, bytes) in left.iter().chain(&kept) {
        std::fs::write(segment::path(name), bytes).unwrap();
    }
    let link = segment::path(&connection_name(&name, 6));
    std::os::unix::fs::symlink(segment::path(&kept[0].0), &link).unwrap();
    drop(Control::create(&instance).unwrap());
    let is_there = |name: &str| std::fs::symlink_metadata(segment::path(name)).is_ok();
    let left = left.map(|(name, _)| is_there(&name));
    let kept = kept.map(|(name, _)| {
        let there = is_there(&name);
        let _ = segment::unlink(&name);
        there
    });
    let link = std::fs::remove_file(link).is_ok();
    assert_eq!((left, kept, link), ([false; 3], [true; 4], true));
}
