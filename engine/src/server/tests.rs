//! What can only be done to a server from within.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ipc::{Client, Error, IdleMode, Limits, Request, Responder, Server, Transport};
use crate::worker::Message;

const KEPT: u16 = 0x0100;

/// Two workers with three clients each, which all wait for an answer as the first panics.
#[test]
fn a_worker_that_panics_ends_the_server_and_nobody_waits_in_vain() {
    let instance = format!("failure{}", std::process::id());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .shm(&instance)
        .workers(2)
        .idle(IdleMode::Park)
        .limits(Limits {
            drain_ms: 200,
            ..Limits::default()
        })
        .handler(KEPT, move |_: Request<'_>, responder: Responder<'_>| {
            keep.lock().unwrap().push(responder.detach());
        })
        .start()
        .unwrap();
    let handle = server.handle();
    assert!(!handle.wait_for_failure(Duration::ZERO));
    let tcp = server.local_addr().unwrap().to_string();
    let shm = format!("shm:{instance}");
    let clients = [&tcp, &tcp, &shm, &shm, &shm, &shm].map(|to| {
        let builder = Client::builder().shm_upgrade(false);
        builder.connect(to).unwrap()
    });
    assert_eq!(clients[2].transport(), Transport::Shm);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let calls = clients.map(|client| scope.spawn(move || client.call(KEPT, b"")));
        while kept.lock().unwrap().len() < calls.len() {
            std::thread::sleep(Duration::from_millis(1));
        }
        handle.shared.inboxes[0].send(Message::Panic).unwrap();
        assert!(handle.wait_for_failure(Duration::from_secs(60)));
        // It stops by itself, without being asked.
        server.join();
        for call in calls {
            let answer = call.join().unwrap();
            assert!(
                matches!(answer, Err(Error::ConnectionLost { .. })),
                "{answer:?}"
            );
        }
    });
    // Long before the calls' timeout.
    assert!(start.elapsed() < Duration::from_secs(15));
    assert!(handle.wait_for_failure(Duration::ZERO));
}
