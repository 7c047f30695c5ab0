//! What can only be done to a server from within.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ipc::{
    Client, Error, IdleMode, Limits, Request, Responder, Server, Transport, msg_type,
};
use crate::sys::socket;
use crate::wire::{self, Flags};
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

/// What a thread is about to send says nothing of the worker: the watchdog would end the process.
#[test]
fn a_worker_that_can_take_nothing_shows_that_it_runs() {
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .idle(IdleMode::Park)
        .start()
        .unwrap();
    let handle = server.handle();
    let inbox = &handle.shared.inboxes[0];
    inbox.fill_behind_one_not_written();
    let start = Instant::now();
    let wait = || {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    };
    while inbox.waiting() > 1 {
        wait();
    }
    assert!(handle.silent_workers().is_empty(), "it is only asked");
    while !handle.silent_workers().is_empty() {
        wait();
    }
}

/// The descriptor on which this process listens at a port.
fn listener_at(port: u16) -> i32 {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let at = format!("0100007F:{port:04X}");
    let inode = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 0A: listening.
        (fields[1] == at && fields[3] == "0A").then(|| fields[9].to_owned())
    });
    let socket = format!("socket:[{}]", inode.unwrap());
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_link(path).is_ok_and(|to| to.to_str() == Some(&socket)))
        .and_then(|path| path.file_name()?.to_str()?.parse().ok())
        .unwrap()
}

/// An accept that fails whenever it is tried does not keep the worker busy.
#[test]
fn an_accept_that_always_fails() {
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .idle(IdleMode::Park)
        .handler(KEPT, |_: Request<'_>, responder: Responder<'_>| {
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            responder.reply(thread.to_str().unwrap().as_bytes());
        })
        .start()
        .unwrap();
    let address = server.local_addr().unwrap();
    let client = Client::builder().shm_upgrade(false);
    let client = client.connect(&address.to_string()).unwrap();
    let worker = String::from_utf8(client.call(KEPT, b"").unwrap()).unwrap();
    let cpu_ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let times = fields.split_whitespace().skip(11).take(2);
        times.map(|field| field.parse::<u64>().unwrap()).sum()
    };
    // EINVAL from now on.
    socket::shutdown_both(listener_at(address.port())).unwrap();
    let before = cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    // Of a hundred; it tries some ten times.
    assert!(cpu_ticks() - before < 15);
    assert_eq!(client.call(msg_type::ECHO, b"x").unwrap(), b"x");
}

/// Of a few of them the receive, armed at that moment, reports the bytes and not the reset (seen on Linux 6.18).
/// Nothing is sent to them either, which would fail.
#[test]
fn peers_that_send_a_one_way_message_and_reset() {
    const ROUNDS: u64 = 10;
    /// Fewer than max_connections, should none be noticed before the last.
    const PEERS: u64 = 800;
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .pin(false)
        .start()
        .unwrap();
    let address = server.local_addr().unwrap();
    let mut message = Vec::new();
    wire::encode_to(
        &mut message,
        Flags::default(),
        msg_type::ECHO,
        0,
        &[0; 4000],
    );
    for round in 1..=ROUNDS {
        for _ in 0..PEERS {
            let mut peer = TcpStream::connect(address).unwrap();
            socket::reset_when_closed(peer.as_raw_fd()).unwrap();
            peer.write_all(&message).unwrap();
        }
        let start = Instant::now();
        let all_came = || server.stats().connections_total(Transport::Tcp) == round * PEERS;
        while !all_came() || server.stats().connections(Transport::Tcp) > 0 {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
