//! Answers without end.

use std::io::Write;
use std::time::{Duration, Instant};

use super::APP;
use super::peer::{Peer, Stream};
use crate::client::{Client, Error};
use crate::wire::Flags;

/// Answers the first request with parts without end, and takes no notice of the rest.
fn flood(mut stream: Stream, part: usize) {
    let first = stream.next().unwrap();
    let mut bytes = Vec::new();
    for _ in 0..(64 * 1024 / (part + 24)).max(1) {
        crate::wire::encode_to(
            &mut bytes,
            Flags::RESPONSE | Flags::STREAM,
            APP,
            first.id(),
            &vec![1; part],
        );
    }
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end && stream.write_all(&bytes).is_ok() {}
}

/// The client is slower than the parts come, so that there are always some.
#[test]
fn a_call_beside_a_stream_ends_in_time() {
    let peer = Peer::serve(|stream| flood(stream, 1));
    let client = Client::builder()
        .max_unread_bytes(128 << 20)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let parts = client.call_stream(APP, b"").unwrap();
    let begin = Instant::now();
    let error = client
        .call_within(APP, b"", Duration::from_millis(100))
        .unwrap_err();
    let took = begin.elapsed();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(parts);
    drop(client);
}
