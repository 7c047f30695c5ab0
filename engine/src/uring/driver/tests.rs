//! Tests of the driver by itself.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::*;

struct Word(AtomicU32);

impl AsRef<AtomicU32> for Word {
    fn as_ref(&self) -> &AtomicU32 {
        &self.0
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

/// A worker that took a turn in vain for work did not sleep until something came.
#[test]
fn a_turn_in_vain_is_no_work() {
    let features = crate::uring::probe().unwrap();
    if !features.defer_taskrun || !features.multishot_receive {
        return;
    }
    let mut driver = Driver::new(features, Arc::new(Word(AtomicU32::new(0)))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let key = Key {
        index: 0,
        generation: 0,
    };
    driver.receive(key, stream.as_raw_fd());
    assert!(!driver.turn(), "armed, and nothing has come");
    peer.write_all(b"one").unwrap();
    until(|| driver.has_come());
    let received = driver.receive_now(stream.as_raw_fd()).unwrap().unwrap();
    assert_eq!(driver.bytes(&received), b"one");
    driver.recycle(received);
    assert!(driver.has_come());
    assert!(!driver.turn(), "it was received already");
    peer.write_all(b"two").unwrap();
    until(|| driver.turn());
    let mut events = Vec::new();
    driver.take_events(&mut events, usize::MAX);
    let [Event::Received(of, received)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((*of, driver.bytes(received)), (key, &b"two"[..]));
}
