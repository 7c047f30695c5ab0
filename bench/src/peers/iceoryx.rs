//! iceoryx2 over shared memory, both sides polling: request and response, and a pair of
//! publish-subscribe services, which is the faster of the two.

use std::time::{Duration, Instant};

use iceoryx2::node::Node;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use lapce_ai::ipc::monotonic_ns;

use super::round_trips::RoundTrips;
use super::scratch::Scratch;
use super::tcp;
use super::window::{Clock, WINDOW, Window};
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::payloads::stamp;
use crate::row::Row;

type Message = [u8; 64];
type Out = Publisher<ipc::Service, Message, ()>;
type In = Subscriber<ipc::Service, Message, ()>;

const WARM_UP: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(5);

/// A node whose files all begin with this name, so that nothing of a killed server stays.
fn node(name: &str) -> Result<Node<ipc::Service>, Failure> {
    set_log_level(LogLevel::Error); // it has no configuration file, and needs none
    let mut config = Config::default();
    config.global.prefix = FileName::new(format!("{name}_").as_bytes())?;
    let root = std::env::temp_dir().join(name);
    let root = Path::new(root.as_os_str().as_encoded_bytes())?;
    config.global.set_root_path(&root);
    Ok(NodeBuilder::new()
        .config(&config)
        .create::<ipc::Service>()?)
}

/// What goes one way, and what comes the other.
fn ports(node: &Node<ipc::Service>, to: &str, from: &str) -> Result<(Out, In), Failure> {
    let service = |name: &str| -> Result<_, Failure> {
        let builder = node.service_builder(&name.try_into()?);
        // A whole window has room, and nothing is ever overwritten.
        Ok(builder
            .publish_subscribe::<Message>()
            .subscriber_max_buffer_size(WINDOW)
            .enable_safe_overflow(false)
            .open_or_create()?)
    };
    let publisher = service(to)?.publisher_builder().create()?;
    let subscriber = service(from)?.subscriber_builder().create()?;
    Ok((publisher, subscriber))
}

pub fn serve(name: &str) -> Result<(), Failure> {
    let node = node(name)?;
    let service = node
        .service_builder(&"calls".try_into()?)
        .request_response::<Message, Message>()
        .open_or_create()?;
    let server = service.server_builder().create()?;
    println!("ready {name}");
    loop {
        if let Some(request) = server.receive()? {
            let response = request.loan_uninit()?;
            response.write_payload(*request).send()?;
        }
        std::hint::spin_loop();
    }
}

pub fn serve_topics(name: &str) -> Result<(), Failure> {
    let node = node(name)?;
    let (publisher, subscriber) = ports(&node, "answers", "requests")?;
    println!("ready {name}");
    loop {
        if let Some(request) = subscriber.receive()? {
            let sample = publisher.loan_uninit()?;
            sample.write_payload(*request).send()?;
        }
        std::hint::spin_loop();
    }
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    let scratch = Scratch::new("iceoryx2");
    let name = scratch.name();
    let start = |kind| {
        scratch.clear();
        Served::start(&["--kind", kind, "--cpu", &cpu, "--name", name])
    };
    context.measure(tcp::row("iceoryx2 request-response", false), |row| {
        let _served = start("iceoryx2")?;
        let node = node(name)?;
        let service = node
            .service_builder(&"calls".try_into()?)
            .request_response::<Message, Message>()
            .open_or_create()?;
        let client = service.client_builder().create()?;
        calls(row, duration, |sent| {
            let pending = client.loan_uninit()?.write_payload(*sent).send()?;
            until_some(|| Ok(pending.receive()?.map(|response| *response)))
        })
    })?;
    for windowed in [false, true] {
        context.measure(tcp::row("iceoryx2 publish-subscribe", windowed), |row| {
            let _served = start("iceoryx2-topics")?;
            let node = node(name)?;
            let (publisher, subscriber) = ports(&node, "requests", "answers")?;
            let send = |message: &Message| -> Result<(), Failure> {
                publisher.loan_uninit()?.write_payload(*message).send()?;
                Ok(())
            };
            let receive = || Ok(subscriber.receive()?.map(|sample| *sample));
            if windowed {
                return window(row, duration, send, receive);
            }
            calls(row, duration, |sent| {
                send(sent)?;
                until_some(receive)
            })
        })?;
    }
    Ok(())
}

fn until_some(
    mut look: impl FnMut() -> Result<Option<Message>, Failure>,
) -> Result<Message, Failure> {
    let mut began = None;
    for looks in 1u64.. {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if looks.is_multiple_of(1 << 20) {
            let began = began.get_or_insert_with(Instant::now);
            if began.elapsed() > PATIENCE {
                break;
            }
        }
    }
    Err("no answer came".into())
}

fn calls(
    row: &mut Row,
    duration: Duration,
    mut call: impl FnMut(&Message) -> Result<Message, Failure>,
) -> Result<(), Failure> {
    let mut sent: Message = [5; 64];
    let mut trips = RoundTrips::new(WARM_UP, duration.as_nanos() as u64);
    for number in 0u64.. {
        stamp(&mut sent, number);
        let start = monotonic_ns();
        let got = call(&sent)?;
        let now = monotonic_ns();
        if got != sent {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    row.push_latencies(trips.into_histogram());
    Ok(())
}

fn window(
    row: &mut Row,
    duration: Duration,
    send: impl Fn(&Message) -> Result<(), Failure>,
    receive: impl Fn() -> Result<Option<Message>, Failure>,
) -> Result<(), Failure> {
    let clock = Clock::new(WARM_UP, duration.as_nanos() as u64);
    let mut window = Window::new(size_of::<Message>(), clock);
    loop {
        while let Some(request) = window.next_request() {
            send(request.try_into()?)?;
        }
        // At least one, and what came with it.
        let mut next = Some(until_some(&receive)?);
        while let Some(got) = next {
            window.take(&got);
            next = receive()?;
        }
        if let Some(rate) = window.rate()? {
            row.push("requests", "/s", rate);
            return Ok(());
        }
    }
}
