//! Many requests in flight, over TCP and shared memory: every answer is there once, with the right
//! bytes, in order, and neither side waits for the other for ever.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use lapce_ai::ipc::{Client, Deferred, IdleMode, Request, Responder, Server, Transport};
use support::*;

const LATER: u16 = 0x0100;

/// A server with one thread that answers what the handler hands over, and a name for its segments.
fn start(idle: IdleMode) -> (Server, String) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let instance = format!("test_pipelining_{}_{count}", std::process::id());
    let (sender, receiver) = mpsc::channel::<(Deferred, Vec<u8>)>();
    std::thread::spawn(move || {
        // Ends with the server, whose handler has the only sender.
        while let Ok((deferred, payload)) = receiver.recv() {
            // The client may be gone.
            let _ = deferred.reply(payload);
        }
    });
    let server = server()
        .idle(idle)
        .shm(instance.as_str())
        .handler(
            LATER,
            move |request: Request<'_>, responder: Responder<'_>| {
                let payload = request.payload().to_vec();
                sender.send((responder.detach(), payload)).unwrap();
            },
        )
        .start()
        .unwrap();
    (server, instance)
}

fn connect(server: &Server, transport: Transport, instance: &str, idle: IdleMode) -> Client {
    let name = match transport {
        Transport::Shm => format!("shm:{instance}"),
        _ => address(server).to_string(),
    };
    let client = Client::builder()
        .timeout(PATIENCE)
        .idle(idle)
        .shm_upgrade(false)
        .connect(&name)
        .unwrap();
    assert_eq!(client.transport(), transport);
    client
}

struct Load {
    messages: u64,
    window: u64,
    /// One in so many is answered by another thread; 0: none.
    later_every: u64,
    size: fn(u64) -> usize,
}

/// Ids count up by one, so the request's number is found from the answer's id.
fn run(client: &Client, load: &Load) {
    let payload = |n: u64| pattern(n, (load.size)(n));
    let later = |n: u64| load.later_every > 0 && n % load.later_every == 1;
    let mut number_of = std::collections::HashMap::new();
    let (mut submitted, mut done, mut last_inline) = (0, 0, None);
    while done < load.messages {
        while submitted < load.messages && submitted - done < load.window {
            let msg_type = if later(submitted) { LATER } else { ECHO };
            let id = client.submit(msg_type, &payload(submitted)).unwrap();
            assert!(number_of.insert(id, submitted).is_none(), "an id twice");
            submitted += 1;
        }
        done += client
            .wait_with(|answer| {
                let number = number_of.remove(&answer.id).expect("one answer each");
                assert!(answer.last);
                let got = answer.result.unwrap();
                assert!(got == payload(number), "the bytes of answer {number}");
                if !later(number) {
                    assert!(last_inline < Some(number), "{number} after {last_inline:?}");
                    last_inline = Some(number);
                }
            })
            .unwrap() as u64;
    }
    assert!(number_of.is_empty());
    assert_eq!(client.in_flight(), 0);
}

fn on_both(idle: IdleMode, load: &Load) {
    for transport in [Transport::Tcp, Transport::Shm] {
        let (server, instance) = start(idle);
        let client = connect(&server, transport, &instance, idle);
        run(&client, load);
        assert!(server.stats().requests(transport) >= load.messages);
    }
}

#[test]
fn three_hundred_thousand_small_ones() {
    let load = Load {
        messages: 300_000,
        window: 256,
        later_every: 0,
        size: |n| (n * 7 % 200) as usize,
    };
    on_both(IdleMode::Spin, &load);
}

#[test]
fn inline_and_deferred_mixed() {
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let load = Load {
            messages: 20_000,
            window: 256,
            later_every: 13,
            size: |n| (n * 31 % 3000) as usize,
        };
        on_both(idle, &load);
    }
}

#[test]
fn large_windows_of_large_messages_do_not_lock_up() {
    // Far more in flight than all buffers on the way hold.
    let load = Load {
        messages: 3000,
        window: 1000,
        later_every: 7,
        size: |n| 50_000 + (n * 997 % 30_000) as usize,
    };
    on_both(IdleMode::Adaptive, &load);
}

#[test]
fn the_largest_among_small_ones() {
    let load = Load {
        messages: 400,
        window: 64,
        later_every: 5,
        size: |n| match n % 40 {
            11 => 10 * 1024 * 1024,
            12 => 1024 * 1024 + 1,
            _ => (n * 101 % 5000) as usize,
        },
    };
    on_both(IdleMode::Adaptive, &load);
}

#[test]
fn everything_submitted_before_anything_is_collected() {
    for transport in [Transport::Tcp, Transport::Shm] {
        let (server, instance) = start(IdleMode::Adaptive);
        let client = connect(&server, transport, &instance, IdleMode::Adaptive);
        let ids: Vec<_> = (0..1000u64)
            .map(|n| client.submit(ECHO, &pattern(n, 20_000)).unwrap())
            .collect();
        client.flush().unwrap();
        for (n, id) in ids
            .into_iter()
            .enumerate()
            .rev()
            .map(|(n, id)| (n as u64, id))
        {
            assert!(client.wait(id).unwrap() == pattern(n, 20_000));
        }
    }
}

#[test]
fn several_clients_of_both_transports() {
    let (server, instance) = start(IdleMode::Adaptive);
    std::thread::scope(|scope| {
        for index in 0..6 {
            let (server, instance) = (&server, &instance);
            scope.spawn(move || {
                let transport = match index % 2 {
                    0 => Transport::Tcp,
                    _ => Transport::Shm,
                };
                let client = connect(server, transport, instance, IdleMode::Adaptive);
                let load = Load {
                    messages: 10_000,
                    window: 100,
                    later_every: 9,
                    size: |n| (n * 13 % 1500) as usize,
                };
                run(&client, &load);
            });
        }
    });
}
