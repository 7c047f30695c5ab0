//! A stop that is begun and not waited for.

mod support;

use std::path::Path;
use std::sync::mpsc::channel;

use lapce_ai::ipc::{Client, Error, Server};
use support::PATIENCE;

const HELD: u16 = 0x0100;

#[test]
fn nobody_new_gets_in_and_answers_in_flight_arrive() {
    let instance = format!("begin_stop_{}", std::process::id());
    let (hold, held) = channel();
    let server = Server::builder()
        .shm(&instance)
        .bind("127.0.0.1:0")
        .workers(1)
        .handler(HELD, move |_, responder| {
            hold.send(responder.detach()).unwrap();
        })
        .start()
        .unwrap();
    let address = format!("shm:{instance}");
    let client = Client::builder()
        .timeout(PATIENCE)
        .connect(&address)
        .unwrap();
    let id = client.submit(HELD, b"").unwrap();
    client.flush().unwrap();
    let held = held.recv_timeout(PATIENCE).unwrap();

    server.handle().begin_stop();
    let segment = server.shm_path().unwrap();
    assert!(!Path::new(&segment).exists());
    let refused = Client::connect(&address);
    assert!(
        matches!(refused, Err(Error::SharedMemory(_))),
        "{refused:?}"
    );
    // The next may begin before this one has ended, and keeps its own name.
    let next = Server::builder().shm(&instance).start().unwrap();
    held.reply(b"late").unwrap();
    assert_eq!(client.wait(id).unwrap(), b"late");
    server.join();
    assert!(Path::new(&segment).exists());
    next.stop();
    assert!(!Path::new(&segment).exists());
}
