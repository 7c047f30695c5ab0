//! The ring by itself, and two sides that keep to the rules.

mod attaching;
mod control_damage;
mod crowd;
mod reserve;
mod scene;
mod soak;
mod villains;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::RECORD_MAX;
use super::consumer::Consumer;
use super::ends::Ends;
use super::layout::{ALIGN, CAPACITY, SEGMENT_BYTES, TO_CLIENT, TO_SERVER};
use super::producer::Producer;
use crate::sys::affinity;
use crate::sys::segment::{self, Segment};
use crate::wire::{self, Flags, Header, msg_type};

/// A name of its own for each test, so that tests run side by side.
fn instance() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("u{}_{next}", std::process::id())
}

/// A connection: the client's side and the server's.
fn connection() -> (Ends, Ends) {
    let name = format!("lapce_ipc_v2_{}_ring", instance());
    let (segment, _) = Segment::create(&name, SEGMENT_BYTES, 0).unwrap();
    segment::unlink(&name).unwrap();
    let segment = Arc::new(segment);
    let client = Ends::new(segment.clone(), &TO_SERVER, &TO_CLIENT);
    let server = Ends::new(segment, &TO_CLIENT, &TO_SERVER);
    (client, server)
}

pub(super) fn ring() -> (Producer, Consumer, Arc<Segment>) {
    let (client, server) = connection();
    (client.tx, server.rx, server.segment)
}

/// Whoever wakes a sleeper learns on which CPU it waits, and once only.
#[test]
fn a_sleeper_says_on_which_cpu_it_waits() {
    let (client, mut server) = connection();
    let cpu = *affinity::allowed_cpus().last().unwrap();
    let sleeper = std::thread::spawn(move || {
        affinity::pin_current_thread(cpu).unwrap();
        assert!(!client.fall_asleep(false, || {}));
        client
    });
    let client = sleeper.join().unwrap();
    assert_eq!(server.wake_peer(), None, "there is nothing new");
    assert!(server.tx.push(b"a record", server.rx.position()));
    assert_eq!(server.wake_peer(), Some(cpu as u32));
    assert!(server.tx.push(b"another", server.rx.position()));
    assert_eq!(server.wake_peer(), None, "it was woken");
    // As older versions of the library do it.
    client.rx.waiting_word().store(1, Ordering::Relaxed);
    assert!(server.tx.push(b"a third", server.rx.position()));
    assert_eq!(server.wake_peer(), None, "it does not say where");
    assert_eq!(client.rx.waiting_word().load(Ordering::Relaxed), 0);
}

/// Bytes of which no two pages are alike.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 7 + at / 251 + seed * 13) as u8)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the sizes and whoever is quicker: what comes out is what went in.
    #[test]
    fn records_come_out_as_they_went_in(
        steps in prop::collection::vec((1usize..6000, 0usize..6, any::<bool>()), 1..400),
        large in 1usize..RECORD_MAX,
    ) {
        let (mut tx, mut rx, _segment) = ring();
        let mut expected = std::collections::VecDeque::new();
        let take = |rx: &mut Consumer, expected: &mut std::collections::VecDeque<Vec<u8>>| {
            let record = rx.next().unwrap()?;
            let mut bytes = Vec::new();
            rx.copy(&record, &mut bytes);
            rx.advance(&record);
            assert_eq!(Some(bytes), expected.pop_front());
            Some(())
        };
        for (index, &(length, taken, publish)) in steps.iter().enumerate() {
            let length = match index % 17 { 3 => large, 5..=9 => length % 100 + 1, _ => length };
            let bytes = pattern(length, index);
            if tx.push(&bytes, 0) {
                expected.push_back(bytes);
            } else {
                // Full: after everything is taken there is room.
                while take(&mut rx, &mut expected).is_some() {}
                rx.publish();
                prop_assert!(tx.push(&bytes, 0));
                expected.push_back(bytes);
            }
            for _ in 0..taken {
                take(&mut rx, &mut expected);
            }
            if publish {
                rx.publish();
            }
        }
        while take(&mut rx, &mut expected).is_some() {}
        prop_assert!(expected.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A record goes where it would go had nothing been prepared, whoever is quicker.
    #[test]
    fn what_was_prepared_is_what_would_be_done(
        steps in prop::collection::vec((0usize..8, 0usize..200, 0usize..3, any::<bool>()), 1..400),
    ) {
        let (mut prepared, mut rx, _segment) = ring();
        let (mut plain, mut plain_rx, _other) = ring();
        for (index, &(kind, length, taken, told)) in steps.iter().enumerate() {
            // Mostly the same length again.
            let payload = pattern(if kind < 6 { 64 } else { length * 20 + 1 }, index);
            let header = Header::new(Flags::REQUEST, msg_type::ECHO, 9, payload.len() as u32);
            let ack = index as u64 * ALIGN as u64;
            plain.forget_prepared();
            let pushed = match kind {
                7 => (prepared.push(&payload, ack), plain.push(&payload, ack)),
                _ => (
                    prepared.push_frame(header, &payload, ack),
                    plain.push_frame(header, &payload, ack),
                ),
            };
            prop_assert_eq!(pushed.0, pushed.1);
            for _ in 0..taken {
                let (mut left, mut right) = (Vec::new(), Vec::new());
                let (Some(record), Some(same)) = (rx.next().unwrap(), plain_rx.next().unwrap()) else {
                    break;
                };
                rx.copy(&record, &mut left);
                plain_rx.copy(&same, &mut right);
                prop_assert_eq!(left, right);
                prop_assert_eq!(rx.advance(&record), plain_rx.advance(&same));
                prop_assert_eq!(rx.position(), plain_rx.position());
            }
            if told {
                let ack = (rx.position() / ALIGN as u64) as u32;
                prepared.acknowledged(ack);
                plain.acknowledged(ack);
            } else if index % 5 == 0 {
                rx.publish();
                plain_rx.publish();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever was written where the next record will begin, by records or by reservations that were
    /// given up, in whichever lap: nothing is taken for a record that was not pushed.
    #[test]
    fn nothing_comes_out_that_did_not_go_in(
        steps in prop::collection::vec((0usize..12, 0usize..40, any::<bool>()), 1..600),
    ) {
        let (mut tx, mut rx, _segment) = ring();
        for (kind, laps, told) in steps {
            // Commit words of the lap that is, or of one to come.
            let lap = rx.position() / CAPACITY as u64 + laps as u64 % 3;
            let word = 1 << 24 | (lap % 2) << 27 | 8;
            let words = word.to_le_bytes().repeat([3, 11, 40, 130][kind % 4]);
            if kind >= 10 {
                let reservation = tx.reserve(words.len()).unwrap();
                // SAFETY: there is room for so many bytes, and nobody else writes to it.
                unsafe {
                    let data = reservation.data();
                    std::ptr::copy_nonoverlapping(words.as_ptr(), data, words.len());
                }
                continue;
            }
            for turn in 0..laps {
                let like_words = turn % 5 < kind % 3;
                let bytes: &[u8] = if like_words { &words } else { &[1; 88] };
                prop_assert!(tx.push(bytes, 0));
                if kind == 9 {
                    // There may be no room for it now.
                    tx.push(&words, 0);
                }
                // Each turn takes a record.
                while let Some(record) = rx.next().unwrap() {
                    prop_assert!(record.length == words.len() || record.length == 88);
                    rx.advance(&record);
                    prop_assert!(rx.position() <= tx.next.position);
                }
                prop_assert_eq!(rx.position(), tx.next.position);
                rx.publish();
                if told {
                    tx.acknowledged((rx.position() / ALIGN as u64) as u32);
                }
            }
        }
    }
}

/// The CRC computed while copying is right for one whole frame, and nothing else passes for one.
#[test]
fn only_one_good_frame_is_copied_as_one() {
    let (mut tx, mut rx, _segment) = ring();
    let frame = |length| {
        let mut bytes = Vec::new();
        wire::encode_to(
            &mut bytes,
            Flags::REQUEST,
            msg_type::ECHO,
            7,
            &pattern(length, 3),
        );
        bytes
    };
    let mut cases = Vec::new();
    for length in [0, 1, 63, 64, 65, 200, 1024, 30_000] {
        cases.push((frame(length), true));
        let mut flipped = frame(length);
        *flipped.last_mut().unwrap() ^= 1;
        cases.push((flipped, false));
        cases.push(([frame(length), frame(1)].concat(), false));
        let whole = frame(length);
        cases.push((whole[..whole.len() - 1].to_vec(), false));
    }
    cases.push((vec![0; 24], false));
    for (bytes, good) in cases {
        assert!(tx.push(&bytes, 0));
        let record = rx.next().unwrap().unwrap();
        let mut appended = vec![9; 3];
        let header = match Header::parse(&bytes, u32::MAX) {
            Ok(header) if good => header,
            _ => None,
        };
        assert_eq!(header.is_some(), good);
        assert_eq!(rx.copy_frame(&record, &mut appended), header);
        assert_eq!(appended, [&[9; 3][..], &bytes].concat());
        let mut to = vec![0; bytes.len() + 5];
        assert_eq!(rx.copy_frame_to(&record, &mut to), header);
        assert_eq!(to[..bytes.len()], bytes);
        assert_eq!(to[bytes.len()..], [0; 5]);
        // Its payload alone, or nothing.
        let mut payload = vec![9; 3];
        assert_eq!(rx.copy_payload(&record, &mut payload, |_| false), None);
        let taken = rx.copy_payload(&record, &mut payload, |it| Some(*it) == header);
        assert_eq!(taken.is_some(), good);
        let expected: &[u8] = if good { &bytes[24..] } else { &[] };
        assert_eq!(payload, [&[9; 3][..], expected].concat());
        rx.advance(&record);
        rx.publish();
    }
}

#[test]
fn small_traffic_stays_in_the_first_page() {
    let (mut tx, mut rx, segment) = ring();
    for round in 0..10_000 {
        let bytes = pattern(88, round);
        assert!(tx.push(&bytes, 0));
        let record = rx.next().unwrap().unwrap();
        let mut out = Vec::new();
        rx.copy(&record, &mut out);
        rx.advance(&record);
        rx.publish();
        // What a request and its answer do by their commit words.
        tx.acknowledged((rx.position() / ALIGN as u64) as u32);
        assert_eq!(out, bytes);
    }
    let beyond = segment.at(4096, SEGMENT_BYTES - 4096);
    // SAFETY: inside the mapping; nobody writes meanwhile.
    let touched = (0..SEGMENT_BYTES - 4096).any(|at| unsafe { beyond.add(at).read() } != 0);
    assert!(!touched);
}

#[test]
fn two_threads_agree_on_every_byte() {
    let (mut tx, mut rx, _segment) = ring();
    const RECORDS: usize = 50_000;
    let length = |index: usize| index * 37 % 900 + 1;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for index in 0..RECORDS {
                let bytes = pattern(length(index), index);
                while !tx.push(&bytes, 0) {
                    std::thread::yield_now();
                }
            }
        });
        for index in 0..RECORDS {
            let record = loop {
                if let Some(record) = rx.next().unwrap() {
                    break record;
                }
                std::thread::yield_now();
            };
            let mut bytes = Vec::new();
            rx.copy(&record, &mut bytes);
            assert_eq!(bytes, pattern(length(index), index));
            rx.advance(&record);
            rx.publish();
        }
    });
}

#[test]
fn whatever_is_in_memory_nothing_is_read_outside() {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..200 {
        let (mut tx, mut rx, segment) = ring();
        for _ in 0..50 {
            let at = random() as usize % (SEGMENT_BYTES / 8) * 8;
            // Often something that looks like a commit word.
            let word = random()
                & if random() % 2 == 0 {
                    0xFFFF_0700_7FFF
                } else {
                    u64::MAX
                };
            segment.word64(at).store(word, Ordering::Relaxed);
            segment
                .word64(512)
                .store(random() & 0x0700_FFFF, Ordering::Relaxed);
            tx.acknowledged(random() as u32);
            tx.push(&pattern(random() as usize % 3000 + 1, 0), random());
            for _ in 0..4 {
                let Ok(Some(record)) = rx.next() else { break };
                let mut bytes = Vec::new();
                rx.copy(&record, &mut bytes);
                assert!(bytes.len() <= RECORD_MAX);
                rx.advance(&record);
            }
        }
    }
}
