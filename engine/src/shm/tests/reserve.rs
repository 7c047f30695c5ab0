//! Payloads written in place: by themselves, and through a client that loses its server meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::scene::frame;
use super::{instance, pattern, ring};
use crate::client::{Client, Error};
use crate::server::Server;
use crate::shm::RECORD_MAX;
use crate::shm::consumer::Consumer;
use crate::shm::layout::ALIGN;
use crate::stats::Transport;
use crate::wire::{Flags, Header, msg_type};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Reserved, filled and committed, perhaps shorter, or given up, among records that are pushed:
    /// the frames come out whole and in order, and nothing of what was given up.
    #[test]
    fn reservations_among_pushes(
        steps in prop::collection::vec((0usize..6000, 0u8..4, 0usize..5, 0usize..=100), 1..400),
    ) {
        let (mut tx, mut rx, _segment) = ring();
        let mut expected = VecDeque::new();
        let take = |rx: &mut Consumer, expected: &mut VecDeque<Vec<u8>>| {
            let record = rx.next().unwrap()?;
            let mut bytes = Vec::new();
            assert!(rx.copy_frame(&record, &mut bytes).is_some(), "the CRC is right");
            let ack = rx.advance(&record);
            assert_eq!(Some(bytes), expected.pop_front());
            Some(ack)
        };
        for (index, &(length, kind, taken, percent)) in steps.iter().enumerate() {
            let length = match index % 17 { 3 => length * 5, 5..=9 => length % 100, _ => length };
            let payload = pattern(length, index);
            if kind == 0 {
                if tx.push(&frame(&payload), 0) {
                    expected.push_back(frame(&payload));
                }
            } else if let Some(reservation) = tx.reserve(length) {
                prop_assert_eq!(reservation.capacity(), length);
                prop_assert!(reservation.data().addr().is_multiple_of(32));
                // SAFETY: room for the payload, which is private.
                unsafe { reservation.data().copy_from_nonoverlapping(payload.as_ptr(), length) };
                prop_assert_eq!(&reservation.copy_out(length), &payload);
                let used = length * percent / 100;
                if kind < 3 {
                    let header = Header::new(Flags::REQUEST, msg_type::ECHO, 5, used as u32);
                    tx.commit(&reservation, header, 0);
                    expected.push_back(frame(&payload[..used]));
                    prop_assert!(!tx.holds(&reservation) && tx.made(&reservation));
                } else {
                    prop_assert!(tx.holds(&reservation));
                }
            }
            for _ in 0..taken {
                take(&mut rx, &mut expected);
            }
            rx.publish();
            // What answers tell, so that the producer turns back early.
            tx.acknowledged((rx.position() / ALIGN as u64) as u32);
        }
        while take(&mut rx, &mut expected).is_some() {}
        prop_assert!(expected.is_empty());
    }
}

#[test]
fn no_room_is_reserved_that_a_record_cannot_have() {
    let (mut tx, mut rx, _segment) = ring();
    assert!(tx.reserve(RECORD_MAX - 23).is_none());
    let longest = tx.reserve(RECORD_MAX - 24).unwrap();
    let (other, ..) = ring();
    assert!(tx.holds(&longest) && !other.holds(&longest) && !other.made(&longest));
    // Pushed over it: it is not held any more.
    while tx.push(&pattern(30_000, 1), 0) {}
    assert!(!tx.holds(&longest) && tx.made(&longest));
    assert!(tx.reserve(30_000).is_none());
    while let Some(record) = rx.next().unwrap() {
        rx.advance(&record);
        rx.publish();
    }
    assert!(tx.reserve(30_000).is_some());
}

/// As a C program does.
fn reserve(client: &Client, payload: &[u8], length: usize) {
    let (data, capacity) = client.reserve(msg_type::ECHO, length).unwrap();
    assert!(capacity >= length && payload.len() <= length);
    assert!(data.addr().is_multiple_of(32));
    // SAFETY: room for `length` bytes until the next use of the client; the payload is elsewhere.
    unsafe { data.copy_from_nonoverlapping(payload.as_ptr(), payload.len()) };
}

fn server(instance: &str) -> Server {
    Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .pin(false)
        .shm(instance)
        .start()
        .unwrap()
}

/// Clients over both ways of one server.
fn clients(server: &Server, instance: &str) -> [Client; 2] {
    let tcp = server.local_addr().unwrap().to_string();
    let clients = [format!("shm:{instance}"), tcp].map(|address| {
        Client::builder()
            .shm_upgrade(false)
            .max_inflight(64)
            .connect(&address)
            .unwrap()
    });
    assert_eq!(clients[0].transport(), Transport::Shm);
    assert_eq!(clients[1].transport(), Transport::Tcp);
    clients
}

#[test]
fn requests_written_in_place_among_others() {
    let instance = instance();
    let server = server(&instance);
    for client in clients(&server, &instance) {
        let mut expected = VecDeque::new();
        for round in 0..20_000usize {
            let length = match round % 50 {
                0 => 40_000,
                1 => RECORD_MAX - 24,
                _ => round * 37 % 900,
            };
            let payload = pattern(length, round);
            let id = match round % 5 {
                0 => client.submit(msg_type::ECHO, &payload).unwrap(),
                1 => {
                    reserve(&client, &pattern(length, round + 1), length);
                    client.abort().unwrap();
                    continue;
                }
                shorter => {
                    let reserved = length + usize::from(shorter == 2) * 500;
                    reserve(&client, &payload, reserved);
                    client.commit(length).unwrap()
                }
            };
            expected.push_back((id, payload));
            if expected.len() > 60 || round % 7 == 0 {
                let (id, payload) = expected.pop_front().unwrap();
                assert_eq!(client.wait(id).unwrap(), payload);
            }
        }
        for (id, payload) in expected {
            assert_eq!(client.wait(id).unwrap(), payload);
        }
        assert_eq!(client.stats().sent, client.stats().received);
        assert_eq!((client.in_flight(), client.stats().reconnects), (0, 0));
    }
}

#[test]
fn mistakes_are_told_and_harm_nothing() {
    let instance = instance();
    let server = server(&instance);
    let invalid = |result: Result<u64, Error>| {
        assert!(matches!(result, Err(Error::InvalidRequest(_))));
    };
    for client in clients(&server, &instance) {
        invalid(client.commit(0));
        assert!(client.abort().is_err() && !client.has_reservation());
        assert!(matches!(
            client.reserve(msg_type::ECHO, usize::MAX),
            Err(Error::TooLarge { .. })
        ));
        reserve(&client, b"payload", 100);
        assert!(client.reserve(msg_type::ECHO, 1).is_err() && client.has_reservation());
        invalid(client.commit(101));
        let id = client.commit(7).unwrap();
        invalid(client.commit(7));
        assert_eq!(client.wait(id).unwrap(), b"payload");
        // Another request in between lies over what is in the ring.
        reserve(&client, b"payload", 100);
        client.ping().unwrap();
        match client.transport() {
            Transport::Shm => invalid(client.commit(7)),
            Transport::Tcp => drop(client.commit(7).unwrap()),
        }
        assert!(!client.has_reservation());
        client.ping().unwrap();
        // Dropped with a reservation.
        reserve(&client, b"payload", 100);
    }
}

#[test]
fn what_was_reserved_outlives_its_connection() {
    let instance = instance();
    for written_before in [true, false] {
        let first = server(&instance);
        let client = Client::connect(&format!("shm:{instance}")).unwrap();
        let payload = pattern(1000, 9);
        let (data, _) = client.reserve(msg_type::ECHO, payload.len()).unwrap();
        // SAFETY: as in `reserve`; the memory is mapped whatever becomes of the server.
        let write = || unsafe { data.copy_from_nonoverlapping(payload.as_ptr(), payload.len()) };
        if written_before {
            write();
        }
        first.stop();
        let _second = server(&instance);
        if !written_before {
            write();
        }
        // With nothing in flight, a client that rested looks whether its server is still there.
        std::thread::sleep(Duration::from_millis(10));
        let id = client.commit(payload.len()).unwrap();
        assert_eq!(client.wait(id).unwrap(), payload);
        assert_eq!(client.stats().reconnects, 1);
    }
}
