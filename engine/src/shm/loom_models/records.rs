//! What comes out of a ring is what went in, and nobody touches what is the other's.

use loom::thread;

use super::layout::RECORD_MAX;
use super::{check, connection, pattern, take};
use crate::wire::{Flags, HEADER_BYTES, Header, msg_type};

#[test]
fn one_record_arrives() {
    check(4, || {
        let (mut client, mut server) = connection();
        let producer = thread::spawn(move || assert!(client.tx.push(&pattern(70, 1), 0)));
        while !take(&mut server.rx, &pattern(70, 1)) {
            thread::yield_now();
        }
        assert!(!take(&mut server.rx, &[]));
        producer.join().unwrap();
    });
}

#[test]
fn one_frame_arrives() {
    check(4, || {
        let (mut client, mut server) = connection();
        let payload = pattern(40, 1);
        let sent = payload.clone();
        let producer = thread::spawn(move || {
            let header = Header::new(Flags::REQUEST, msg_type::ECHO, 1, sent.len() as u32);
            assert!(client.tx.push_frame(header, &sent, 0));
        });
        let record = loop {
            match server.rx.next().unwrap() {
                Some(record) => break record,
                None => thread::yield_now(),
            }
        };
        let mut bytes = Vec::new();
        assert!(
            server.rx.copy_frame(&record, &mut bytes).is_some(),
            "the CRC"
        );
        assert_eq!(bytes[HEADER_BYTES..], payload);
        server.rx.advance(&record);
        producer.join().unwrap();
    });
}

/// Pushes records of these lengths, waiting awake for room, while the other side takes them.
fn all_arrive(lengths: &'static [usize], ack: bool) {
    let (mut client, mut server) = connection();
    let producer = thread::spawn(move || {
        for (seed, &length) in lengths.iter().enumerate() {
            let bytes = pattern(length, seed);
            while !client.tx.push(&bytes, client.rx.position()) {
                // What the consumer says of its position in its answers, if it answers.
                match client.rx.next().unwrap() {
                    Some(record) => {
                        let ack = client.rx.advance(&record);
                        client.tx.acknowledged(ack);
                    }
                    None => thread::yield_now(),
                }
            }
        }
    });
    for (seed, &length) in lengths.iter().enumerate() {
        while !take(&mut server.rx, &pattern(length, seed)) {
            thread::yield_now();
        }
        match ack {
            true => assert!(server.tx.push(&[1], server.rx.position())),
            false => server.rx.publish(),
        }
    }
    producer.join().unwrap();
}

/// Over the ends of both areas, to the next lap and on: with SKIPs when the consumer lags, early
/// turns when it keeps up, and waiting for room when it is a lap behind.
#[test]
fn records_wrap_with_padding() {
    check(2, || {
        all_arrive(&[RECORD_MAX, RECORD_MAX, 100, RECORD_MAX, 50], false)
    });
}

/// The same, with the consumer's position learnt from the words of its answers alone.
#[test]
fn acknowledged_records_make_room() {
    check(2, || {
        all_arrive(&[RECORD_MAX, 90, RECORD_MAX, RECORD_MAX], true)
    });
}

/// As requests and their answers: after each of the records in `waits` the producer waits for the
/// answer, and so knows what was consumed and turns back early.
fn in_turn(lengths: &'static [usize], waits: &'static [usize]) {
    let (mut client, mut server) = connection();
    let producer = thread::spawn(move || {
        for (seed, &length) in lengths.iter().enumerate() {
            let bytes = pattern(length, seed);
            while !client.tx.push(&bytes, client.rx.position()) {
                thread::yield_now();
            }
            loop {
                match client.rx.next().unwrap() {
                    Some(record) => {
                        let ack = client.rx.advance(&record);
                        client.tx.acknowledged(ack);
                        client.rx.publish();
                        break;
                    }
                    None if waits.contains(&seed) => thread::yield_now(),
                    None => break,
                }
            }
        }
    });
    for (seed, &length) in lengths.iter().enumerate() {
        while !take(&mut server.rx, &pattern(length, seed)) {
            thread::yield_now();
        }
        server.rx.publish();
        // Where there is no room, the producer has learnt enough.
        let _ = server.tx.push(&[1], server.rx.position());
    }
    producer.join().unwrap();
}

/// The second place of a lap has a word of two laps before, which looks like one of its own: it must
/// be cleared.
#[test]
fn a_word_of_two_laps_before_is_cleared() {
    check(2, || in_turn(&[50, 50, 100, 50, 50, 50], &[0, 1, 2, 3]));
}

/// Two places in turn, of which none is cleared, between records that need more room.
#[test]
fn two_places_in_turn() {
    let lengths = &[RECORD_MAX, RECORD_MAX, 50, 50, 50, 50, RECORD_MAX, 50];
    check(2, || in_turn(lengths, &[0, 1, 2, 3, 4, 5]));
}
