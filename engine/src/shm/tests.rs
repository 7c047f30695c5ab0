//! The ring by itself, and a server among clients that break every rule.

mod reserve;
mod soak;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::ends::Ends;
use super::layout::{SEGMENT_BYTES, TO_CLIENT, TO_SERVER};
use super::ring::{Consumer, Producer};
use super::{ClientEnd, Control, RECORD_MAX, join};
use crate::client::Client;
use crate::server::Server;
use crate::stats::Transport;
use crate::sys::segment::{self, Segment};
use crate::wire::{self, Flags, Header, control_segment_name, msg_type};

/// A name of its own for each test, so that tests run side by side.
fn instance() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("u{}_{next}", std::process::id())
}

fn ring() -> (Producer, Consumer, Arc<Segment>) {
    let name = format!("lapce_ipc_v2_{}_ring", instance());
    let (segment, _) = Segment::create(&name, SEGMENT_BYTES).unwrap();
    segment::unlink(&name).unwrap();
    let segment = Arc::new(segment);
    let client = Ends::new(segment.clone(), &TO_SERVER, &TO_CLIENT);
    let server = Ends::new(segment.clone(), &TO_CLIENT, &TO_SERVER);
    (client.tx, server.rx, segment)
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + seed * 13) as u8).collect()
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
        tx.acknowledged((rx.position() / 32) as u32);
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

/// A server, a well-behaved client that must not notice anything, and what to break.
struct Scene {
    server: Server,
    name: String,
    witness: Client,
    before: usize,
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Scene {
    fn new() -> Scene {
        let instance = instance();
        let server = Server::builder()
            .workers(1)
            .pin(false)
            .shm(&instance)
            .start()
            .unwrap();
        let witness = Client::connect(&format!("shm:{instance}")).unwrap();
        assert_eq!(witness.transport(), Transport::Shm);
        let scene = Scene {
            server,
            name: control_segment_name(&instance),
            witness,
            before: descriptors(),
        };
        scene.witness_works();
        scene
    }

    fn witness_works(&self) {
        for length in [0, 64, 5000] {
            let payload = pattern(length, 1);
            assert_eq!(
                self.witness.call(msg_type::ECHO, &payload).unwrap(),
                payload
            );
        }
    }

    fn villain(&self) -> ClientEnd {
        join(&self.name, None, Duration::from_secs(10)).unwrap()
    }

    /// The villain's connection goes; nothing else does, and nothing is left of it.
    fn is_unharmed(&self) {
        until("the broken connection is closed", || {
            self.witness_works();
            self.server.stats().connections(Transport::Shm) == 1
        });
        let prefix = self.name.trim_end_matches("control").to_owned() + "conn_";
        let left = || {
            std::fs::read_dir(segment::DIRECTORY)
                .unwrap()
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        };
        until("no connection's segment is left", || !left());
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_to(&mut bytes, Flags::REQUEST, msg_type::ECHO, 5, payload);
    bytes
}

/// Waits for the villain's answer and returns its bytes.
fn answer(villain: &mut ClientEnd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let Some(record) = villain.ends.rx.next().unwrap() {
            villain.ends.rx.copy(&record, &mut bytes);
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no answer");
}

#[test]
fn a_client_that_cuts_its_segment_short() {
    let scene = Scene::new();
    let mut villain = scene.villain();
    assert!(villain.ends.tx.push(&frame(b"x"), 0));
    villain.wake_server();
    answer(&mut villain);
    villain.file.set_len(0).unwrap();
    // The server looks at the ring when it is rung, and finds its memory gone.
    villain.wake_server_anyway();
    scene.is_unharmed();
}

#[test]
fn a_client_that_writes_nonsense() {
    let scene = Scene::new();
    for (at, word) in [
        (512, u64::MAX),                  // unknown bits
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

#[test]
fn clients_that_stop_half_way_through_attaching() {
    let scene = Scene::new();
    let control = super::Control::open(&scene.name).unwrap();
    for slot in 0..super::control::SLOTS {
        let state = control.slot_state(slot);
        state.store(1 + slot as u32 % 2, Ordering::Release); // claimed, or requested by nobody
    }
    control.call_server();
    // The server frees the slots in time, and the next client gets one.
    let next = join(&scene.name, None, Duration::from_secs(20)).unwrap();
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
            drop(Segment::create(&control_segment_name(&instance), 4096).unwrap());
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
                    let mut end = join(name, None, Duration::from_secs(10)).unwrap();
                    assert!(end.ends.tx.push(&frame(b"hello"), 0));
                    end.wake_server();
                    assert_eq!(&answer(&mut end)[24..], b"hello");
                }
            });
        }
    });
    scene.is_unharmed();
    until("descriptors are as before", || {
        descriptors() <= scene.before + 8
    });
}

#[test]
fn a_live_servers_segment_is_never_taken_over() {
    let scene = Scene::new();
    let instance = scene
        .name
        .trim_start_matches("lapce_ipc_v2_")
        .trim_end_matches("_control");
    let error = Server::builder()
        .shm(instance)
        .start()
        .unwrap_err()
        .to_string();
    assert!(error.contains("another server, pid"), "{error}");
    scene.witness_works();
}

#[test]
fn a_dead_servers_segment_is_replaced() {
    let instance = instance();
    let name = control_segment_name(&instance);
    let (segment, file) = Segment::create(&name, 4096).unwrap();
    drop((segment, file));
    let server = Server::builder().shm(&instance).start().unwrap();
    let client = Client::connect(&format!("shm:{instance}")).unwrap();
    assert_eq!(client.call(msg_type::ECHO, b"x").unwrap(), b"x");
    drop(server);
    assert!(!std::path::Path::new(&segment::path(&name)).exists());
}

#[test]
fn no_server_is_said_in_the_guides_words() {
    let error = Client::connect("shm:nobody_is_here")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(
            "Failed to open shared memory: /dev/shm/lapce_ipc_v2_nobody_is_here_control\n"
        ),
        "{error}"
    );
}

#[test]
fn large_messages_go_through_in_pieces() {
    let scene = Scene::new();
    for length in [RECORD_MAX - 24, RECORD_MAX, 200_000, 1 << 20, 10 << 20] {
        let payload = pattern(length, 4);
        assert_eq!(
            scene.witness.call(msg_type::ECHO, &payload).unwrap(),
            payload
        );
    }
}

#[test]
fn sleeping_sides_are_woken() {
    for idle in [
        crate::config::IdleMode::Park,
        crate::config::IdleMode::Adaptive,
    ] {
        let instance = instance();
        let server = Server::builder().idle(idle).shm(&instance).start().unwrap();
        let client = Client::builder()
            .idle(idle)
            .connect(&format!("shm:{instance}"))
            .unwrap();
        for round in 0..3000 {
            let payload = pattern(round % 200, round);
            assert_eq!(client.call(msg_type::ECHO, &payload).unwrap(), payload);
        }
        server.stop();
    }
}
