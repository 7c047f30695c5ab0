//! A stop that is begun and not waited for.

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Error, ErrorCode, Limits, Request, Responder, Server, msg_type};
use support::*;

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

/// Nothing is in flight, so there is nothing to wait for: who goes on asking must not keep the server, and
/// all others, from the next start for `drain_ms`.
#[test]
fn a_client_that_goes_on_asking_does_not_put_the_end_off() {
    for over_shm in [false, true] {
        let instance = format!("steady_{}_{over_shm}", std::process::id());
        let server = Server::builder()
            .shm(&instance)
            .bind("127.0.0.1:0")
            .workers(1)
            .start()
            .unwrap();
        let address = match over_shm {
            true => format!("shm:{instance}"),
            false => server.local_addr().unwrap().to_string(),
        };
        let (served, asked) = channel();
        let asking = std::thread::spawn(move || {
            let builder = Client::builder().reconnect(false).shm_upgrade(false);
            let client = builder.timeout(PATIENCE).connect(&address).unwrap();
            let mut refused = 0;
            // Ends with the connection.
            loop {
                match client.call(0x00F0, b"x") {
                    Ok(_) => {
                        let _ = served.send(());
                    }
                    Err(error) if error.code() == Some(ErrorCode::ShuttingDown) => refused += 1,
                    Err(_) => return refused,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        asked.recv_timeout(PATIENCE).unwrap();
        let start = Instant::now();
        server.stop();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(asking.join().unwrap() > 0, "it is told for a while");
    }
}

/// The next server cannot begin before this one has ended.
#[test]
fn an_idle_client_does_not_put_the_end_off() {
    let quickest = (0..5).map(|_| {
        let server = echo_server();
        // It is answered, and then neither reads nor sends.
        let mut peer = Peer::connect(address(&server));
        peer.send(&echo(1, b"x"));
        peer.expect_echo(1, b"x");
        let begin = Instant::now();
        server.stop();
        begin.elapsed()
    });
    // A connection that might still be reset is given 200 ms.
    assert!(quickest.min().unwrap() < Duration::from_millis(150));
}

/// It sent them before, and they lie in its socket while it does not read: it must not be left to guess
/// whether they were carried out.
#[test]
fn requests_behind_answers_that_are_read_late_are_told_of_too() {
    let server = serving(|request: Request<'_>, responder: Responder<'_>| {
        responder.reply(&request.payload().repeat(8));
    });
    let mut peer = Peer::connect(address(&server));
    let mut writer = peer.try_clone();
    let writing = std::thread::spawn(move || {
        for id in 1..=500 {
            writer.send(&request(WORK, id, &[7; 16_384]));
        }
    });
    // Long enough for all buffers on the way to fill up.
    std::thread::sleep(Duration::from_millis(300));
    server.handle().begin_stop();
    std::thread::sleep(Duration::from_millis(300));
    let mut refused = 0;
    for id in 1..=500 {
        let got = peer.receive();
        assert_eq!(got.msg_id, id);
        match got.msg_type {
            WORK => assert_eq!(got.payload.len(), 8 * 16_384),
            _ => {
                assert_eq!(got.error().0, 13);
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "not all had been begun");
    peer.expect_end();
    writing.join().unwrap();
}

/// The same of one that has ended its side: all its requests are here already, and some wait.
#[test]
fn requests_of_a_client_that_has_ended_its_side_are_told_of_too() {
    let server = serving(|_: Request<'_>, responder: Responder<'_>| {
        responder.reply(&[7; 1 << 20]);
    });
    let mut peer = Peer::connect(address(&server));
    let requests: Vec<u8> = (1..=50).flat_map(|id| request(WORK, id, b"")).collect();
    peer.send(&requests);
    peer.finish_sending();
    std::thread::sleep(Duration::from_millis(300));
    server.handle().begin_stop();
    // Longer than it takes to find out who is quiet, and than those who go on asking have.
    std::thread::sleep(Duration::from_millis(500));
    for id in 1..=50 {
        let got = peer.receive();
        assert_eq!(got.msg_id, id);
        assert!(got.msg_type == WORK || got.error().0 == 13, "{got:?}");
    }
    peer.expect_end();
}

/// As [`a_client_that_goes_on_asking_does_not_put_the_end_off`], of one that asks as fast as it can and reads all
/// that it is told: it always has requests that wait, and is never late.
#[test]
fn a_client_that_floods_does_not_put_the_end_off() {
    let server = server()
        .limits(Limits {
            drain_ms: 20_000,
            ..Limits::default()
        })
        .start()
        .unwrap();
    let peer = Peer::connect(address(&server));
    let (mut writer, mut reader) = (peer.stream.try_clone().unwrap(), peer.stream);
    let bytes = request(msg_type::ECHO, 1, b"x").repeat(1000);
    let writing = std::thread::spawn(move || while writer.write_all(&bytes).is_ok() {});
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while reader.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
    });
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    server.stop();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    writing.join().unwrap();
    reading.join().unwrap();
}
