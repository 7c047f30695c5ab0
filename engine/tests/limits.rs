//! Going past the limits on connections: their number, their coming and going, and the process's
//! descriptors.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use lapce_ai::ipc::{Client, Error, ErrorCode, Limits, Server, ServerError, Transport};
use support::*;

fn limited(max_connections: u32) -> Limits {
    Limits {
        max_connections,
        ..Limits::default()
    }
}

/// The rest of a frame came in time, while the worker was busy: it is not too late when it is looked at.
#[test]
fn a_frame_completed_while_the_worker_was_busy() {
    let limits = Limits {
        frame_timeout_ms: 300,
        ..Limits::default()
    };
    let server = server()
        .limits(limits)
        .handler(
            0x0100,
            |_: lapce_ai::ipc::Request<'_>, responder: lapce_ai::ipc::Responder<'_>| {
                std::thread::sleep(Duration::from_millis(600));
                responder.reply(b"slow");
            },
        )
        .start()
        .unwrap();
    let mut cut = Peer::connect(address(&server));
    let mut slow = Peer::connect(address(&server));
    cut.expect_alive();
    slow.expect_alive();
    let whole = echo(7, b"cut in two");
    cut.send(&whole[..30]);
    std::thread::sleep(Duration::from_millis(50));
    slow.send(&request(0x0100, 1, b""));
    std::thread::sleep(Duration::from_millis(50));
    cut.send(&whole[30..]);
    cut.expect_echo(7, b"cut in two");
    assert_eq!(slow.receive().payload, b"slow");
}

/// All of a flood are told, though most are not waited for.
#[test]
fn a_flood_of_connections_over_the_limit() {
    const FLOOD: u64 = 300;
    let instance = format!("flood{}", std::process::id());
    let server = server().limits(limited(1)).shm(&instance).start().unwrap();
    let mut first = Peer::connect(address(&server));
    first.expect_alive();
    let mut flood: Vec<Peer> = (0..FLOOD)
        .map(|_| Peer::connect(address(&server)))
        .collect();
    for peer in &mut flood {
        let (code, text) = peer.receive().error();
        assert!(code == 8 && text.contains("max_connections"), "{text}");
        peer.expect_end();
    }
    let over_shm = Client::connect(&format!("shm:{instance}")).unwrap_err();
    assert_eq!(over_shm.code(), Some(ErrorCode::Overloaded));
    assert!(
        over_shm.to_string().contains("max_connections"),
        "{over_shm}"
    );
    assert_eq!(server.stats().errors(ErrorCode::Overloaded), FLOOD + 1);
    first.expect_alive();
    // They have taken no place from others.
    drop(first);
    eventually("the place is free", || {
        server.stats().connections(Transport::Tcp) == 0
    });
    Peer::connect(address(&server)).expect_alive();
}

#[test]
fn too_many_connections_are_told_so_and_closed() {
    let server = server().workers(2).limits(limited(5)).start().unwrap();
    let mut peers: Vec<_> = (0..5).map(|_| Peer::connect(address(&server))).collect();
    for peer in &mut peers {
        peer.expect_alive();
    }
    for _ in 0..20 {
        let mut refused = Peer::connect(address(&server));
        let got = refused.receive();
        assert_eq!((got.flags, got.msg_id), (0, 0));
        let (code, text) = got.error();
        assert_eq!(code, 8);
        assert!(
            text.contains('5') && text.contains("max_connections"),
            "{text}"
        );
        refused.expect_end();
    }
    for peer in &mut peers {
        peer.expect_alive();
    }
    assert_eq!(server.stats().errors(ErrorCode::Overloaded), 20);
    assert_eq!(server.stats().connections(Transport::Tcp), 5);
    // One goes, one may come.
    peers.pop();
    eventually("a place is free", || {
        server.stats().connections(Transport::Tcp) == 4
    });
    Peer::connect(address(&server)).expect_alive();
}

#[test]
fn a_client_over_the_limit_learns_why() {
    let server = server().limits(limited(1)).start().unwrap();
    let mut first = Peer::connect(address(&server));
    first.expect_alive();
    let client = Client::builder()
        .timeout(Duration::from_secs(5))
        .reconnect(false)
        .connect(&address(&server).to_string());
    let refused = client.and_then(|client| client.call(ECHO, b"x"));
    match refused {
        Err(Error::Remote { code, .. }) => assert_eq!(code, Some(ErrorCode::Overloaded)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn thousands_of_connections_opened_and_dropped() {
    let server = server().workers(2).start().unwrap();
    let mut witness = Peer::connect(address(&server));
    witness.expect_alive();
    let before = resident_bytes();
    for round in 0..2500u32 {
        let mut stream = TcpStream::connect(address(&server)).unwrap();
        // In every state: fresh, in the middle of a header or a frame, with an answer unread,
        // refused.
        let bytes = match round % 5 {
            0 => Vec::new(),
            1 => echo(1, b"x")[..10].to_vec(),
            2 => echo(1, &[1; 5000])[..3000].to_vec(),
            3 => echo(1, &[1; 5000]),
            _ => vec![0xEE; 50],
        };
        // The server may have closed a refused one already.
        let _ = stream.write_all(&bytes);
        drop(stream);
        if round % 100 == 0 {
            witness.expect_alive();
        }
    }
    eventually("all came, and all but the witness are gone", || {
        let stats = server.stats();
        stats.connections_total(Transport::Tcp) == 2501 && stats.connections(Transport::Tcp) == 1
    });
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "grew by {grown} bytes");
    witness.expect_alive();
}

#[test]
fn many_idle_connections_at_once() {
    let server = server().limits(limited(600)).start().unwrap();
    let mut peers: Vec<_> = (0..400).map(|_| Peer::connect(address(&server))).collect();
    for peer in &mut peers {
        peer.stream.write_all(&echo(1, b"all at once")).unwrap();
    }
    for peer in &mut peers {
        peer.expect_echo(1, b"all at once");
    }
    assert_eq!(server.stats().connections(Transport::Tcp), 400);
}

#[test]
fn settings_that_cannot_work_are_named() {
    let refuse = |limits: Limits| match server().limits(limits).start() {
        Err(ServerError::BadSetting(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(refuse(limited(0)).contains("max_connections"));
    let text = refuse(Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 1 << 20,
        ..Limits::default()
    });
    assert!(text.contains("max_buffered_bytes"), "{text}");
    let forever = Limits {
        drain_ms: u64::MAX,
        ..Limits::default()
    };
    let text = refuse(forever);
    assert!(
        text.contains("drain_ms") && text.contains("a day"),
        "{text}"
    );
    for (token, word) in [(vec![], "empty"), (vec![b'x'; 65_385], "65384")] {
        match server().auth_token(token).start() {
            Err(ServerError::BadSetting(text)) => assert!(text.contains(word), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        server().workers(17).start(),
        Err(ServerError::BadSetting(_))
    ));
    assert!(matches!(
        server().bind("127.0.0.1").start(),
        Err(ServerError::BadAddress { .. })
    ));
    let first = echo_server();
    let second = server().bind(address(&first).to_string()).start();
    match second {
        Err(error @ ServerError::Bind { .. }) => {
            assert!(error.to_string().contains("another port"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // Of no machine (RFC 5737). Only where addresses may be bound before they are there is it no error.
    if let Err(error) = server().bind("192.0.2.1:0").start() {
        assert!(
            error.to_string().contains("once the network is up"),
            "{error}"
        );
    }
}

const CHILD: &str = "LAPCE_IPC_TEST_FEW_DESCRIPTORS";

/// Runs the next test in a process of its own that may open few descriptors.
#[test]
fn without_descriptors_new_connections_wait() {
    let executable = std::env::current_exe().unwrap();
    let status = Command::new("sh")
        .args(["-c", "ulimit -n 60; exec \"$0\" \"$@\""])
        .arg(executable)
        .args(["--exact", "child_with_few_descriptors", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn child_with_few_descriptors() {
    if std::env::var_os(CHILD).is_none() {
        return; // only as the child of the test above
    }
    let server = echo_server();
    let connect = || TcpStream::connect(address(&server));
    let mut first = Peer::over(connect().unwrap());
    first.expect_alive();
    // Each takes two descriptors of this process, one at each end, if the server is fast enough to
    // get its own; the last ones are accepted by the system but not by the server.
    let mut streams = Vec::new();
    while let Ok(stream) = connect() {
        streams.push(stream);
        assert!(streams.len() < 60);
    }
    assert!(streams.len() > 10, "{}", streams.len());
    first.expect_alive();
    // As descriptors come back, those that waited are served.
    let last = streams.split_off(streams.len() - 3);
    drop(streams);
    for stream in last {
        Peer::over(stream).expect_alive();
    }
    first.expect_alive();
    Peer::over(connect().unwrap()).expect_alive();
}

#[test]
fn a_byte_now_and_then_does_not_keep_a_frame_open() {
    let limits = Limits {
        frame_timeout_ms: 300,
        ..Limits::default()
    };
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .limits(limits)
        .start()
        .unwrap();
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    // A good header of a long message, then a byte every 50 ms: never silent, never done.
    let header = [
        0x49, 0x41, 0x50, 0x4C, 2, 0x10, 0xF0, 0, 0x00, 0x10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,
    ];
    stream.write_all(&header).unwrap();
    let start = std::time::Instant::now();
    while server.stats().connections_total(Transport::Tcp) == 0
        || server.stats().errors(ErrorCode::Timeout) == 0
    {
        assert!(start.elapsed() < Duration::from_secs(20));
        let _ = stream.write_all(b"x");
        std::thread::sleep(Duration::from_millis(50));
    }
}
