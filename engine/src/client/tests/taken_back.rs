//! What its caller is told was not sent, and may send again, is not sent later.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::APP;
use super::peer::{Peer, until_ended};
use crate::client::{Client, ClientBuilder, Error};
use crate::wire::{Flags, msg_type};

/// A client with request `before` in flight, which was queued but not sent, whose connection was reset
/// and whose server is gone; and where that was.
fn reset(builder: ClientBuilder) -> (Client, String, u64) {
    let mut peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        stream.answer(&frame);
        // What comes after it is unread, so this end resets the connection.
        std::thread::sleep(Duration::from_millis(100));
    });
    let address = peer.address().to_owned();
    let client = builder.shm_upgrade(false).connect(&address).unwrap();
    client.call(APP, b"x").unwrap();
    client.send(APP, b"unread").unwrap();
    let before = client.submit(APP, b"before").unwrap();
    peer.stop();
    until_ended(&client);
    (client, address, before)
}

/// What the server at this address, that is back, is sent until the client has called it.
fn received_by_successor(client: &Client, address: &str) -> Vec<Vec<u8>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = seen.clone();
    let peer = Peer::serve_at(address, move |_, mut stream| {
        while let Some(frame) = stream.next() {
            if frame.header.msg_type == APP {
                let start = frame.payload[..frame.payload.len().min(8)].to_vec();
                sees.lock().unwrap().push(start);
                if frame.header.flags.contains(Flags::REQUEST)
                    && !frame.header.flags.contains(Flags::STREAM)
                {
                    stream.answer(&frame);
                }
            }
            if frame.header.msg_type == msg_type::DISCONNECT {
                return;
            }
        }
    });
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match client.call(APP, b"marker") {
            Ok(_) => break,
            Err(error) if error.is_safe_to_repeat() && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    std::mem::forget(peer);
    seen.lock().unwrap().clone()
}

fn count(seen: &[Vec<u8>], what: &[u8]) -> usize {
    seen.iter().filter(|it| it.starts_with(what)).count()
}

fn long(start: &[u8]) -> Vec<u8> {
    let mut bytes = start.to_vec();
    bytes.resize(40_000, 7);
    bytes
}

/// Its sender was told that it may send it again, and the next server does not get it.
fn is_not_sent_later(client: &Client, address: &str, what: &[u8], error: &Error) {
    assert!(error.is_safe_to_repeat(), "{error:?}");
    let seen = received_by_successor(client, address);
    assert_eq!(count(&seen, what), 0, "{error:?}");
}

#[test]
fn submit_that_failed_safely_is_not_sent_later() {
    let (client, address, _) = reset(Client::builder());
    let error = client.submit(APP, &long(b"long")).unwrap_err();
    is_not_sent_later(&client, &address, b"long", &error);
}

#[test]
fn call_that_failed_safely_is_not_sent_later() {
    let (client, address, _) = reset(Client::builder().reconnect_timeout(Duration::ZERO));
    let error = client.call(APP, b"called").unwrap_err();
    is_not_sent_later(&client, &address, b"called", &error);
}

#[test]
fn stream_that_failed_safely_is_not_sent_later() {
    let (client, address, _) = reset(Client::builder().reconnect_timeout(Duration::ZERO));
    let error = client.call_stream(APP, b"called").map(drop).unwrap_err();
    is_not_sent_later(&client, &address, b"called", &error);
}

#[test]
fn one_way_that_failed_safely_is_not_sent_later() {
    let (client, address, _) = reset(Client::builder());
    let error = client.send(APP, b"one-way").unwrap_err();
    is_not_sent_later(&client, &address, b"one-way", &error);
}

#[test]
fn part_that_failed_safely_is_not_sent_twice() {
    let mut peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        stream.answer(&frame);
        std::thread::sleep(Duration::from_millis(100));
    });
    let address = peer.address().to_owned();
    let client = Client::builder()
        .shm_upgrade(false)
        .connect(&address)
        .unwrap();
    client.call(APP, b"x").unwrap();
    client.send(APP, b"unread").unwrap();
    let id = client.submit_with(Flags::STREAM, APP, b"first").unwrap();
    peer.stop();
    until_ended(&client);
    let error = client
        .submit_part(id, APP, &long(b"part"), true)
        .unwrap_err();
    assert!(error.is_safe_to_repeat(), "{error:?}");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = seen.clone();
    let peer = Peer::serve_at(&address, move |_, mut stream| {
        let mut first = None;
        while let Some(frame) = stream.next() {
            sees.lock().unwrap().push((
                frame.header.flags,
                frame.payload[..4.min(frame.payload.len())].to_vec(),
            ));
            if frame.header.flags == Flags::REQUEST {
                first.get_or_insert(frame);
            }
            if sees.lock().unwrap().len() >= 2 && first.is_some() {
                std::thread::sleep(Duration::from_millis(200));
                stream.answer(first.as_ref().unwrap());
                first = None;
            }
        }
    });
    loop {
        match client.submit_part(id, APP, &long(b"part"), true) {
            Ok(()) => break,
            Err(error) if error.is_safe_to_repeat() => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let answer = client.wait(id).unwrap();
    assert_eq!(answer.len(), 40_000);
    drop(client);
    std::mem::forget(peer);
    std::thread::sleep(Duration::from_millis(300));
    let seen = seen.lock().unwrap().clone();
    let parts = seen
        .iter()
        .filter(|(flags, payload)| flags.contains(Flags::REQUEST) && payload == b"part")
        .count();
    assert_eq!(parts, 1, "{seen:?}");
}

/// Whatever happens, requests are carried out as often as their callers are told.
mod restarts {
    use super::*;
    use crate::worker::{Request, Responder};
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    struct Rng(u64);
    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545F4914F6CDD1D) >> 11
        }
        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }
    }

    type Runs = Arc<Mutex<HashMap<u64, u32>>>;

    fn note(runs: &Runs, payload: &[u8]) {
        let key = u64::from_le_bytes(payload[..8].try_into().unwrap());
        *runs.lock().unwrap().entry(key).or_default() += 1;
    }

    fn server(shm: &str, runs: &Runs) -> Option<crate::server::Server> {
        let builder = crate::server::Server::builder().workers(1).shm(shm);
        let (a, b, c) = (runs.clone(), runs.clone(), runs.clone());
        let limits = crate::config::Limits {
            drain_ms: 0,
            ..crate::config::Limits::default()
        };
        builder
            .limits(limits)
            .handler(
                0x100,
                move |request: Request<'_>, responder: Responder<'_>| {
                    note(&a, request.payload());
                    responder.reply(request.payload());
                },
            )
            .handler(
                0x101,
                move |request: Request<'_>, responder: Responder<'_>| {
                    note(&b, request.payload());
                    let payload = request.payload().to_vec();
                    let deferred = responder.detach();
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_micros(u64::from(payload[0]) * 10));
                        let _ = deferred.reply(payload);
                    });
                },
            )
            .handler(
                0x102,
                move |request: Request<'_>, mut responder: Responder<'_>| {
                    note(&c, request.payload());
                    for chunk in request.payload().chunks(4000) {
                        responder.stream_part(chunk);
                    }
                    responder.reply(b"");
                },
            )
            .start()
            .ok()
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fate {
        Ran,
        Not,
        Unknown,
    }

    static KEY: AtomicU64 = AtomicU64::new(1);

    struct Driver {
        rng: Rng,
        fates: HashMap<u64, (Fate, String)>,
        pending: Vec<(u64, u64, usize)>,
        counts: [u64; 16],
    }

    impl Driver {
        fn payload(&mut self, sizes: u64) -> (u64, Vec<u8>) {
            let key = KEY.fetch_add(1, Ordering::Relaxed);
            let length = 8 + match self.rng.below(sizes) {
                0..=5 => self.rng.below(60),
                6 => self.rng.below(3000),
                7 => self.rng.below(70_000),
                8 => 30_000 + self.rng.below(8_000),
                _ => self.rng.below(400_000),
            } as usize;
            let mut payload = vec![key as u8; length];
            payload[..8].copy_from_slice(&key.to_le_bytes());
            (key, payload)
        }
        fn end(&mut self, key: u64, outcome: Result<&[u8], &Error>, length: usize, what: &str) {
            let fate = match outcome {
                Ok(answer) => {
                    assert_eq!(answer.len(), length, "{what}");
                    assert_eq!(answer[..8], key.to_le_bytes(), "{what}: another's answer");
                    assert!(answer[8..].iter().all(|&b| b == key as u8), "{what}");
                    self.counts[0] += 1;
                    (Fate::Ran, what.to_owned())
                }
                Err(error) if error.is_safe_to_repeat() => {
                    self.counts[1] += 1;
                    (Fate::Not, format!("{what} {error:?}"))
                }
                Err(error) => {
                    self.counts[2] += 1;
                    (Fate::Unknown, format!("{what} {error:?}"))
                }
            };
            assert!(
                self.fates.insert(key, fate).is_none(),
                "{what}: {key} ended twice"
            );
        }
        fn step(&mut self, client: &Client) {
            let ty = [0x100, 0x100, 0x101, 0x102][self.rng.below(4) as usize];
            match self.rng.below(15) {
                0..=3 => {
                    let (key, payload) = self.payload(8);
                    match client.submit(ty, &payload) {
                        Ok(id) => self.pending.push((id, key, payload.len())),
                        Err(error) => self.end(key, Err(&error), 0, "submit"),
                    }
                }
                4 => {
                    let (key, payload) = self.payload(11);
                    match client.submit(ty, &payload) {
                        Ok(id) => self.pending.push((id, key, payload.len())),
                        Err(error) => self.end(key, Err(&error), 0, "submit long"),
                    }
                }
                5 | 6 if !self.pending.is_empty() => {
                    let at = self.rng.below(self.pending.len() as u64) as usize;
                    let (id, key, length) = self.pending.remove(at);
                    let outcome = client.wait(id);
                    self.end(key, outcome.as_deref(), length, "wait");
                }
                7 => {
                    let (key, payload) = self.payload(10);
                    let outcome = client.call(ty, &payload);
                    self.end(key, outcome.as_deref(), payload.len(), "call");
                }
                8 => {
                    let (key, payload) = self.payload(10);
                    let limit = Duration::from_micros(self.rng.below(3000));
                    let outcome = client.call_within(ty, &payload, limit);
                    self.end(key, outcome.as_deref(), payload.len(), "call_within");
                }
                9 => {
                    let (key, payload) = self.payload(10);
                    let what = match client.send(0x100, &payload) {
                        Ok(()) => (Fate::Unknown, "send".to_owned()),
                        Err(error) if error.is_safe_to_repeat() => {
                            (Fate::Not, format!("send {error:?}"))
                        }
                        Err(error) => (Fate::Unknown, format!("send {error:?}")),
                    };
                    self.fates.insert(key, what);
                }
                10 if !self.pending.is_empty() && self.rng.below(3) == 0 => {
                    let at = self.rng.below(self.pending.len() as u64) as usize;
                    let (id, key, _) = self.pending.remove(at);
                    client.cancel(id).unwrap();
                    self.fates.insert(key, (Fate::Unknown, "cancelled".into()));
                }
                11 => {
                    let (key, payload) = self.payload(10);
                    let mut got = Vec::new();
                    let leave = self.rng.below(4) == 0;
                    let mut outcome = Ok(());
                    match client.call_stream(0x102, &payload) {
                        Err(error) => outcome = Err(error),
                        Ok(parts) => {
                            for part in parts {
                                match part {
                                    Ok(part) => got.extend(part),
                                    Err(error) => outcome = Err(error),
                                }
                                if leave {
                                    break;
                                }
                            }
                        }
                    }
                    match outcome {
                        Ok(()) if leave => {
                            drop(self.fates.insert(key, (Fate::Unknown, "left".into())))
                        }
                        Ok(()) => self.end(key, Ok(&got), payload.len(), "stream"),
                        Err(error) => self.end(key, Err(&error), 0, "stream"),
                    }
                }
                12 => drop(client.flush()),
                13 => {
                    let (key, payload) = self.payload(10);
                    if let Err(error) = client.ping() {
                        let _ = error;
                    }
                    let _ = (key, payload);
                }
                _ => {
                    // One id may come in parts: only single ones are looked at whole.
                    while let Ok(Some(answer)) = client.poll() {
                        let at = self
                            .pending
                            .iter()
                            .position(|it| it.0 == answer.id)
                            .unwrap_or_else(|| panic!("nobody's answer {answer:?}"));
                        let (id, key, length) = self.pending.remove(at);
                        if !answer.last {
                            let mut whole = answer.result.unwrap();
                            match client.wait(id) {
                                Ok(rest) => {
                                    whole.extend(rest);
                                    self.end(key, Ok(&whole), length, "poll+wait")
                                }
                                Err(error) => self.end(key, Err(&error), length, "poll+wait"),
                            }
                        } else {
                            self.end(key, answer.result.as_deref(), length, "poll");
                        }
                    }
                }
            }
        }
    }

    fn drive(
        client: Client,
        seed: u64,
        time: Duration,
    ) -> (HashMap<u64, (Fate, String)>, [u64; 16]) {
        let mut driver = Driver {
            rng: Rng(seed),
            fates: HashMap::new(),
            pending: Vec::new(),
            counts: [0; 16],
        };
        let end = Instant::now() + time;
        let mut longest = Duration::ZERO;
        while Instant::now() < end {
            let begin = Instant::now();
            driver.step(&client);
            longest = longest.max(begin.elapsed());
        }
        eprintln!(
            "longest step {longest:?} in flight {} stats {:?}",
            client.in_flight(),
            client.stats()
        );
        for (_, key, _) in std::mem::take(&mut driver.pending) {
            driver.fates.insert(key, (Fate::Unknown, "left".into()));
        }
        (driver.fates, driver.counts)
    }

    fn judge(fates: &HashMap<u64, (Fate, String)>, runs: &Runs) -> usize {
        let runs = runs.lock().unwrap();
        let mut wrong = 0;
        for (key, (fate, what)) in fates {
            let ran = runs.get(key).copied().unwrap_or(0);
            let good = match fate {
                Fate::Ran => ran == 1,
                Fate::Not => ran == 0,
                Fate::Unknown => ran <= 1,
            };
            if !good {
                wrong += 1;
                if wrong < 10 {
                    eprintln!("WRONG key {key}: {fate:?} {what}, ran {ran} times");
                }
            }
        }
        wrong
    }

    #[test]
    fn shm_server_restarts() {
        let mut wrong = 0;
        for round in 0..3u64 {
            let runs = Runs::default();
            let instance = format!("rev6r{}_{round}", std::process::id());
            let first = server(&instance, &runs).unwrap();
            let client = Client::builder()
                .timeout(Duration::from_millis(400))
                .reconnect_timeout(if round == 1 {
                    Duration::ZERO
                } else {
                    Duration::MAX
                })
                .max_inflight(if round == 2 { 3 } else { 64 })
                .connect(&format!("shm:{instance}"))
                .unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let (stopping, again, name) = (stop.clone(), runs.clone(), instance.clone());
            let restarts = std::thread::spawn(move || {
                let mut rng = Rng(99 + round);
                let mut it = Some(first);
                while !stopping.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(rng.below(60)));
                    if let Some(server) = it.take() {
                        server.stop();
                    }
                    std::thread::sleep(Duration::from_millis(rng.below(15)));
                    it = server(&name, &again);
                }
            });
            let (fates, counts) = drive(client, 0x8765_4321 + round * 7919, Duration::from_secs(3));
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
            let _ = restarts.join();
            eprintln!(
                "round {round}: {} keys, ok/safe/unsafe {:?}",
                fates.len(),
                &counts[..3]
            );
            wrong += judge(&fates, &runs);
        }
        assert_eq!(wrong, 0);
    }
}
