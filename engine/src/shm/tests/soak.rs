//! Two processes that sleep for each message, both ways, with the kernel's futexes and io_uring.
//!
//! 20,000 sleeps of each side; `LAPCE_IPC_SOAK=1000000` makes it a million.
//!
//! A lost wake-up must not be hidden by a timer: the client sleeps with a limit of its own that is
//! far beyond what a wake-up takes, and the server counts the sleeps that a timer ended although
//! there was a request.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::ipc::{IdleMode, Server};
use crate::shm::{ClientEnd, join};
use crate::sys::futex::Waited;
use crate::wire::{Flags, HEADER_BYTES, Header, msg_type};
use crate::worker::park_counts;

/// Before what the server's process says.
const COUNTS: &str = "sleeps, late: ";
const INSTANCE: &str = "LAPCE_IPC_TEST_INSTANCE";
/// Nothing but a lost wake-up makes a client sleep for so long.
const LIMIT: Duration = Duration::from_secs(20);

/// A server in a process of its own, which ends when its standard input does.
struct Process {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Process {
    fn start(instance: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["shm::tests::soak::serve_until_told", "--exact"])
            .args(["--ignored", "--nocapture"])
            .env(INSTANCE, instance)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Process { child, said }
    }

    /// How often it has slept, and how often only a timer woke it though it had been rung for.
    fn counts(&mut self) -> (u64, u64) {
        self.child
            .stdin
            .as_ref()
            .unwrap()
            .write_all(b"?\n")
            .unwrap();
        // Ends with the answer, or with the process.
        loop {
            let mut line = String::new();
            assert!(self.said.read_line(&mut line).unwrap() > 0, "it has ended");
            if let Some((_, counts)) = line.split_once(COUNTS) {
                let mut counts = counts.split_whitespace().map(|text| text.parse().unwrap());
                return (counts.next().unwrap(), counts.next().unwrap());
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It stops in an orderly way, so that nothing is left in /dev/shm, unless it hangs.
        drop(self.child.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < LIMIT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the process that the soak starts"]
fn serve_until_told() {
    let Ok(instance) = std::env::var(INSTANCE) else {
        return;
    };
    let server = Server::builder()
        .workers(1)
        .idle(IdleMode::Park)
        .shm(instance)
        .start()
        .unwrap();
    // Ends when the other process closes the pipe, or has ended.
    for _question in std::io::stdin().lines() {
        let sleeps = park_counts::SLEEPS.load(Ordering::Relaxed);
        let late = park_counts::LATE.load(Ordering::Relaxed);
        println!("{COUNTS}{sleeps} {late}");
    }
    server.stop();
}

fn attach(instance: &str) -> ClientEnd {
    let name = crate::wire::control_segment_name(instance);
    let begin = Instant::now();
    loop {
        match join(&name, None, 0, LIMIT) {
            Ok(end) => return end,
            Err(error) => assert!(begin.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Debug, Default)]
struct Sleeps {
    woken: u64,
    /// The answer came between the announcement and the sleep.
    not_needed: u64,
    timed_out: u64,
}

/// One request and its answer.
fn echo(end: &mut ClientEnd, id: u64, sleeps: &mut Sleeps, answer: &mut Vec<u8>) {
    let payload = id.to_le_bytes();
    let header = Header::new(Flags::REQUEST, msg_type::ECHO, id, payload.len() as u32);
    let ends = &mut end.ends;
    assert!(ends.tx.push_frame(header, &payload, ends.rx.position()));
    end.wake_server();
    let record = loop {
        if let Some(record) = end.ends.rx.next().unwrap() {
            break record;
        }
        assert!(!end.server_has_gone());
        match end.ends.sleep(false, LIMIT, || end.wake_server()) {
            Waited::Woken => sleeps.woken += 1,
            Waited::Changed => sleeps.not_needed += 1,
            Waited::TimedOut => sleeps.timed_out += 1,
        }
    };
    answer.clear();
    let ends = &mut end.ends;
    assert!(
        ends.rx.copy_frame(&record, answer).is_some(),
        "the CRC of {id}"
    );
    assert_eq!(answer[HEADER_BYTES..], payload);
    let ack = ends.rx.advance(&record);
    ends.tx.acknowledged(ack);
    ends.rx.publish();
}

#[test]
fn no_wake_up_between_two_processes_is_lost() {
    let wanted = std::env::var("LAPCE_IPC_SOAK").map_or(20_000, |text| text.parse().unwrap());
    let instance = format!("soak_test_{}", std::process::id());
    let mut server = Process::start(&instance);
    let mut end = attach(&instance);
    let mut sleeps = Sleeps::default();
    let mut answer = Vec::new();
    let mut longest = Duration::ZERO;
    let mut messages = 0;
    let (mut server_sleeps, mut late) = (0, 0);
    let begin = Instant::now();
    // The bound is for a machine where few messages are a sleep.
    while sleeps.woken.min(server_sleeps) < wanted && messages < wanted * 100 {
        for _ in 0..wanted.div_ceil(20) {
            let sent = Instant::now();
            messages += 1;
            echo(&mut end, messages, &mut sleeps, &mut answer);
            longest = longest.max(sent.elapsed());
        }
        (server_sleeps, late) = server.counts();
    }
    let took = begin.elapsed();
    drop(end);
    eprintln!(
        "{messages} messages in {took:.1?}, the longest {longest:.1?}; client: {sleeps:?}; server: {server_sleeps} sleeps, {late} ended by a timer though it had been rung for"
    );
    assert_eq!(sleeps.timed_out, 0, "wake-ups by the client's timer");
    assert_eq!(late, 0, "wake-ups by the server's timer");
    assert!(sleeps.woken >= wanted, "{sleeps:?}");
    assert!(server_sleeps >= wanted, "the server slept too seldom");
}
