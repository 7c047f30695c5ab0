//! Short and long answers of all kinds, mixed, over one ring: each arrives once, whole and in order, however the
//! client collects them.

mod support;

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use lapce_ai::ipc::{
    Client, Deferred, Error, ErrorCode, Flags, IdleMode, Limits, Request, Responder, Server,
};
use support::*;

/// How much fits a record of a ring, with the header, and a piece of a frame that is longer.
const RECORD_BYTES: usize = 32 * 1024 - 8;
const PIECE_BYTES: usize = 8 * 1024 - 8;
const MESSAGE_BYTES_MAX: usize = 10 << 20;
const REQUESTS: u64 = 150;

const REPLY: u8 = 0;
const STREAM_PARTS: u8 = 1;
const DEFERRED: u8 = 2;
const DEFERRED_STREAM: u8 = 3;
const ERROR_BEHIND_PART: u8 = 4;
const TOO_LARGE: u8 = 5;
const PANICS_AFTERWARDS: u8 = 6;
const REQUEST_AND_REST: u8 = 7;
const KINDS: u8 = 8;

impl Random {
    /// Some short, some about as long as one or several records or pieces.
    fn length(&mut self) -> usize {
        match self.below(16) {
            0..5 => self.below(200) as usize,
            5..7 => self.below(30_000) as usize,
            7..13 => {
                let records = 1 + [0, 0, 0, 1, 2, 6, 7, 8][self.below(8) as usize];
                let bytes = [RECORD_BYTES, PIECE_BYTES][self.below(2) as usize];
                records * bytes - 60 + self.below(70) as usize
            }
            13..15 => self.below(700_000) as usize,
            _ if self.below(20) == 0 => MESSAGE_BYTES_MAX - self.below(2) as usize,
            _ => 1 << 20,
        }
    }
}

/// What a request asks for: its kind, and the lengths of the answer's parts.
struct Wish {
    kind: u8,
    seed: u64,
    lengths: Vec<usize>,
}

impl Wish {
    fn random(random: &mut Random) -> Wish {
        let kind = match random.below(2) {
            0 => REPLY,
            _ => random.below(u64::from(KINDS)) as u8,
        };
        let parts = match kind {
            STREAM_PARTS | DEFERRED_STREAM | ERROR_BEHIND_PART => 1 + random.below(4),
            _ => 1,
        };
        let lengths = (0..parts).map(|_| random.length()).collect();
        let seed = random.below(1 << 40);
        Wish {
            kind,
            seed,
            lengths,
        }
    }

    fn bytes(&self, padding: usize) -> Vec<u8> {
        let mut bytes = vec![self.kind, self.lengths.len() as u8];
        bytes.extend(self.seed.to_le_bytes());
        for length in &self.lengths {
            bytes.extend((*length as u32).to_le_bytes());
        }
        bytes.resize(bytes.len() + padding, 7);
        bytes
    }

    fn of(bytes: &[u8]) -> Wish {
        let length = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
        let parts = usize::from(bytes[1]);
        Wish {
            kind: bytes[0],
            seed: u64::from_le_bytes(bytes[2..10].try_into().unwrap()),
            lengths: bytes[10..][..4 * parts].chunks(4).map(length).collect(),
        }
    }

    fn part(&self, number: usize) -> Vec<u8> {
        pattern(self.seed + number as u64, self.lengths[number])
    }

    fn last(&self) -> usize {
        self.lengths.len() - 1
    }
}

fn answer(
    request: Request<'_>,
    mut responder: Responder<'_>,
    to_thread: &mpsc::SyncSender<(Wish, Deferred)>,
) {
    let wish = Wish::of(request.payload());
    match wish.kind {
        REPLY => responder.reply(&wish.part(0)),
        STREAM_PARTS => {
            for number in 0..wish.last() {
                responder.stream_part(&wish.part(number));
            }
            responder.reply(&wish.part(wish.last()));
        }
        DEFERRED | DEFERRED_STREAM => to_thread.send((wish, responder.detach())).unwrap(),
        ERROR_BEHIND_PART => {
            for number in 0..=wish.last() {
                responder.stream_part(&wish.part(number));
            }
            responder.error(ErrorCode::HandlerFailed, "as wished");
        }
        TOO_LARGE => responder.reply(&vec![1; MESSAGE_BYTES_MAX + 1]),
        PANICS_AFTERWARDS => {
            responder.reply(&wish.part(0));
            panic!("as wished");
        }
        REQUEST_AND_REST => {
            responder.stream_part(&request.payload()[1..]);
            responder.reply(request.payload());
        }
        _ => unreachable!(),
    }
}

fn answer_later(asked: &mpsc::Receiver<(Wish, Deferred)>) {
    for (wish, mut to) in asked {
        for number in 0..wish.last() {
            if to.stream_part(wish.part(number)).is_err() {
                break;
            }
        }
        let _ = to.reply(wish.part(wish.last()));
    }
}

/// What has come of an answer.
struct Awaited {
    wish: Wish,
    request: Vec<u8>,
    parts: usize,
}

impl Awaited {
    /// Checks a part, or the error that ends the answer.
    fn check(&mut self, result: Result<&[u8], &Error>, last: bool) {
        let (kind, number) = (self.wish.kind, self.parts);
        self.parts += 1;
        let payload = match result {
            Ok(payload) => payload,
            Err(error) => {
                match kind {
                    TOO_LARGE => {
                        assert_eq!(error.code(), Some(ErrorCode::HandlerFailed), "{error}")
                    }
                    ERROR_BEHIND_PART => {
                        assert_eq!(error.code(), Some(ErrorCode::HandlerFailed), "{error}");
                        assert_eq!(number, self.wish.last() + 1);
                    }
                    _ => panic!("kind {kind}: {error}"),
                }
                return;
            }
        };
        match kind {
            REQUEST_AND_REST => {
                assert!(payload == &self.request[1 - number..], "part {number}");
                assert_eq!(last, number == 1);
            }
            _ => {
                assert!(
                    payload == self.wish.part(number),
                    "kind {kind}, part {number}"
                );
                let ends = number == self.wish.last() && kind != ERROR_BEHIND_PART;
                assert_eq!(last, ends, "kind {kind}, part {number}");
            }
        }
    }
}

/// What a client waits for, by the requests' ids.
type AllAwaited = HashMap<u64, Awaited>;

fn check(all: &mut AllAwaited, id: u64, last: bool, result: Result<&[u8], &Error>) {
    let one = all.get_mut(&id).expect("one that is awaited");
    one.check(result, last);
    if last {
        all.remove(&id);
    }
}

/// Takes what is there, or waits for something, or gives one up.
fn collect(client: &Client, random: &mut Random, all: &mut AllAwaited) {
    match random.below(16) {
        0 => {
            let id = *all.keys().min().unwrap();
            client.cancel(id).unwrap();
            all.remove(&id);
        }
        1..4 => {
            let answer = client.wait_any().unwrap();
            check(all, answer.id, answer.last, answer.result.as_deref());
        }
        4..8 => {
            client
                .poll_with(|it| check(all, it.id, it.last, it.result.as_deref()))
                .unwrap();
        }
        _ => {
            client
                .wait_with(|it| check(all, it.id, it.last, it.result.as_deref()))
                .unwrap();
        }
    }
}

/// A call beside what is in flight.
fn call(client: &Client, random: &mut Random, answer: &mut Vec<u8>) {
    let wish = Wish::random(random);
    let request = wish.bytes(random.below(50) as usize);
    let expected = match wish.kind {
        TOO_LARGE | ERROR_BEHIND_PART => None,
        REQUEST_AND_REST => Some([&request[1..], &request].concat()),
        _ => Some((0..=wish.last()).flat_map(|it| wish.part(it)).collect()),
    };
    match random.below(4) {
        0 => {
            let limit = Duration::from_micros(random.below(2000));
            match client.call_within(WORK, &request, limit) {
                Ok(answer) => assert!(Some(answer) == expected),
                Err(Error::Timeout { .. } | Error::NotSent { .. }) => {}
                Err(error) => assert!(expected.is_none(), "{error}"),
            }
        }
        1 => {
            let parts = client.call_stream(WORK, &request).unwrap();
            if random.below(4) == 0 {
                // The rest is not wanted.
                parts.take(1).for_each(drop);
                return;
            }
            match parts.collect::<Result<Vec<_>, _>>() {
                Ok(parts) => assert!(Some(parts.concat()) == expected),
                Err(error) => assert!(expected.is_none(), "{error}"),
            }
        }
        _ => match client.call_into(WORK, &request, answer) {
            Ok(()) => assert!(Some(answer.as_slice()) == expected.as_deref()),
            Err(error) => assert!(expected.is_none(), "{error}"),
        },
    }
}

fn run_client(address: &str, seed: u64) {
    let mut random = Random(seed << 32);
    let idle = [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park][random.below(3) as usize];
    let client = Client::builder()
        .idle(idle)
        .timeout(PATIENCE)
        .max_unread_bytes(1 << 30)
        .connect(address)
        .unwrap();
    let mut awaited = AllAwaited::new();
    let mut answer = Vec::new();
    let mut window = 1;
    for number in 0..REQUESTS {
        if number % 16 == 0 {
            window = [1, 1, 2, 4, 16, 40][random.below(6) as usize];
            if random.below(3) == 0 {
                std::thread::sleep(Duration::from_millis(random.below(5)));
            }
        }
        while awaited.len() >= window {
            collect(&client, &mut random, &mut awaited);
        }
        let wish = Wish::random(&mut random);
        let padding = match random.below(6) {
            0 => random.length().min(2 << 20),
            _ => random.below(50) as usize,
        };
        let request = wish.bytes(padding);
        let flags = match random.below(5) {
            0 => Flags::PRIORITY,
            _ => Flags::NONE,
        };
        let id = client.submit_with(flags, WORK, &request).unwrap();
        let one = Awaited {
            wish,
            request,
            parts: 0,
        };
        awaited.insert(id, one);
        match random.below(6) {
            0 | 1 => client.flush().unwrap(),
            2 => call(&client, &mut random, &mut answer),
            _ => {}
        }
    }
    while !awaited.is_empty() {
        collect(&client, &mut random, &mut awaited);
    }
    assert_eq!(client.stats().reconnects, 0);
}

fn start(workers: usize, instance: &str, idle: IdleMode) -> Server {
    let (to_thread, asked) = mpsc::sync_channel(10_000);
    std::thread::spawn(move || answer_later(&asked));
    server()
        .workers(workers)
        .idle(idle)
        .limits(Limits {
            max_message_bytes: MESSAGE_BYTES_MAX as u32,
            max_buffered_bytes: 1 << 30,
            ..Limits::default()
        })
        .shm(instance)
        .handler(
            WORK,
            move |request: Request<'_>, responder: Responder<'_>| {
                answer(request, responder, &to_thread);
            },
        )
        .start()
        .unwrap()
}

#[test]
fn each_arrives_once_whole_and_in_order() {
    for seed in 0..seeds(6) {
        let instance = format!("mixed{}_{seed}", std::process::id());
        let idle = [IdleMode::Adaptive, IdleMode::Park, IdleMode::Spin][seed as usize % 3];
        let _server = start(1 + seed as usize % 2, &instance, idle);
        let address = format!("shm:{instance}");
        std::thread::scope(|scope| {
            for client in 0..3 {
                let address = &address;
                scope.spawn(move || run_client(address, seed * 16 + client));
            }
        });
    }
}
