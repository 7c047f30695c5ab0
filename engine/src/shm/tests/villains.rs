//! Clients that break every rule, each beside one that must not notice anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::ends::Ends;
use super::super::layout::{FLAG_WANTS_ROOM, TO_CLIENT, TO_SERVER};
use super::super::producer::Piece;
use super::super::slots::{Slot, Stage, State, UNSEEN};
use super::super::{ClientEnd, Control, RECORD_MAX};
use super::pattern;
use super::scene::{PATIENCE, Scene, answer, frame, until};
use crate::client::Client;
use crate::config::Limits;
use crate::sys::record_lock;
use crate::sys::segment::Segment;
use crate::wire::{self, Flags, Header, msg_type};

#[test]
fn a_client_that_cuts_its_segment_short() {
    let scene = Scene::new();
    // All of it; within the page of small messages; just that page; within the rings.
    for left_bytes in [0, 100, 4096, 70_000] {
        for answers_wait in [false, true] {
            let mut villain = scene.villain();
            assert!(villain.ends.tx.push(&frame(b"x"), 0));
            villain.wake_server();
            answer(&mut villain);
            if answers_wait {
                let request = frame(&pattern(30_000, 1));
                while villain.ends.tx.push(&request, 0) {
                    villain.wake_server();
                }
            }
            villain.file.set_len(left_bytes).unwrap();
            // The server looks at the ring when it is rung, and finds its memory gone, if it was
            // the part that it uses.
            villain.wake_server_anyway();
            scene.witness_works();
            if left_bytes > 0 {
                // The first page is still there: nobody can know before it is closed.
                drop(villain);
            }
            scene.is_unharmed();
        }
    }
}

#[test]
fn a_client_that_cuts_its_segment_short_before_the_server_has_served_it() {
    let scene = Scene::new();
    let control = scene.control();
    for left_bytes in [0, 100, 4096] {
        let (slot, state) = ask(&control);
        let (segment, file) = Segment::open(&slot.name().unwrap()).unwrap();
        file.set_len(left_bytes).unwrap();
        if left_bytes > 0 {
            // As above; this process, by which the server watches, lives on.
            Ends::new(Arc::new(segment), &TO_SERVER, &TO_CLIENT).close();
        }
        record_lock::hold(&file).unwrap();
        let state = slot.step(state, Stage::Mapped).unwrap();
        control.call_server();
        until("the server has seen it", || slot.state() != state);
        scene.is_unharmed();
    }
}

/// Takes a slot and asks for a connection; returns when the server has made it.
fn ask(control: &Control) -> (Slot<'_>, State) {
    let slot = control.slot(0);
    let state = slot.step(slot.state(), Stage::Claimed).unwrap();
    slot.step(state, Stage::Requested).unwrap();
    control.call_server();
    until("the connection is made", || {
        slot.state().stage() == Some(Stage::Ready)
    });
    (slot, slot.state())
}

/// The end of a process that nobody can name would go unnoticed, and its place be lost.
#[test]
fn a_client_that_does_not_show_who_it_is() {
    let scene = Scene::new();
    let control = scene.control();
    let (slot, state) = ask(&control);
    let state = slot.step(state, Stage::Mapped).unwrap();
    control.call_server();
    until("it is refused", || {
        slot.state().stage() == Some(Stage::Refused)
    });
    assert_eq!(slot.code(), UNSEEN);
    assert!(state.is_same_turn(slot.state()));
    // And the slot is freed in time.
    scene.is_unharmed();
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_frame() {
    let limits = Limits {
        frame_timeout_ms: 100,
        ..Limits::default()
    };
    let scene = Scene::with(limits, |builder| builder);
    let mut villain = scene.villain();
    let bytes = frame(&pattern(1000, 1));
    assert!(villain.ends.tx.push(&bytes[..500], 0));
    villain.wake_server();
    scene.is_unharmed();
}

#[test]
fn a_client_that_takes_no_answer_for_long() {
    let limits = Limits {
        send_stall_ms: 100,
        ..Limits::default()
    };
    let scene = Scene::with(limits, |builder| builder);
    let mut villain = scene.villain();
    let request = frame(&pattern(3000, 3));
    let start = Instant::now();
    while !villain.ends.peer_closed() {
        assert!(start.elapsed() < PATIENCE, "nobody minds");
        villain.ends.tx.push(&request, 0);
        villain.wake_server();
    }
    scene.is_unharmed();
}

#[test]
fn a_client_that_writes_nonsense() {
    let scene = Scene::new();
    for (at, word) in [
        (512, 1 << 25),                   // no commit word
        (512, 1 << 28 | 1 << 24 | 24),    // unknown bits
        (512, u64::MAX),                  // the same, of another lap
        (512, 1 << 24 | 0x00FF_FFFF),     // longer than any record
        (512, 1 << 24),                   // empty
        (512, 1 << 24 | 1 << 26 | 12345), // a skip that leads nowhere
        (512, 1 << 24 | 1785),            // past the end of its area
    ] {
        let villain = scene.villain();
        let word_at = villain.ends.segment.word64(at);
        word_at.store(word, Ordering::Release);
        villain.wake_server();
        scene.is_unharmed();
    }
    // A commit word of the lap before is nothing yet.
    let mut villain = scene.villain();
    let word_at = villain.ends.segment.word64(512);
    word_at.store(1 << 24 | 1 << 27 | 24, Ordering::Release);
    villain.wake_server_anyway();
    scene.witness_works();
    assert!(villain.ends.tx.push(&frame(b"x"), 0));
    villain.wake_server();
    answer(&mut villain);
    drop(villain);
    scene.is_unharmed();
}

#[test]
fn a_client_that_lies_about_what_it_has_read() {
    let scene = Scene::new();
    let mut villain = scene.villain();
    for consumed in [u64::MAX, 1 << 40, 32] {
        villain
            .ends
            .segment
            .word64(192)
            .store(consumed, Ordering::Release);
        assert!(villain.ends.tx.push(&frame(&pattern(3000, 2)), u64::MAX));
        villain.wake_server();
        answer(&mut villain);
        scene.witness_works();
    }
    drop(villain);
    scene.is_unharmed();
}

#[test]
fn a_client_that_flips_a_bit_is_told() {
    let scene = Scene::new();
    let mut villain = scene.villain();
    let mut bytes = frame(b"payload");
    bytes[26] ^= 1;
    assert!(villain.ends.tx.push(&bytes, 0));
    villain.wake_server();
    let told = answer(&mut villain);
    let (code, text) = wire::decode_error_payload(&told[24..]).unwrap();
    assert_eq!(code, 3);
    assert!(text.starts_with("CRC32 mismatch: expected 0x"), "{text}");
    scene.is_unharmed();
}

#[test]
fn a_client_whose_crc_comes_last() {
    let payload = pattern(3000, 4);
    let limits = Limits {
        max_message_bytes: 6000,
        ..Limits::default()
    };
    let scene = Scene::with(limits, |builder| builder);
    // What the header says of the length, what is wrong with the CRC, and the refusal.
    for (length, wrong, refusal) in [
        (3000, 0, None),
        (3000, 1, Some(wire::ErrorCode::CrcMismatch)),
        (6001, 0, Some(wire::ErrorCode::TooLarge)),
        // The CRC follows a frame that is complete without it.
        (1000, 0, Some(wire::ErrorCode::CrcMismatch)),
    ] {
        let mut villain = scene.villain();
        let (first, second) = payload.split_at(1000);
        let header = Header::new(Flags::REQUEST, msg_type::ECHO, 7, length);
        let mut piece = Piece {
            header: Some(header),
            payload: first,
            sum: wire::crc::header_seed(&header.to_bytes()),
            is_last: false,
        };
        let sum = villain.ends.tx.push_piece(&piece, 0).unwrap();
        piece = Piece {
            header: None,
            payload: second,
            sum: sum ^ wrong,
            is_last: true,
        };
        villain.ends.tx.push_piece(&piece, 0).unwrap();
        villain.wake_server();
        let told = answer(&mut villain);
        match refusal {
            None => assert!(told[24..] == payload),
            Some(refusal) => {
                let (code, text) = wire::decode_error_payload(&told[24..]).unwrap();
                assert_eq!(code, refusal as u16, "{text}");
                until("it is shut out", || villain.ends.peer_closed());
            }
        }
        drop(villain);
        scene.is_unharmed();
    }
}

/// Whatever the first word says of a frame whose CRC is right, it is looked at.
#[test]
fn a_client_whose_first_frame_has_no_good_header() {
    let scene = Scene::new();
    for first in [0, u64::MAX, u64::from_le_bytes(*b"IAPL\x01\0\0\x01")] {
        let mut villain = scene.villain();
        let mut bytes = frame(b"hello");
        bytes[..8].copy_from_slice(&u64::to_le_bytes(first));
        bytes[20..24].fill(0);
        let crc = wire::crc::crc32c(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        assert!(villain.ends.tx.push(&bytes, 0));
        villain.wake_server();
        let told = answer(&mut villain);
        let told = wire::decode_error_payload(&told[24..]);
        let refusals = [wire::ErrorCode::BadMagic, wire::ErrorCode::VersionMismatch];
        let code = told.and_then(|(code, _)| wire::ErrorCode::from_u16(code));
        assert!(
            code.is_some_and(|code| refusals.contains(&code)),
            "{code:?}"
        );
        until("it is shut out", || villain.ends.peer_closed());
        drop(villain);
        scene.is_unharmed();
    }
}

#[test]
fn a_client_that_never_reads() {
    let scene = Scene::new();
    let mut villain = scene.villain();
    let request = frame(&pattern(3000, 3));
    // Until neither the ring nor the server's patience takes more.
    let mut refused = 0;
    while refused < 200 {
        if villain.ends.tx.push(&request, 0) {
            refused = 0;
        } else {
            refused += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        villain.wake_server();
    }
    scene.witness_works();
    drop(villain);
    scene.is_unharmed();
}

/// Its answers, which nobody will read, hold the room for which its last message waits, and others behind it.
#[test]
fn a_client_that_goes_while_it_waits_for_room() {
    let limits = Limits {
        max_message_bytes: 128 * 1024,
        max_buffered_bytes: 128 * 1024 + 1024,
        // Longer than anybody waits.
        send_stall_ms: 10 * PATIENCE.as_millis() as u64,
        ..Limits::default()
    };
    let scene = Scene::with(limits, |builder| builder);
    let long = pattern(100_000, 5);
    let mut villain = scene.villain();
    let send = |villain: &mut ClientEnd, bytes: &[u8]| {
        for record in bytes.chunks(RECORD_MAX) {
            let start = Instant::now();
            while !villain.ends.tx.push(record, 0) {
                assert!(start.elapsed() < PATIENCE, "the server takes no more");
                villain.wake_server();
            }
        }
        villain.wake_server();
    };
    send(&mut villain, &frame(&pattern(30_000, 3)).repeat(10));
    let full = TO_CLIENT.producer_flags + FLAG_WANTS_ROOM;
    until("more answers than the ring has room for", || {
        villain.ends.segment.word32(full).load(Ordering::Relaxed) != 0
    });
    send(&mut villain, &frame(&long));
    drop(villain);
    let client = Client::builder().timeout(PATIENCE);
    let client = client.connect(&format!("shm:{}", scene.instance)).unwrap();
    assert_eq!(client.call(msg_type::ECHO, &long).unwrap(), long);
    drop(client);
    scene.is_unharmed();
}
