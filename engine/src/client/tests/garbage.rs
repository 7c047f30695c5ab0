//! Whatever a server sends, each request ends exactly once.

use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;

use super::peer::{Frame, Peer};
use crate::client::Client;
use crate::wire::{self, ErrorCode, Flags, msg_type};

const REQUESTS: u64 = 3;

/// Bytes that a server may send: frames of all kinds, whole and sealed, or anything.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![
        4 => Just(Flags::RESPONSE),
        2 => Just(Flags::RESPONSE | Flags::STREAM),
        1 => Just(Flags::RESPONSE | Flags::COMPRESSED),
        1 => Just(Flags::REQUEST),
        1 => Just(Flags::NONE),
    ];
    let types = prop_oneof![
        4 => Just(msg_type::ECHO),
        2 => Just(msg_type::ERROR),
        1 => 1..=u16::MAX,
    ];
    // Ids in flight, some that are not, and none.
    let ids = 0..REQUESTS + 2;
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let frame = (flags, types, ids, payload).prop_map(|(flags, msg_type, id, payload)| {
        let mut bytes = Vec::new();
        wire::encode_to(&mut bytes, flags, msg_type, id, &payload);
        bytes
    });
    prop_oneof![
        9 => frame,
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn each_request_ends_exactly_once(
        pieces in prop::collection::vec(piece(), 0..12),
        cut in 1..80usize,
    ) {
        let bytes = pieces.concat();
        let peer = Peer::serve(move |mut stream| {
            stream.take(REQUESTS as usize);
            for part in bytes.chunks(cut) {
                // The client may have had enough.
                let _ = stream.write_all(part);
            }
        });
        let client = Client::builder()
            .reconnect(false)
            .shm_upgrade(false)
            .timeout(Duration::from_secs(20))
            .connect(peer.address())
            .unwrap();
        for id in 1..=REQUESTS {
            prop_assert_eq!(client.submit(msg_type::ECHO, &[0; 8]).unwrap(), id);
        }
        client.flush().unwrap();
        let mut ended = [0; REQUESTS as usize];
        // Ends with the connection: then whatever is in flight fails.
        loop {
            match client.poll() {
                Ok(Some(answer)) => {
                    let index = answer.id as usize - 1;
                    prop_assert_eq!(ended[index], 0, "{:?}", answer);
                    ended[index] += usize::from(answer.last);
                    prop_assert!(answer.last || answer.result.is_ok());
                }
                Ok(None) if client.in_flight() == 0 => break,
                // An error is the connection's; what it did to requests comes after it.
                Ok(None) | Err(_) => std::thread::yield_now(),
            }
        }
        prop_assert_eq!(ended, [1; REQUESTS as usize]);
    }
}

/// Answers come many at a time and are checked several together: those before a damaged one count.
#[test]
fn answers_before_a_damaged_one_are_handed_out() {
    const ANSWERS: usize = 40;
    for bad in [0, 1, 3, 4, 15, 16, 17, 31, 32, ANSWERS - 1] {
        let peer = Peer::serve(move |mut stream| {
            let requests = stream.take(ANSWERS);
            let mut answers: Vec<_> = requests.iter().map(Frame::response).collect();
            *answers[bad].last_mut().unwrap() ^= 1;
            // The client may have had enough.
            let _ = stream.write_all(&answers.concat());
        });
        let client = Client::builder()
            .reconnect(false)
            .shm_upgrade(false)
            .connect(peer.address())
            .unwrap();
        let payload = |number: usize| vec![number as u8; 8 + number];
        let ids: Vec<u64> = (0..ANSWERS)
            .map(|number| client.submit(msg_type::ECHO, &payload(number)).unwrap())
            .collect();
        for (number, &id) in ids.iter().enumerate() {
            match client.wait(id) {
                Ok(answer) => assert!(number < bad && answer == payload(number), "{bad}"),
                // Whoever waits when it comes is told exactly.
                Err(error) if number == 0 => {
                    assert_eq!(error.code(), Some(ErrorCode::CrcMismatch), "{error}");
                }
                Err(error) => assert!(number >= bad && error.is_connection_lost(), "{error}"),
            }
        }
    }
}
