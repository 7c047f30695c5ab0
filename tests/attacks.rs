//! What another process of the same user, or a full machine, can do to a running daemon.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, msg_type};
use support::{COMMAND, Daemon, SERVER, Scratch, config};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn start(scratch: &Scratch, sections: &str) -> Daemon {
    let file = scratch.write("lapce-ipc.toml", &config(scratch, "", sections));
    Daemon::start(SERVER, &file, &scratch.instance(), &[])
}

/// Ends the daemon, of which nothing is left.
fn stops(daemon: Daemon) {
    let control = daemon.control();
    assert_eq!(daemon.stop(), 0);
    assert!(!control.exists());
}

/// Writes over what this process shares with the daemon in a connection.
fn damage_connection(daemon: &Daemon) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let name = format!("lapce_ipc_v2_{}_conn_", daemon.instance);
    let line = maps.lines().find(|line| line.contains(&name)).unwrap();
    let range = line.split(' ').next().unwrap().split('-');
    let range: Vec<_> = range
        .map(|end| u64::from_str_radix(end, 16).unwrap())
        .collect();
    // All but the beginning, which says what it is.
    let (start, end) = (range[0] + 512, range[1]);
    let memory = File::options().write(true).open("/proc/self/mem").unwrap();
    let bytes = vec![0xFF; (end - start) as usize];
    memory.write_all_at(&bytes, start).unwrap();
}

/// A client of its own process gets in over shared memory, sooner or later.
fn serves(daemon: &Daemon) {
    let address = format!("shm:{}", daemon.instance);
    let start = Instant::now();
    loop {
        let output = Command::new(COMMAND)
            .args(["ping", &address, "--count", "100"])
            .output()
            .unwrap();
        if output.status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(start.elapsed() < PATIENCE, "{said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_control_segment_is_cut_short() {
    for left_bytes in [0, 4096] {
        let scratch = Scratch::new();
        let daemon = start(&scratch, "");
        let witness = Client::builder()
            .reconnect(false)
            .connect(&format!("shm:{}", daemon.instance))
            .unwrap();
        witness.ping().unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(daemon.control())
            .unwrap();
        file.set_len(left_bytes).unwrap();
        serves(&daemon);
        assert_eq!(
            witness.call(msg_type::ECHO, b"still here").unwrap(),
            b"still here"
        );
        assert!(daemon.said("another process changed its length or mode: it was restored"));
        file.set_len(left_bytes).unwrap();
        drop(witness);
        stops(daemon);
    }
}

/// Processes that are killed while they attach leave their slots taken: all there are.
#[test]
fn all_slots_are_left_taken() {
    use std::os::unix::fs::FileExt;
    let scratch = Scratch::new();
    let daemon = start(&scratch, "");
    let file = std::fs::File::options()
        .write(true)
        .open(daemon.control())
        .unwrap();
    // engine/src/shm/control.rs and slots.rs: 64 slots of 128 bytes, each beginning with its stage; 1: claimed.
    for slot in 0..64 {
        file.write_all_at(&1u32.to_ne_bytes(), 2 * 4096 + slot * 128)
            .unwrap();
    }
    serves(&daemon);
    stops(daemon);
}

/// Many processes attach at once, more than there are slots, and half of them are killed meanwhile.
#[test]
fn a_crowd_attaches_at_once() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, "");
    let address = format!("shm:{}", daemon.instance);
    let mut crowd: Vec<_> = (0..80)
        .map(|_| {
            Command::new(COMMAND)
                .args(["ping", &address, "--count", "20"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for (index, client) in crowd.iter_mut().enumerate() {
        if index % 2 == 1 {
            client.kill().unwrap();
        }
    }
    for (index, client) in crowd.iter_mut().enumerate() {
        let status = client.wait().unwrap();
        assert!(
            status.success() || index % 2 == 1,
            "client {index}: {status}"
        );
    }
    let start = Instant::now();
    let none = "lapce_ipc_connections{transport=\"shm\"} 0";
    while !daemon.get("/metrics").contains(none) {
        assert!(start.elapsed() < PATIENCE, "connections are left");
    }
    serves(&daemon);
    stops(daemon);
}

/// Clients of the metrics that ask and do not read, or do not ask, keep nobody waiting and cost their own connection only.
#[test]
fn the_metrics_are_asked_for_and_not_read() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, "");
    daemon.get("/metrics");
    let before = daemon.descriptors();
    let mut stalled: Vec<TcpStream> = Vec::new();
    for index in 0..40 {
        let mut stream = TcpStream::connect(&daemon.metrics).unwrap();
        stream.set_nonblocking(true).unwrap();
        // Half of them ask until their answers fill all buffers, the others say half a word.
        let request: &[u8] = match index % 2 {
            0 => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            _ => b"GET /met",
        };
        let mut asked = 0;
        while stream.write(request).is_ok() && index % 2 == 0 && asked < 100_000 {
            asked += 1;
        }
        stalled.push(stream);
    }
    let start = Instant::now();
    // Whoever has something to ask gets the place of one that waits.
    assert!(daemon.get("/health").starts_with("HTTP/1.1 200"));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "/health took {took:?}");
    // The descriptors come back although the others stay.
    while daemon.descriptors() > before {
        assert!(start.elapsed() < PATIENCE, "descriptors are lost");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stalled);
    stops(daemon);
}

#[test]
fn nobody_reads_the_log() {
    let scratch = Scratch::new();
    let text = config(&scratch, "workers = 1", "");
    let (log, mut into_log) = std::io::pipe().unwrap();
    let child = Command::new(SERVER)
        .arg("--config")
        .arg(scratch.write("lapce-ipc.toml", &text))
        .stderr(into_log.try_clone().unwrap())
        .spawn()
        .unwrap();
    let daemon = Daemon {
        child,
        address: String::new(),
        metrics: String::new(),
        instance: scratch.instance(),
        log: channel().1,
        ready: String::new(),
    };
    serves(&daemon);
    let (written, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (written, enough) = (&written, &enough);
        scope.spawn(move || {
            let line = [vec![b'x'; 4095], vec![b'\n']].concat();
            while !enough.load(Ordering::Relaxed) {
                into_log.write_all(&line).unwrap();
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut before = usize::MAX;
        while before != written.load(Ordering::Relaxed) || before == 0 {
            before = written.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
        // The worker has something to say now.
        let client = Client::builder()
            .reconnect(false)
            .connect(&format!("shm:{}", daemon.instance))
            .unwrap();
        client.ping().unwrap();
        // A worker that sleeps may be sent a good record, in the place of what damages the ring.
        let start = Instant::now();
        loop {
            damage_connection(&daemon);
            if client.ping().is_err() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "no damage is noticed");
        }
        serves(&daemon);
        enough.store(true, Ordering::Relaxed);
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("connection was closed")));
        stops(daemon);
        // What is said last is written.
        assert!(lines.any(|line| line.contains("stopped after")));
    });
}

#[test]
fn sixteen_who_keep_their_connections_leave_a_place_for_others() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, "");
    let done = AtomicBool::new(false);
    let (ask, done) = (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", &done);
    std::thread::scope(|scope| {
        let (tell, told) = channel();
        for _ in 0..16 {
            let mut stream = TcpStream::connect(&daemon.metrics).unwrap();
            let tell = tell.clone();
            scope.spawn(move || {
                let mut answer = [0; 1024];
                // Each asks well before its time is over, until it is told that this was its last.
                while !done.load(Ordering::Relaxed) && stream.write_all(ask).is_ok() {
                    let length = stream.read(&mut answer).unwrap_or(0);
                    let _ = tell.send(());
                    if length == 0 || contains(&answer[..length], "Connection: close") {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        for _ in 0..64 {
            told.recv_timeout(PATIENCE).unwrap();
        }
        let mut stream = TcpStream::connect(&daemon.metrics).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(ask).unwrap();
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer);
        done.store(true, Ordering::Relaxed);
        assert!(contains(&answer[..length.unwrap()], "200 OK"));
    });
    stops(daemon);
}

fn contains(bytes: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(text)
}

#[test]
fn the_umask_takes_no_right_away_from_the_owner() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let file = scratch.write("lapce-ipc.toml", &config(&scratch, "", ""));
    let script = format!("#!/bin/sh\numask 0777\nexec {SERVER} \"$@\"\n");
    let program = scratch.write("server", &script);
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    let daemon = Daemon::start(program.to_str().unwrap(), &file, &scratch.instance(), &[]);
    let mode = std::fs::metadata(daemon.control()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    serves(&daemon);
    stops(daemon);
}

/// A shell command with a /dev/shm of its own, where the kernel lets us have one.
fn with_small_shm(bytes: &str, script: &str) -> Option<Command> {
    with_shm(&format!("size={bytes}"), script)
}

/// As [`with_small_shm`], with any options of mount(8).
fn with_shm(options: &str, script: &str) -> Option<Command> {
    let mount = format!("mount -t tmpfs -o {options} tmpfs /dev/shm");
    let unshared = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script]);
        command
    };
    let works = unshared(&mount).stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("not tested: no mount namespaces here");
        return None;
    }
    Some(unshared(&format!("{mount} && {script}")))
}

#[test]
fn shared_memory_is_full() {
    let scratch = Scratch::new();
    let file = scratch.write("lapce-ipc.toml", &config(&scratch, "", ""));
    let file = file.to_str().unwrap();
    // No room for the control segment: said at the start, not found out later.
    if let Some(mut command) = with_small_shm("8k", &format!("exec {SERVER} --config {file}")) {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("/dev/shm is full"), "{said}");
    }
    // Room for a few connections: those who find none stay on TCP.
    let script = format!(
        "{SERVER} --config {file} 2>{log} & server=$!; \
         while ! grep -q 'ready: ' {log}; do sleep 0.05; done; \
         address=$(sed -n 's/.*tcp \\([0-9.:]*\\).*/\\1/p' {log}); \
         head -c 40k /dev/zero >/dev/shm/filler 2>/dev/null; \
         {COMMAND} ping $address --count 100 --json; code=$?; \
         kill $server; wait $server && exit $code",
        log = scratch.0.join("log").display()
    );
    if let Some(mut command) = with_small_shm("40k", &script) {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["transport"], "tcp", "{said}");
    }
}

/// What to do then is not what to do about a file in the way.
#[test]
fn shared_memory_cannot_be_written() {
    let scratch = Scratch::new();
    let file = scratch.write("lapce-ipc.toml", &config(&scratch, "", ""));
    let serve = format!("exec {SERVER} --config {}", file.display());
    let control = format!("/dev/shm/lapce_ipc_v2_{}_control", scratch.instance());
    let in_the_way = format!("mkdir {control} && {serve}");
    for (options, script, remedy) in [
        ("ro,size=1m", &serve, "set enabled = false under [shm]"),
        ("size=1m", &in_the_way, "remove it"),
    ] {
        let Some(mut command) = with_shm(options, script) else {
            return;
        };
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&control) && said.contains(remedy), "{said}");
    }
}

/// The control segment's memory is taken away while there is none to replace it: once there is, clients
/// find shared memory again.
#[test]
fn shared_memory_is_full_when_the_control_segment_is_cut_short() {
    let scratch = Scratch::new();
    let file = scratch.write("lapce-ipc.toml", &config(&scratch, "", ""));
    let script = format!(
        "{SERVER} --config {file} 2>{log} & server=$!; \
         while ! grep -q 'ready: ' {log}; do sleep 0.05; done; \
         control=$(echo /dev/shm/*_control); \
         kill -STOP $server; \
         : >$control; head -c 256k /dev/zero >/dev/shm/filler 2>/dev/null; \
         kill -CONT $server; \
         while ! grep -q 'has none left' {log}; do sleep 0.05; done; \
         rm /dev/shm/filler; \
         instance=${{control#/dev/shm/lapce_ipc_v2_}}; instance=${{instance%_control}}; \
         for try in 1 2 3 4 5 6 7 8 9 10; do \
           sleep 0.3; {COMMAND} ping shm:$instance --count 100 >/dev/null; code=$?; \
           [ $code = 0 ] && break; \
         done; \
         kill $server; wait $server && exit $code",
        file = file.display(),
        log = scratch.0.join("log").display()
    );
    if let Some(mut command) = with_small_shm("256k", &script) {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
    }
}
