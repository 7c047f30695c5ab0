//! Messages that fit no record, over shared memory with the real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::ipc::{
    AnswerRef, Client, Error, IdleMode, Responder, Server, ServerBuilder, Transport, msg_type,
};

/// Answers with the payload twice, as a stream.
const TWICE: u16 = 0x0100;
/// Answers with all but the payload's ends.
const MIDDLE: u16 = 0x0101;
/// Answers with other bytes of the same number.
const OTHER: u16 = 0x0102;
/// Holds up the worker for a while.
const BLOCKS: u16 = 0x0103;
/// One-way: counted if it is what `payload` makes.
const COUNTED: u16 = 0x0104;

const BLOCKED: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);
/// Some that just fit a record, some that just do not, some of which the CRC just fits into the last piece or just
/// does not, and the bench's.
const LENGTHS: [usize; 9] = [
    0,
    100,
    32_736,
    32_737,
    65_444,
    65_445,
    65_449,
    300_001,
    1 << 20,
];

fn payload(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (seed + at + at / 251) as u8).collect()
}

/// A server, an address of it and the count of good one-way messages.
fn server(test: &str) -> (Server, String, Arc<AtomicU32>) {
    let instance = format!("long_{test}_{}", std::process::id());
    let counted = Arc::new(AtomicU32::new(0));
    let count = counted.clone();
    let builder: ServerBuilder = Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .shm(&instance)
        .handler(TWICE, |request, mut responder: Responder<'_>| {
            responder.stream_part(request.payload());
            responder.reply(request.payload());
        })
        .handler(MIDDLE, |request, responder: Responder<'_>| {
            let payload = request.payload();
            responder.reply(&payload[1..payload.len() - 1]);
        })
        .handler(OTHER, |request, responder: Responder<'_>| {
            let other: Vec<u8> = request.payload().iter().map(|byte| !byte).collect();
            responder.reply(&other);
        })
        .handler(BLOCKS, |_, responder: Responder<'_>| {
            std::thread::sleep(BLOCKED);
            responder.reply(b"");
        })
        .handler(COUNTED, move |request, _: Responder<'_>| {
            let got = request.payload();
            let good = got == payload(7, got.len());
            count.fetch_add(u32::from(good), Ordering::Relaxed);
        });
    let server = builder.start().unwrap();
    (server, format!("shm:{instance}"), counted)
}

#[test]
fn answers_of_all_kinds() {
    let (_server, address, _) = server("kinds");
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let client = Client::builder()
            .idle(idle)
            .timeout(PATIENCE)
            .connect(&address)
            .unwrap();
        // The answers of one length go to the memory that another's were in.
        let mut answer = Vec::new();
        for round in 0..3 {
            for length in LENGTHS {
                let sent = payload(round, length);
                client
                    .call_into(msg_type::ECHO, &sent, &mut answer)
                    .unwrap();
                assert!(answer == sent, "{length}");
                client.call_into(TWICE, &sent, &mut answer).unwrap();
                assert!(answer == [&sent[..], &sent].concat(), "{length}");
                client.call_into(OTHER, &sent, &mut answer).unwrap();
                let other = answer.iter().map(|byte| !byte);
                assert!(other.eq(sent.iter().copied()), "{length}");
                if length > 2 {
                    client.call_into(MIDDLE, &sent, &mut answer).unwrap();
                    assert!(answer == sent[1..length - 1], "{length}");
                }
            }
        }
        assert_eq!(client.stats().reconnects, 0);
    }
}

#[test]
fn many_in_flight_collected_in_any_order() {
    let (server, address, counted) = server("order");
    let client = Client::builder()
        .timeout(PATIENCE)
        .connect(&address)
        .unwrap();
    let mut sent = Vec::new();
    let mut submit = |seed: usize| {
        let sent_payload = payload(seed, LENGTHS[seed % LENGTHS.len()]);
        let id = client.submit(msg_type::ECHO, &sent_payload).unwrap();
        sent.push((id, sent_payload));
    };
    (0..20).for_each(&mut submit);
    client.send(COUNTED, &payload(7, 200_000)).unwrap();
    (20..40).for_each(&mut submit);
    // By id, the newest first.
    for (id, expected) in sent.drain(30..).rev() {
        assert!(client.wait(id).unwrap() == expected);
    }
    // One as it comes, the rest with a sink.
    let answer = client.wait_any().unwrap();
    let mut left: Vec<u64> = sent.iter().map(|(id, _)| *id).collect();
    let mut check = |answer: AnswerRef<'_>| {
        let (_, expected) = sent.iter().find(|(id, _)| *id == answer.id).unwrap();
        assert!(answer.result.unwrap() == expected);
        left.retain(|&id| id != answer.id);
    };
    check(AnswerRef {
        id: answer.id,
        msg_type: answer.msg_type,
        last: answer.last,
        result: Ok(answer.result.as_deref().unwrap()),
    });
    while client.in_flight() > 0 {
        client.wait_with(&mut check).unwrap();
    }
    // What came while another was waited for.
    client.poll_with(&mut check).unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(counted.load(Ordering::Relaxed), 1);
    assert_eq!(server.stats().requests(Transport::Shm), 40);
}

#[test]
fn a_stream_of_long_parts_comes_part_by_part() {
    let (_server, address, _) = server("stream");
    let client = Client::connect(&address).unwrap();
    let sent = payload(3, 200_000);
    let parts = client.call_stream(TWICE, &sent).unwrap();
    let parts: Vec<Vec<u8>> = parts.map(Result::unwrap).collect();
    assert_eq!(parts.len(), 2);
    assert!(parts.iter().all(|part| *part == sent));
}

#[test]
fn more_unread_than_allowed_is_said_and_nothing_else_breaks() {
    let (_server, address, _) = server("unread");
    let client = Client::builder()
        .max_unread_bytes(500_000)
        .timeout(PATIENCE)
        .connect(&address)
        .unwrap();
    let sent = payload(1, 300_000);
    let ids: Vec<u64> = (0..3)
        .map(|_| client.submit(msg_type::ECHO, &sent).unwrap())
        .collect();
    // What somebody waits for may be as long as it likes.
    let long = payload(2, 600_000);
    assert!(client.call(msg_type::ECHO, &long).unwrap() == long);
    let outcomes: Vec<_> = ids.iter().map(|&id| client.wait(id)).collect();
    assert!(outcomes[0].as_ref().is_ok_and(|answer| *answer == sent));
    for outcome in &outcomes[1..] {
        assert!(matches!(outcome, Err(Error::Unread { max: 500_000 })));
    }
    assert!(client.call(msg_type::ECHO, &sent).unwrap() == sent);
}

/// The caller's memory is needed no more once `submit` has returned, in vain or not.
#[test]
fn a_message_that_was_half_sent_in_time_arrives_whole() {
    let (_server, address, counted) = server("half");
    let client = Client::builder()
        .timeout(BLOCKED / 6)
        .connect(&address)
        .unwrap();
    client.submit(BLOCKS, b"").unwrap();
    client.flush().unwrap();
    let mut sent = payload(7, 1 << 20);
    let error = client.submit(COUNTED, &sent).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    sent.fill(0);
    drop(sent);
    std::thread::sleep(2 * BLOCKED);
    let after = payload(9, 100_000);
    assert!(client.call(msg_type::ECHO, &after).unwrap() == after);
    assert_eq!(counted.load(Ordering::Relaxed), 1);
    assert_eq!(client.stats().reconnects, 0);
}
