//! Many connections: what each costs the server, and how one fares while the others work.

use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, IdleMode, Transport, monotonic_ns, msg_type};

use crate::context::{Context, Failure, is_shortage, wrong_answer};
use crate::payloads;
use crate::row::{Row, latencies};
use crate::tally::Tally;
use crate::{engine, host, sys};

const COUNTS: [usize; 5] = [1, 10, 100, 1000, 10_000];
const QUICK_COUNTS: [usize; 3] = [1, 100, 1000];
/// Shared memory is for the programs of one machine: fewer of them.
const SHM_COUNT_MAX: usize = 1000;
/// How many of the others have a request on its way when the probing one sends its own.
const LOADED_MAX: usize = 32;
const BYTES: usize = 64;
/// Clients attached, and how many of them are active.
const ATTACHED: usize = 1000;
const ACTIVE: usize = 100;
/// What p99 is promised to stay below.
const P99_NS_MAX: f64 = 10_000.0;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let counts = if context.quick {
        &QUICK_COUNTS[..]
    } else {
        &COUNTS
    };
    let duration = context.duration;
    let cpu = context.host.server_cpu;
    let runs = context.runs;
    for transport in engine::TRANSPORTS {
        let name = transport.name();
        for &count in counts {
            if count as u64 + 100 > sys::descriptors_max() {
                context.note(format!(
                    "connections: {count} need more open files: raise `ulimit -Hn`"
                ));
                continue;
            }
            if transport == Transport::Shm && count > SHM_COUNT_MAX {
                continue;
            }
            // Opening thousands takes seconds, and memory does not vary from run to run.
            context.runs = if count >= 1000 { 1 } else { runs };
            let row = Row::new("connections", name, count.to_string(), count as f64);
            let result = context.measure(row, |row| one(row, cpu, transport, count, duration));
            context.runs = runs;
            match result {
                Err(error) if is_shortage(&*error) => context.note(error.to_string()),
                // The other rows are measured all the same.
                Err(error) => context.verdict(
                    format!("{count} connections over {name} are all served"),
                    error.to_string(),
                    false,
                ),
                Ok(()) => {}
            }
        }
    }
    in_turn(context)
}

/// A thousand attached, of which a hundred call one after the other.
fn in_turn(context: &mut Context) -> Result<(), Failure> {
    let (cpu, duration) = (context.host.server_cpu, context.duration);
    if (ATTACHED + 100) as u64 > sys::descriptors_max() {
        context.note("connections: 1000 need more open files: raise `ulimit -Hn`");
        return Ok(());
    }
    let case = format!("{ATTACHED}, {ACTIVE} in turn");
    let row = Row::new("connections", "shm", case, ATTACHED as f64 + 0.5);
    context.measure(row, |row| {
        let served = engine::start(cpu, IdleMode::Spin)?;
        let mut clients = Vec::with_capacity(ATTACHED);
        for _ in 0..ATTACHED {
            let builder = engine::builder(IdleMode::Spin);
            clients.push(engine::connect(&served, Transport::Shm, builder)?);
        }
        let mut histogram = latencies();
        let mut answer = Vec::with_capacity(BYTES);
        let mut sent = payloads::payload(BYTES);
        let end = Instant::now() + duration;
        let mut tally = Tally::default();
        let mut number = 0;
        while Instant::now() < end {
            for client in &clients[..ACTIVE] {
                number += 1;
                payloads::stamp(&mut sent, number);
                tally.sent += 1;
                let start = monotonic_ns();
                client.call_into(msg_type::ECHO, &sent, &mut answer)?;
                // The first round is not measured: their pages were never touched.
                if number > ACTIVE as u64 {
                    histogram.record(monotonic_ns() - start)?;
                }
                if answer != sent {
                    return Err(wrong_answer().into());
                }
                tally.right += 1;
            }
        }
        row.push_latencies(histogram);
        Ok(())
    })?;
    let row = context.rows.last().ok_or("no row")?;
    let judged = row.judged("p99").ok_or("no figure")?;
    context.judge(
        format!("p99 below 10 µs with {ATTACHED} attached over shm, {ACTIVE} active in turn"),
        judged.us(),
        judged,
        None,
        judged.value < P99_NS_MAX,
    );
    Ok(())
}

fn one(
    row: &mut Row,
    cpu: usize,
    transport: Transport,
    count: usize,
    duration: Duration,
) -> Result<(), Failure> {
    let served = engine::start(cpu, IdleMode::Adaptive)?;
    std::thread::sleep(Duration::from_millis(20)); // it has given its start-up pages back by then
    let before = host::memory(served.pid());
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let client = engine::connect(&served, transport, engine::builder(IdleMode::Spin))?;
        call(&client)?;
        clients.push(client);
    }
    std::thread::sleep(Duration::from_millis(20));
    let after = host::memory(served.pid());
    // File pages are the program's own: they come once, with the first connection.
    let grown = after.anonymous + after.shared - before.anonymous - before.shared;
    let each = grown.max(0.0) * 1024.0 / count as f64;
    row.push("server memory each", "B", each);

    let (probe, others) = clients.split_last().ok_or("no connection")?;
    let mut histogram = latencies();
    let mut answer = Vec::with_capacity(BYTES);
    let mut sent = payloads::payload(BYTES);
    let end = Instant::now() + duration;
    let mut tally = Tally::default();
    let mut turn = 0;
    let mut number = 0;
    while Instant::now() < end {
        let loaded = others.len().min(LOADED_MAX);
        let busy: Vec<&Client> = (0..loaded)
            .map(|index| &others[(turn + index) % others.len()])
            .collect();
        turn += loaded;
        for client in &busy {
            tally.sent += 1;
            client.submit(msg_type::ECHO, &payloads::payload(BYTES))?;
            client.flush()?;
        }
        number += 1;
        payloads::stamp(&mut sent, number);
        tally.sent += 1;
        let start = monotonic_ns();
        probe.call_into(msg_type::ECHO, &sent, &mut answer)?;
        histogram.record(monotonic_ns() - start)?;
        if answer != sent {
            return Err(wrong_answer().into());
        }
        tally.right += 1;
        for client in &busy {
            if client.wait_any()?.result? != payloads::payload(BYTES) {
                return Err(wrong_answer().into());
            }
            tally.right += 1;
        }
    }
    row.push_latencies(histogram);
    Ok(())
}

fn call(client: &Client) -> Result<(), Failure> {
    let sent = payloads::payload(BYTES);
    if client.call(msg_type::ECHO, &sent)? != sent {
        return Err(wrong_answer().into());
    }
    Ok(())
}
