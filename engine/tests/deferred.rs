//! Answers that come later: from other threads, from the handler itself, to nobody; and a server that
//! stops before they do.

mod support;

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use lapce_ai::ipc::{
    AnswerRef, Client, Deferred, ErrorCode, Gone, Limits, Request, Responder, Server, Transport,
};
use support::*;

/// A server whose requests end up in a channel, to be answered by the test.
fn deferring(limits: Limits) -> (Server, mpsc::Receiver<(u64, Deferred)>) {
    let (sender, receiver) = mpsc::channel();
    let server = server()
        .limits(limits)
        .handler(
            WORK,
            move |request: Request<'_>, responder: Responder<'_>| {
                // The test may have ended already.
                let _ = sender.send((request.msg_id(), responder.detach()));
            },
        )
        .start()
        .unwrap();
    (server, receiver)
}

fn next(requests: &mpsc::Receiver<(u64, Deferred)>) -> (u64, Deferred) {
    requests.recv_timeout(PATIENCE).expect("a request comes")
}

#[test]
fn deferred_answers_come_in_any_order_from_any_thread() {
    let (server, requests) = deferring(Limits::default());
    let client = client(&server);
    let ids: Vec<_> = (0..100u64)
        .map(|n| client.submit(WORK, &pattern(n, 10)).unwrap())
        .collect();
    client.flush().unwrap();
    let mut waiting: Vec<_> = (0..100).map(|_| next(&requests)).collect();
    waiting.reverse();
    let threads: Vec<_> = waiting
        .into_iter()
        .map(|(id, deferred)| {
            std::thread::spawn(move || {
                assert!(!deferred.is_gone());
                deferred.reply(pattern(id, 3000)).unwrap();
            })
        })
        .collect();
    for id in ids {
        assert!(client.wait(id).unwrap() == pattern(id, 3000));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// More than the worker's inbox holds, and more than a slow reader may have waiting: a handler that
/// answers what it has taken away itself would wait for its own thread.
#[test]
fn deferred_answers_from_the_handler_itself() {
    const REQUESTS: u64 = 2_000;
    // Answered at once, refused, in parts, dropped, lost in a panic: by their ids.
    let server = serving(|request, responder| {
        let number = request.msg_id();
        let mut deferred = responder.detach();
        let told = match number % 5 {
            0 => deferred.reply("done"),
            1 => deferred.error(ErrorCode::Overloaded, "busy"),
            2 => (0..3)
                .try_for_each(|part| deferred.stream_part(vec![part; 1_000]))
                .and_then(|()| deferred.reply("")),
            3 => Ok(()),
            _ => panic!("with the duty in hand"),
        };
        assert_eq!(told, Ok(()));
    });
    let client = client(&server);
    let (mut answers, mut parts) = ([0_u64; 5], 0);
    for _ in 0..REQUESTS / 500 {
        for _ in 0..500 {
            client.submit(WORK, b"").unwrap();
        }
        while client.in_flight() > 0 {
            let take = |answer: AnswerRef<'_>| match answer.last {
                true => answers[answer.id as usize % 5] += 1,
                false => parts += 1,
            };
            client.wait_with(take).unwrap();
        }
    }
    assert_eq!(answers, [REQUESTS / 5; 5]);
    assert_eq!(parts, 3 * REQUESTS / 5);
    // Megabytes in parts, within one call of the handler.
    let server = serving(|_, responder| {
        let mut deferred = responder.detach();
        for part in 0..30 {
            deferred.stream_part(vec![part; 100_000]).unwrap();
        }
        deferred.reply("").unwrap();
    });
    let client = self::client(&server);
    assert_eq!(client.call(WORK, b"").unwrap().len(), 3_000_000);
}

/// Two workers whose handlers answer each other's requests, more than either's inbox holds.
#[test]
fn workers_do_not_wait_for_each_other() {
    const REQUESTS: usize = 3_000;
    let waiting = Mutex::new(Vec::<Deferred>::new());
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .workers(2)
        .pin(false)
        .limits(Limits {
            max_inflight_per_connection: 2 * REQUESTS as u32,
            ..Limits::default()
        })
        .handler(WORK, move |_: Request<'_>, responder: Responder<'_>| {
            // Now and then a call answers what others have left, of whichever worker.
            let mut all = waiting.lock().unwrap();
            all.push(responder.detach());
            let taken = match all.len() >= 1_000 {
                true => std::mem::take(&mut *all),
                false => Vec::new(),
            };
            drop(all);
            for deferred in taken {
                deferred.reply("").unwrap();
            }
        })
        .start()
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let client = Client::builder()
                    .timeout(PATIENCE)
                    .max_inflight(REQUESTS)
                    .shm_upgrade(false)
                    .connect(&address(&server).to_string())
                    .unwrap();
                for _ in 0..REQUESTS {
                    client.submit(WORK, b"").unwrap();
                }
                while client.in_flight() > 0 {
                    client.wait_with(|_| ()).unwrap();
                }
            });
        }
    });
}

#[test]
fn an_answer_to_nobody_is_dropped() {
    let (server, requests) = deferring(Limits::default());
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b""));
    peer.send(&request(WORK, 2, b""));
    let (_, first) = next(&requests);
    let (_, second) = next(&requests);
    // Reset, not finished: the server cannot deliver anything any more.
    peer.send(&[0xFF; 100]);
    drop(peer);
    eventually("the connection is gone", || first.is_gone());
    assert_eq!(first.reply(b"late".to_vec()), Err(Gone));
    drop(second);
    let (_server, _) = deferring(Limits::default());
    Peer::connect(address(&server)).expect_alive();
}

#[test]
fn a_deferred_answer_outlives_the_server_without_harm() {
    let limits = Limits {
        drain_ms: 100,
        ..Limits::default()
    };
    let (server, requests) = deferring(limits);
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b""));
    let (_, deferred) = next(&requests);
    server.stop();
    assert!(deferred.is_gone());
    assert_eq!(deferred.reply(b"x".to_vec()), Err(Gone));
    peer.expect_gone();
}

#[test]
fn too_many_deferred_requests_are_refused_and_the_rest_served() {
    let limits = Limits {
        max_inflight_per_connection: 10,
        ..Limits::default()
    };
    let (server, requests) = deferring(limits);
    let mut peer = Peer::connect(address(&server));
    for id in 1..=13 {
        peer.send(&request(WORK, id, b""));
    }
    for id in 11..=13 {
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_id), (RESPONSE, id));
        assert_eq!(got.error().0, 8);
    }
    let mut other = Peer::connect(address(&server));
    other.expect_alive();
    for _ in 0..10 {
        let (id, deferred) = next(&requests);
        deferred.reply(b"done".to_vec()).unwrap();
        assert_eq!(peer.receive().msg_id, id);
    }
    peer.send(&request(WORK, 14, b""));
    next(&requests).1.reply(b"again".to_vec()).unwrap();
    assert_eq!(peer.receive().payload, b"again");
    assert_eq!(server.stats().errors(ErrorCode::Overloaded), 3);
}

/// One too many is only counted: told about the connection, it would fail the requests that run.
#[test]
fn a_one_way_message_too_many_ends_no_request() {
    let instance = format!("oneway{}", std::process::id());
    let (builder, waiting) = handing_over();
    let server = builder
        .shm(&instance)
        .limits(Limits {
            max_inflight_per_connection: 2,
            ..Limits::default()
        })
        .start()
        .unwrap();
    for address in [format!("shm:{instance}"), address(&server).to_string()] {
        let builder = Client::builder().timeout(PATIENCE).shm_upgrade(false);
        let client = builder.connect(&address).unwrap();
        let ids = [b"1", b"2"].map(|payload| client.submit(WORK, payload).unwrap());
        client.flush().unwrap();
        let running = [(); 2].map(|()| waiting.recv_timeout(PATIENCE).unwrap());
        client.send(WORK, b"one way").unwrap();
        let refused = client.call(WORK, b"3").unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::Overloaded));
        for deferred in running {
            deferred.reply("done").unwrap();
        }
        for id in ids {
            assert_eq!(client.wait(id).unwrap(), b"done");
        }
    }
}

#[test]
fn a_graceful_stop_answers_what_is_in_flight() {
    let (server, requests) = deferring(Limits::default());
    let address = address(&server);
    let mut peer = Peer::connect(address);
    peer.send(&request(WORK, 1, b""));
    let (_, deferred) = next(&requests);
    let handle = server.handle();
    let stopping = std::thread::spawn(move || server.stop());
    // New requests are refused by and by; the one in flight is not.
    let mut id = 1;
    loop {
        id += 1;
        peer.send(&echo(id, b"still?"));
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_id), (RESPONSE, id));
        if got.msg_type == ERROR {
            assert_eq!(got.error().0, 13);
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    eventually("nobody new is accepted", || {
        std::net::TcpStream::connect(address).is_err()
    });
    assert!(!stopping.is_finished());
    deferred.reply(b"in time".to_vec()).unwrap();
    assert_eq!(peer.receive().payload, b"in time");
    peer.expect_end();
    drop(peer);
    stopping.join().unwrap();
    assert_eq!(handle.stats().connections(Transport::Tcp), 0);
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let limits = Limits {
        drain_ms: 200,
        ..Limits::default()
    };
    let (server, requests) = deferring(limits);
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b""));
    let (_, _never_answered) = next(&requests);
    server.stop();
    peer.expect_gone();
}

/// Once a peer has ended its sending side nothing is received from it any more, and nothing sent to it before
/// the answer is there.
#[test]
fn a_peer_that_is_gone_after_its_goodbye_is_noticed() {
    let (server, requests) = deferring(Limits::default());
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b""));
    let (_, deferred) = next(&requests);
    peer.send(&echo(2, b"never read, so that closing resets"));
    peer.finish_sending();
    // Until the server has both.
    std::thread::sleep(Duration::from_millis(100));
    assert!(!deferred.is_gone());
    drop(peer);
    eventually("it is noticed", || deferred.is_gone());
    eventually("its place is free", || {
        server.stats().connections(Transport::Tcp) == 0
    });
}

const CANCEL: u16 = 0x0022;

/// Its connection would stay until who prepares it gives up, and count against max_connections.
#[test]
fn a_cancelled_answer_keeps_neither_its_connection_nor_a_stop() {
    let limits = Limits {
        // Longer than the test waits.
        drain_ms: 10 * PATIENCE.as_millis() as u64,
        ..Limits::default()
    };
    let (server, requests) = deferring(limits);
    let cancel = [request(WORK, 1, b""), frame(0, CANCEL, 1, b"")].concat();
    let mut leaves = Peer::connect(address(&server));
    leaves.send(&[&cancel[..], &frame(0, DISCONNECT, 0, b"")].concat());
    let (_, _for_nobody) = next(&requests);
    leaves.expect_end();
    drop(leaves);
    eventually("it is forgotten", || {
        server.stats().connections(Transport::Tcp) == 0
    });

    let mut stays = Peer::connect(address(&server));
    stays.send(&cancel);
    let (_, for_nobody_either) = next(&requests);
    eventually("it hears of it", || for_nobody_either.is_gone());
    let stopping = std::thread::spawn(move || server.stop());
    stays.expect_end();
    drop(stays);
    stopping.join().unwrap();
    assert_eq!(for_nobody_either.reply("too late"), Err(Gone));
}

/// Who prepares an answer that is cancelled learns of it, nobody else does, and the id may be used again.
#[test]
fn a_cancelled_request() {
    let limits = Limits {
        max_inflight_per_connection: 2,
        ..Limits::default()
    };
    let (server, requests) = deferring(limits);
    let mut peer = Peer::connect(address(&server));
    peer.send(&[request(WORK, 5, b""), request(WORK, 6, b"")].concat());
    let (_, mut stream) = next(&requests);
    let (_, other) = next(&requests);
    stream.stream_part(&b"some"[..]).unwrap();
    assert_eq!(peer.receive().payload, b"some");
    assert!(!stream.is_gone());
    // Of ids that nobody has asked with, nothing comes.
    for msg_id in [5, 0, 77] {
        peer.send(&frame(0, CANCEL, msg_id, b""));
    }
    eventually("it hears of it", || stream.is_gone());
    assert_eq!(stream.stream_part(&b"more"[..]), Err(Gone));
    assert!(!other.is_gone());
    assert_eq!(stream.reply(&b"the last"[..]), Err(Gone));
    other.reply(&b"wanted"[..]).unwrap();
    assert_eq!(peer.receive().payload, b"wanted");
    // Its place is free again, its id too.
    for msg_id in [5, 7] {
        peer.send(&request(WORK, msg_id, b""));
        let (_, again) = next(&requests);
        assert!(!again.is_gone());
        again.reply(&b"again"[..]).unwrap();
        let answer = peer.receive();
        assert_eq!(
            (answer.msg_id, &answer.payload[..]),
            (msg_id, &b"again"[..])
        );
    }
    // In a hurry, but not before what it cancels.
    let hurried = frame(PRIORITY, CANCEL, 9, b"");
    peer.send(&[request(WORK, 9, b""), hurried].concat());
    let (_, cancelled) = next(&requests);
    eventually("it hears of it", || cancelled.is_gone());
    drop(cancelled);
    // One that is dropped without an answer, cancelled meanwhile, is no failure.
    peer.send(&request(WORK, 8, b""));
    let (_, dropped) = next(&requests);
    peer.send(&frame(0, CANCEL, 8, b""));
    eventually("it hears of it", || dropped.is_gone());
    drop(dropped);
    peer.expect_alive();
    assert_eq!(server.stats().errors_total(), 0);
}

/// As inline: a one-way message is due no answer, and neither is a part of a stream.
#[test]
fn what_is_due_no_answer_may_be_taken_away_and_dropped() {
    let (sender, parts) = mpsc::channel::<(bool, Vec<u8>, Deferred)>();
    std::thread::spawn(move || {
        let mut gathered = Vec::new();
        for (more, payload, deferred) in parts {
            gathered.extend(payload);
            if !more {
                let _ = deferred.reply(std::mem::take(&mut gathered));
            }
        }
    });
    let server = serving(move |request, responder| {
        let more = request.is_stream_part() || !request.expects_answer();
        let payload = request.payload().to_vec();
        sender.send((more, payload, responder.detach())).unwrap();
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&frame(0, WORK, 0, b"zero "));
    peer.send(&frame(REQUEST | STREAM, WORK, 5, b"one "));
    peer.send(&frame(REQUEST | STREAM, WORK, 5, b"two "));
    peer.send(&request(WORK, 5, b"three"));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_type, got.msg_id), (RESPONSE, WORK, 5));
    assert_eq!(got.payload, b"zero one two three");
    assert_eq!(server.stats().errors_total(), 0);
}

/// An id is free again when its request was cancelled: nothing else tells the requester.
#[test]
fn an_id_used_again_after_a_cancel_is_answered() {
    let (server, requests) = deferring(Limits::default());
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 5, b"slow"));
    let (_, first) = next(&requests);
    peer.send(&frame(0, CANCEL, 5, b""));
    peer.expect_alive();
    peer.send(&request(WORK, 5, b"again"));
    let (_, second) = next(&requests);
    assert!(first.is_gone() && !second.is_gone());
    assert_eq!(first.reply("first"), Err(Gone));
    assert_eq!(second.reply("second"), Ok(()));
    assert_eq!(peer.receive().payload, b"second");
}

/// Answers made by other threads are bounded as those of a handler are: whoever has another waits until the
/// requester has read. They had all the room of the server, and others' messages waited for it.
#[test]
fn answers_that_nobody_reads_leave_room_for_others() {
    let (server, requests) = deferring(Limits::default());
    let mut peer = Peer::connect(address(&server));
    for id in 1..=200 {
        peer.send(&request(WORK, id, b""));
    }
    let answering = std::thread::spawn(move || {
        for _ in 0..200 {
            next(&requests).1.reply(vec![1; 1 << 20]).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(500));
    let client = Client::builder()
        .timeout(Duration::from_secs(10))
        .connect(&address(&server).to_string())
        .unwrap();
    let long = vec![2; 1 << 20];
    assert!(client.call(0x00F0, &long).unwrap() == long);
    for _ in 1..=200 {
        assert_eq!(peer.receive().payload.len(), 1 << 20);
    }
    answering.join().unwrap();
}

/// There is nobody who could read it, so nobody is waited for: it took 30 s, until the connection was closed.
#[test]
fn an_answer_that_goes_nowhere_waits_for_nobody() {
    let (builder, waiting) = handing_over();
    let server = builder
        .handler(WORK + 1, |_: Request<'_>, responder: Responder<'_>| {
            responder.reply(&vec![1; 9 << 20])
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    let unread = request(WORK + 1, 1, b"");
    peer.send(&[frame(0, WORK, 0, b""), unread].concat());
    let deferred = waiting.recv_timeout(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let start = std::time::Instant::now();
    let answering = std::thread::spawn(move || deferred.reply("nobody reads this"));
    eventually("it is answered", || answering.is_finished());
    assert_eq!(answering.join().unwrap(), Ok(()));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(peer.receive().payload.len(), 9 << 20);
}

/// One CANCEL names all that one id is used for: it must not be looked for each of them among all of them.
#[test]
fn a_cancel_of_many_takes_no_long_time() {
    const REQUESTS: usize = 20_000;
    let (server, requests) = deferring(Limits {
        max_inflight_per_connection: 1 + REQUESTS as u32,
        ..Limits::default()
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 5, b"").repeat(REQUESTS));
    peer.expect_alive();
    let start = std::time::Instant::now();
    peer.send(&frame(0, CANCEL, 5, b"").repeat(10));
    peer.expect_alive();
    let took = start.elapsed();
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert!(requests.iter().take(100).all(|(_, it)| it.is_gone()));
}

/// Deferred answers need a lock where several handlers use them: a worker does not wait within a handler for
/// another, whose handlers wait for that lock.
#[test]
fn workers_whose_handlers_share_a_lock_do_not_wait_for_each_other() {
    const PUBLISH: u16 = 0x0101;
    // In all more than an inbox takes, before its worker's handlers have had their turns.
    const SUBSCRIPTIONS: u64 = 400;
    const MESSAGES: u64 = 100;
    let subscribers = Kept::default();
    let server = keeping(&subscribers)
        .workers(2)
        .handler(PUBLISH, {
            let subscribers = subscribers.clone();
            move |request: Request<'_>, _: Responder<'_>| {
                for subscriber in subscribers.lock().unwrap().iter_mut() {
                    subscriber.stream_part(request.payload()).unwrap();
                }
            }
        })
        .start()
        .unwrap();
    // Connections are spread over the workers in turn.
    let mut peers: Vec<_> = (0..2).map(|_| Peer::connect(address(&server))).collect();
    for peer in &mut peers {
        for id in 1..=SUBSCRIPTIONS {
            peer.send(&request(WORK, id, b""));
        }
        peer.expect_alive();
    }
    for (from, peer) in peers.iter_mut().enumerate() {
        for number in 0..MESSAGES {
            peer.send(&frame(0, PUBLISH, 0, &[from as u8, number as u8]));
        }
    }
    std::thread::scope(|scope| {
        for peer in &mut peers {
            scope.spawn(move || {
                // Of each publisher, all messages come in order, for each subscription.
                let mut next = vec![[0u8; 2]; SUBSCRIPTIONS as usize + 1];
                for _ in 0..2 * MESSAGES * SUBSCRIPTIONS {
                    let got = peer.receive();
                    let [from, number] = got.payload[..] else {
                        panic!("{got:?}");
                    };
                    let next = &mut next[got.msg_id as usize][usize::from(from)];
                    assert_eq!(number, *next);
                    *next += 1;
                }
            });
        }
    });
    subscribers.lock().unwrap().clear();
}

/// Not even in a hurry does a request go before the CANCEL after which it has its id.
#[test]
fn an_id_used_again_at_once_after_a_cancel_is_answered() {
    let (server, requests) = deferring(Limits::default());
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 5, b"slow"));
    let (_, first) = next(&requests);
    let again = frame(REQUEST | PRIORITY, WORK, 5, b"again");
    peer.send(&[frame(0, CANCEL, 5, b""), again].concat());
    let (_, second) = next(&requests);
    peer.expect_alive();
    assert!(first.is_gone() && !second.is_gone());
    assert_eq!(second.reply("second"), Ok(()));
    assert_eq!(peer.receive().payload, b"second");
}
