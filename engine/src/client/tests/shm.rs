//! The client over shared memory, with the real server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::peer::Peer;
use crate::client::link::Link;
use crate::ipc::{
    Client, ConnectionPool, Error, ErrorCode, IdleMode, ProtocolVersion, Request, Responder,
    Server, ServerBuilder, Transport, msg_type,
};
use crate::sys::{affinity, memory};
use crate::wire::{Flags, Hello};

const STREAM: u16 = 0x0100;

/// A name that no other test has.
pub(super) fn instance() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Relaxed: only has to differ.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("client_test_{}_{count}", std::process::id())
}

pub(super) fn builder(instance: &str) -> ServerBuilder {
    Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .shm(instance)
        .handler(STREAM, |request, mut responder: Responder<'_>| {
            for _ in 0..100 {
                responder.stream_part(request.payload());
            }
            responder.reply(b"end");
        })
}

pub(super) fn address(server: &Server) -> String {
    server.local_addr().unwrap().to_string()
}

#[test]
fn calls_of_all_lengths_in_all_waiting_modes() {
    let instance = instance();
    let server = builder(&instance).start().unwrap();
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let client = Client::builder()
            .idle(idle)
            .timeout(Duration::from_secs(20))
            .connect(&format!("shm:{instance}"))
            .unwrap();
        assert_eq!(client.transport(), Transport::Shm);
        for length in [0, 1, 8, 100, 1_700, 4_096, 32_735, 32_736, 32_737, 300_000] {
            let payload: Vec<u8> = (0..length).map(|byte: u32| byte as u8).collect();
            assert_eq!(client.call(msg_type::ECHO, &payload).unwrap(), payload);
        }
        let longest = vec![7; 10 << 20];
        assert_eq!(client.call(msg_type::ECHO, &longest).unwrap(), longest);
        // Long enough for both sides to fall asleep.
        std::thread::sleep(Duration::from_millis(20));
        client.ping().unwrap();
        assert_eq!(client.stats().reconnects, 0);
    }
    assert!(server.stats().requests(Transport::Shm) >= 36);
}

/// Cuts the segment of a connection over shared memory short, between two pages: of one that is cut in two, the rest
/// is still there, as zeros.
fn cut_memory(client: &Client, pages: usize) {
    let bytes = (pages * memory::page_bytes()) as u64;
    match &client.inner.borrow().channel.as_ref().unwrap().link {
        Link::Shm(link) => link.cut_memory(bytes),
        Link::Tcp(_) => unreachable!("over shared memory"),
    }
}

/// Where a long message finds no memory, whichever side writes it, the client is told at once; it does not
/// try the same again.
#[test]
fn memory_that_is_missing() {
    const LONG_ANSWER: u16 = 0x0101;
    const LONG: usize = 20_000;
    let server = builder(&instance())
        .handler(LONG_ANSWER, |_, responder: Responder<'_>| {
            responder.reply(&[7; LONG]);
        })
        .start()
        .unwrap();
    for (msg_type, request) in [(msg_type::ECHO, vec![7; LONG]), (LONG_ANSWER, vec![])] {
        let client = Client::builder()
            .timeout(Duration::from_secs(60))
            .connect(&address(&server))
            .unwrap();
        client.ping().unwrap();
        assert_eq!(client.transport(), Transport::Shm);
        // The page of small messages is left.
        cut_memory(&client, 1);
        let start = Instant::now();
        let lost = client.call(msg_type, &request);
        assert!(
            matches!(lost, Err(Error::ConnectionLost { .. })),
            "{lost:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(client.call(msg_type, &request).unwrap(), [7; LONG]);
        if !request.is_empty() {
            assert!(lost.unwrap_err().to_string().contains("no storage space"));
            assert_eq!(client.transport(), Transport::Tcp);
        }
        drop(client);
        let start = Instant::now();
        while server.stats().connections(Transport::Shm) > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "a place is lost");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// By `shm:` there is no way but the one on which memory is missing: the caller is told at once, and not after
/// trying again and again until the deadline. The next call gets a new connection.
#[test]
fn memory_that_is_missing_without_another_way() {
    let instance = instance();
    let _server = builder(&instance).start().unwrap();
    let client = Client::connect(&format!("shm:{instance}")).unwrap();
    // Longer than the ring, so that not all of it can be sent.
    let long = vec![7; 1_000_000];
    cut_memory(&client, 1);
    let lost = client.call(msg_type::ECHO, &long).unwrap_err();
    let not_sent = matches!(
        lost,
        Error::ConnectionLost {
            may_have_run: false,
            ..
        }
    );
    assert!(
        not_sent && lost.to_string().contains("no storage space"),
        "{lost}"
    );
    assert_eq!(client.call(msg_type::ECHO, &long).unwrap(), long);
    assert_eq!(client.stats().reconnects, 1);
}

/// Zeros in place of an answer, or of a part of it, are not what the server has sent, and it is not blamed for them.
#[test]
fn an_answer_whose_memory_is_lost() {
    const LONG: usize = 20_000;
    let instance = instance();
    let server = builder(&instance).start().unwrap();
    // As many as a segment has.
    for pages in 1..512 * 1024 / memory::page_bytes() {
        let client = Client::connect(&format!("shm:{instance}")).unwrap();
        let id = client.submit(msg_type::ECHO, &[7; LONG]).unwrap();
        client.flush().unwrap();
        while server.stats().latency(Transport::Shm).len() < pages as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        cut_memory(&client, pages);
        match client.wait(id) {
            Ok(answer) => assert_eq!(answer, [7; LONG]),
            Err(lost) => assert!(lost.to_string().contains("no storage space"), "{lost}"),
        }
    }
}

/// A client on the CPU of the server's worker knows that, and one elsewhere does not think so.
#[test]
fn a_client_knows_that_it_is_in_the_way() {
    let cpus = affinity::allowed_cpus();
    if cpus.len() < 2 {
        return eprintln!("left out: there is one CPU, and workers are not pinned");
    }
    let instance = instance();
    let _server = builder(&instance).pin(true).start().unwrap();
    let is_in_the_way = |cpu: usize| {
        let address = format!("shm:{instance}");
        let client = std::thread::spawn(move || {
            affinity::pin_current_thread(cpu).unwrap();
            let client = Client::connect(&address).unwrap();
            client.ping().unwrap();
            let inner = client.inner.borrow();
            inner.is_in_the_way()
        });
        client.join().unwrap()
    };
    let in_the_way = cpus.into_iter().filter(|&cpu| is_in_the_way(cpu));
    assert_eq!(in_the_way.count(), 1, "the worker is on one CPU");
}

/// Nor one that is on a CPU from which a worker that never sleeps was moved: it would sleep at every call.
#[test]
fn a_worker_that_does_not_sleep_says_where_it_was_moved() {
    const MOVE: u16 = 0x0100;
    let cpus = affinity::allowed_cpus();
    if cpus.len() < 2 {
        return eprintln!("left out: there is one CPU");
    }
    let instance = instance();
    let _server = builder(&instance)
        .idle(IdleMode::Spin)
        .pin(false)
        .handler(MOVE, |request: Request<'_>, responder: Responder<'_>| {
            let cpu = u16::from_le_bytes(request.payload().try_into().unwrap());
            affinity::pin_current_thread(cpu.into()).unwrap();
            responder.reply(b"");
        })
        .start()
        .unwrap();
    for cpu in [cpus[0], cpus[1], cpus[0]] {
        let address = format!("shm:{instance}");
        let client = std::thread::spawn(move || {
            let client = Client::connect(&address).unwrap();
            client.call(MOVE, &(cpu as u16).to_le_bytes()).unwrap();
            affinity::pin_current_thread(cpu).unwrap();
            // It tells when it has woken somebody, and after some rounds.
            let begin = Instant::now();
            while !client.inner.borrow().is_in_the_way() {
                assert!(begin.elapsed() < Duration::from_secs(10), "CPU {cpu}");
                client.ping().unwrap();
            }
        });
        client.join().unwrap();
    }
}

#[test]
fn many_in_flight_and_streams() {
    let instance = instance();
    let server = builder(&instance).start().unwrap();
    let client = Client::connect(&format!("shm:{instance}")).unwrap();
    for length in [8, 1_000, 20_000] {
        let ids: Vec<(u64, Vec<u8>)> = (0..1_000u32)
            .map(|number| {
                let payload = vec![number as u8; length];
                (client.submit(msg_type::ECHO, &payload).unwrap(), payload)
            })
            .collect();
        for (id, payload) in ids {
            assert_eq!(client.wait(id).unwrap(), payload);
        }
    }
    let mut parts = client.call_stream(STREAM, &[3; 5_000]).unwrap();
    for _ in 0..100 {
        assert_eq!(parts.next().unwrap().unwrap(), [3; 5_000]);
    }
    assert_eq!(parts.next().unwrap().unwrap(), b"end");
    assert!(parts.next().is_none());
    let error = client.call(0x0999, b"").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownType));
    drop(server);
}

/// An answer that goes straight to the caller meets all kinds of others that must not.
#[test]
fn what_is_no_plain_answer_goes_the_general_way() {
    let instance = instance();
    let _server = builder(&instance)
        .handler(0x0101, |_, responder: Responder<'_>| {
            responder.error(ErrorCode::HandlerFailed, "as asked");
        })
        .start()
        .unwrap();
    let client = Client::builder()
        .record_round_trips(true)
        .connect(&format!("shm:{instance}"))
        .unwrap();
    let mut answer = b"old".to_vec();
    let joined = [[5; 10].repeat(100), b"end".to_vec()].concat();
    for number in 0..100u8 {
        let payload = [number; 64];
        client
            .call_into(msg_type::ECHO, &payload, &mut answer)
            .unwrap();
        assert_eq!(answer, payload);
        client.call_into(STREAM, &[5; 10], &mut answer).unwrap();
        assert_eq!(answer, joined);
        let error = client.call_into(0x0101, b"", &mut answer).unwrap_err();
        assert!(matches!(error, Error::Remote { message, .. } if message == "as asked"));
        assert!(answer.is_empty());
        // The only one that is known to be in flight, behind the answer to one that was forgotten.
        let forgotten = client.submit(msg_type::ECHO, b"forgotten").unwrap();
        client.flush().unwrap();
        client.inner.borrow_mut().forget(forgotten);
        assert_eq!(client.call(msg_type::ECHO, b"wanted").unwrap(), b"wanted");
        // Of two in flight, the second first.
        let ids = [b"one", b"two"].map(|it| client.submit(msg_type::ECHO, it).unwrap());
        assert_eq!(client.wait(ids[1]).unwrap(), b"two");
        assert_eq!(client.wait(ids[0]).unwrap(), b"one");
    }
    assert_eq!(client.in_flight(), 0);
    assert_eq!(client.stats().received, 600);
    assert_eq!(client.round_trips().unwrap().len(), client.stats().received);
}

#[test]
fn a_tcp_connection_on_this_machine_becomes_a_shared_memory_one() {
    let instance = instance();
    let server = builder(&instance).start().unwrap();
    let upgraded = Client::connect(&address(&server)).unwrap();
    assert_eq!(upgraded.transport(), Transport::Shm);
    assert_eq!(upgraded.call(msg_type::ECHO, b"shm").unwrap(), b"shm");
    let max = upgraded.peer_limits().max_message_bytes;
    assert_eq!(max, Some(10 << 20));
    let plain = Client::builder()
        .shm_upgrade(false)
        .connect(&address(&server))
        .unwrap();
    assert_eq!(plain.transport(), Transport::Tcp);
    assert_eq!(plain.call(msg_type::ECHO, b"tcp").unwrap(), b"tcp");
    let stats = server.stats();
    assert_eq!(stats.requests(Transport::Shm), 1);
    // One of them was the handshake.
    assert_eq!(stats.requests(Transport::Tcp), 2);
    drop(upgraded);
    let start = Instant::now();
    while server.stats().connections(Transport::Shm) > 0 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

#[test]
fn where_there_is_no_shared_memory_it_stays_tcp() {
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .start()
        .unwrap();
    let client = Client::connect(&address(&server)).unwrap();
    assert_eq!(client.transport(), Transport::Tcp);
    assert_eq!(client.call(msg_type::ECHO, b"tcp").unwrap(), b"tcp");
    // Offers of what is not there, is another server's, or has no business to be opened.
    let instance = instance();
    let other = builder(&instance).start().unwrap();
    let others = format!("lapce_ipc_v2_{instance}_control");
    for segment in [
        "lapce_ipc_v2_not_there_control",
        &others,
        "../../etc/hostname",
        "",
    ] {
        let offer = Hello {
            shm_segment: Some(segment),
            host_id: Some(&[0; 24]),
            ..Hello::default()
        };
        let mut ack = Vec::new();
        offer.encode(&mut ack);
        let peer = Peer::serve(move |mut stream| {
            let hello = stream.next().unwrap();
            let ack_type = msg_type::HANDSHAKE_ACK;
            stream.write_frame(Flags::RESPONSE, ack_type, hello.id(), &ack);
            while let Some(frame) = stream.next() {
                stream.answer(&frame);
            }
        });
        let client = Client::connect(peer.address()).unwrap();
        assert_eq!(client.transport(), Transport::Tcp, "{segment}");
        assert_eq!(client.call(STREAM, b"x").unwrap(), b"x");
    }
    assert_eq!(other.stats().connections_total(Transport::Shm), 0);
}

#[test]
fn servers_that_do_not_know_the_question_are_talked_to_all_the_same() {
    // Answers with an error, hangs up, or says nothing.
    let error = Peer::serve(|mut stream| {
        let hello = stream.next().unwrap();
        let code = ErrorCode::UnknownType;
        stream.write_error(Flags::RESPONSE, hello.id(), code, "nobody serves it");
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    let hangs_up = Peer::serve_numbered(|number, mut stream| {
        while let Some(frame) = stream.next() {
            if number == 0 {
                return;
            }
            stream.answer(&frame);
        }
    });
    let silent = Peer::serve(|mut stream| {
        stream.next().unwrap();
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    for peer in [&error, &hangs_up, &silent] {
        let client = Client::connect(peer.address()).unwrap();
        assert_eq!(client.transport(), Transport::Tcp);
        assert_eq!(client.call(STREAM, b"x").unwrap(), b"x");
    }
}

#[test]
fn the_token_is_asked_for_on_shared_memory_too() {
    let instance = instance();
    let server = builder(&instance).auth_token("secret").start().unwrap();
    let shm = format!("shm:{instance}");
    for address in [&address(&server), &shm] {
        let client = Client::builder()
            .auth_token("secret")
            .connect(address)
            .unwrap();
        assert_eq!(client.transport(), Transport::Shm);
        client.call(msg_type::ECHO, b"x").unwrap();
        let error = Client::builder()
            .auth_token("wrong")
            .connect(address)
            .unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Unauthorized), "{error}");
    }
    let error = Client::connect(&shm)
        .unwrap()
        .call(msg_type::ECHO, b"")
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthorized));
}

#[test]
fn no_server_is_said_in_the_guides_words() {
    let instance = instance();
    let error = Client::connect(&format!("shm:{instance}")).unwrap_err();
    let text = error.to_string();
    let begin = format!("Failed to open shared memory: /dev/shm/lapce_ipc_v2_{instance}_control\n");
    assert!(text.starts_with(&begin), "{text}");
    assert!(matches!(error, Error::SharedMemory(_)) && error.is_safe_to_repeat());
    let error = Client::builder()
        .protocol_version(ProtocolVersion::V1)
        .connect("shm:")
        .unwrap_err();
    assert!(matches!(error, Error::InvalidRequest(_)));
}

#[test]
fn a_server_that_ends_is_noticed_and_found_again() {
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let instance = instance();
        let shm = format!("shm:{instance}");
        let server = builder(&instance).start().unwrap();
        let client = Client::builder().idle(idle).connect(&shm).unwrap();
        client.ping().unwrap();
        server.stop();
        assert!(!client.is_connected());
        let again = {
            let instance = instance.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                builder(&instance).start().unwrap()
            })
        };
        std::thread::sleep(Duration::from_millis(10));
        client.ping().unwrap();
        assert_eq!(client.stats().reconnects, 1);
        drop(again.join().unwrap());
    }
}

#[test]
fn a_server_that_ends_while_it_is_waited_for() {
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let instance = instance();
        let limits = crate::ipc::Limits {
            drain_ms: 10,
            ..Default::default()
        };
        // Never answers.
        let server = builder(&instance)
            .limits(limits)
            .handler(0x0200, |_, responder: Responder<'_>| {
                std::mem::forget(responder.detach())
            })
            .start()
            .unwrap();
        let client = Client::builder()
            .idle(idle)
            .connect(&format!("shm:{instance}"))
            .unwrap();
        let id = client.submit(0x0200, b"").unwrap();
        client.flush().unwrap();
        let stop = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            server.stop();
        });
        let error = client.wait(id).unwrap_err();
        assert!(
            error.is_connection_lost() || error.code() == Some(ErrorCode::ShuttingDown),
            "{error}"
        );
        stop.join().unwrap();
    }
}

#[test]
fn a_pool_over_shared_memory() {
    let instance = instance();
    let server = builder(&instance).start().unwrap();
    for endpoint in [format!("shm:{instance}"), address(&server)] {
        let pool = ConnectionPool::builder()
            .endpoint(endpoint)
            .max_connections(4)
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for call in 0..100 {
                        let connection = pool.get().unwrap();
                        assert_eq!(connection.transport(), Transport::Shm);
                        let payload = [thread, call];
                        let answer = connection.call(msg_type::ECHO, &payload).unwrap();
                        assert_eq!(answer, payload);
                    }
                });
            }
        });
        assert!(pool.stats().created <= 4);
    }
}
