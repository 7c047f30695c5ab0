//! The daemon and the command as an operator meets them.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{COMMAND, COMPATIBILITY, NEW, OldClient, SERVER, Scratch, config, run, start, text};

/// ECHO of "hello", as docs/protocol.md has it; and a request of version 1 without a payload.
const ECHO_FRAME: [u8; 29] =
    *b"IAPL\x02\x10\xf0\0\x05\0\0\0\x02\0\0\0\0\0\0\0\x7e\x01\x0d\x5fhello";
const OLD_ECHO_FRAME: [u8; 19] = *b"LPAI\x01\xf0\0\0\0\0\0\x02\0\0\0\0\0\0\0";

/// What systemd would hear.
struct ServiceManager {
    path: String,
    socket: UnixDatagram,
}

impl ServiceManager {
    fn new(scratch: &Scratch) -> ServiceManager {
        let path = scratch.0.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let path = path.to_str().unwrap().to_owned();
        ServiceManager { path, socket }
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 256];
        let length = self.socket.recv(&mut bytes).unwrap();
        text(&bytes[..length])
    }
}

#[test]
fn ping_reports_what_the_specification_names() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &[]);
    let shm = format!("shm:{}", scratch.instance());
    for (address, transport, expected) in [
        (daemon.address.as_str(), "tcp", "tcp"),
        (daemon.address.as_str(), "auto", "shm"),
        (shm.as_str(), "shm", "shm"),
    ] {
        let output = run(
            COMMAND,
            &[
                "ping",
                address,
                "--transport",
                transport,
                "--count",
                "500",
                "--size",
                "100",
                "--window",
                "8",
                "--idle",
                "adaptive",
                "--json",
            ],
        );
        assert!(output.status.success(), "{}", text(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let object = json.as_object().unwrap();
        assert_eq!(object["transport"], expected);
        assert_eq!(
            (&object["size"], &object["count"], &object["window"]),
            (&100.into(), &500.into(), &8.into())
        );
        for key in [
            "p50_ns",
            "p90_ns",
            "p99_ns",
            "p999_ns",
            "max_ns",
            "per_second",
        ] {
            assert!(object[key].as_f64().unwrap() > 0.0, "{key}");
        }
    }
    assert_eq!(
        run(COMMAND, &["ping", "127.0.0.1:1"]).status.code(),
        Some(1)
    );
    assert_eq!(run(COMMAND, &["ping", "nowhere"]).status.code(), Some(2));
    assert_eq!(
        run(COMMAND, &["ping", "--count", "x"]).status.code(),
        Some(2)
    );
    let missing = run(COMMAND, &["ping", "shm:nobody_at_all"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr)
            .contains("Failed to open shared memory: /dev/shm/lapce_ipc_v2_nobody_at_all_control")
    );
    assert_eq!(daemon.stop(), 0);
    assert!(
        !std::path::Path::new(&format!(
            "/dev/shm/lapce_ipc_v2_{}_control",
            scratch.instance()
        ))
        .exists()
    );
}

/// As many answers as are in flight may wait for being collected, also when that is much.
#[test]
fn ping_holds_what_is_in_flight() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &[]);
    let shm = format!("shm:{}", scratch.instance());
    for address in [daemon.address.as_str(), shm.as_str()] {
        for (size, window, count) in [("64", "1024", "50000"), ("3000000", "32", "64")] {
            let mut arguments = vec!["ping", address, "--size", size, "--window", window];
            arguments.extend(["--count", count, "--idle", "adaptive"]);
            let output = run(COMMAND, &arguments);
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    }
}

#[test]
fn the_metrics_have_the_names_that_others_rely_on() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &[]);
    let ping = run(
        COMMAND,
        &[
            "ping",
            &daemon.address,
            "--transport",
            "tcp",
            "--count",
            "100",
        ],
    );
    assert!(ping.status.success());
    let metrics = daemon.get("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(metrics.contains("Content-Type: text/plain; version=0.0.4"));
    assert!(metrics.contains("\r\nDate: ") && metrics.contains(" GMT\r\n"));
    for name in [
        "lapce_ipc_requests_total{transport=\"tcp\"} 200",
        "lapce_ipc_requests_total{transport=\"shm\"} 0",
        "lapce_ipc_errors_total{code=\"crc_mismatch\"} 0",
        "lapce_ipc_error_ratio 0",
        "lapce_ipc_request_duration_seconds{transport=\"tcp\",quantile=\"0.999\"} ",
        "lapce_ipc_request_duration_seconds_sum{transport=\"tcp\"} ",
        "lapce_ipc_request_duration_seconds_count{transport=\"tcp\"} 200",
        "lapce_ipc_connections{transport=\"shm\"} 0",
        "lapce_ipc_connections_total{transport=\"tcp\"} 1",
        "lapce_ipc_pool_acquired_total 0",
        "lapce_ipc_pool_reused_total 0",
        "lapce_ipc_pool_reuse_ratio ",
        "lapce_ipc_bytes_total{transport=\"tcp\",direction=\"in\"} ",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        "lapce_ipc_build_info{version=\"1.0.0\"} 1",
    ] {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
    assert!(daemon.get("/health").starts_with("HTTP/1.1 200"));
    assert!(daemon.get("/ready").starts_with("HTTP/1.1 200"));
    assert!(daemon.get("/other").starts_with("HTTP/1.1 404"));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn configurations_are_checked() {
    let scratch = Scratch::new();
    let check = |text: &str| {
        let file = scratch.write("checked.toml", text);
        run(
            SERVER,
            &["--config", file.to_str().unwrap(), "--check-config"],
        )
    };
    let good = check("[server]\nprotocol_version = 2\n[compatibility]\n");
    assert_eq!(good.status.code(), Some(0));
    assert!(text(&good.stdout).contains("bind_address = \"127.0.0.1:8080\""));
    let bad = check("[server]\n\nbind_adress = \"x\"\n");
    assert_eq!(bad.status.code(), Some(2));
    let said = text(&bad.stderr);
    assert!(
        said.contains("checked.toml:3")
            && said.contains("bind_adress")
            && said.contains("bind_address"),
        "{said}"
    );
    // An old editor's umlaut.
    let file = scratch.0.join("latin1.toml");
    std::fs::write(&file, b"[server]\n# f\xFCr uns\nworkers = 1\n").unwrap();
    let bad = run(
        SERVER,
        &["--config", file.to_str().unwrap(), "--check-config"],
    );
    assert_eq!(bad.status.code(), Some(2));
    assert!(
        text(&bad.stderr).contains("latin1.toml:2: this line is not UTF-8"),
        "{}",
        text(&bad.stderr)
    );
    assert_eq!(run(SERVER, &["--confg"]).status.code(), Some(2));
    assert_eq!(
        run(SERVER, &["--config", "/nowhere.toml"]).status.code(),
        Some(2)
    );
}

#[test]
fn the_log_names_the_configuration_in_use() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &[]);
    let file = scratch.0.join("lapce-ipc.toml");
    let expected = format!("configuration {}", file.display());
    assert!(daemon.ready.ends_with(&expected), "{}", daemon.ready);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_port_in_use_is_said() {
    let scratch = Scratch::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let file = scratch.write(
        "taken.toml",
        &format!("[server]\nbind_address = \"{address}\"\n[shm]\nenabled = false\n[metrics]\nbind_address = \"\"\n"),
    );
    let output = run(SERVER, &["--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains(&address.to_string()) && said.contains("another port"),
        "{said}"
    );
}

/// Under systemd each line has its priority, and nowhere else.
#[test]
fn the_journal_is_told_what_is_an_error() {
    let scratch = Scratch::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let taken = scratch.write(
        "taken.toml",
        &format!("[server]\nbind_address = \"{address}\"\n[shm]\nenabled = false\n"),
    );
    let bad = scratch.write("bad.toml", "[server]\nworkers = 99\n");
    let said = |file: &PathBuf, is_stderr: bool| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stream = File::from(writer.as_fd().try_clone_to_owned().unwrap());
        let meta = stream.metadata().unwrap();
        let inode = meta.ino() + u64::from(!is_stderr);
        drop(stream);
        let status = Command::new(SERVER)
            .arg("--config")
            .arg(file)
            .env("JOURNAL_STREAM", format!("{}:{inode}", meta.dev()))
            .stderr(writer)
            .status()
            .unwrap();
        assert!(!status.success());
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        said
    };
    let lines = said(&taken, true);
    assert!(
        lines.starts_with("<4>warn: ") && lines.contains("\n<3>error: cannot listen on "),
        "{lines}"
    );
    let lines = said(&bad, true);
    assert!(lines.starts_with("<3>lapce_ipc_server: "), "{lines}");
    assert!(said(&taken, false).starts_with("warn: "));
    assert!(said(&bad, false).starts_with("lapce_ipc_server: "));
}

/// The kernel closes what is in a ring a moment after its process has ended, listening sockets too.
#[test]
fn a_daemon_that_follows_another_at_once_gets_its_ports() {
    let scratch = Scratch::new();
    let mut text = config(&scratch, NEW, COMPATIBILITY);
    // The last one stops as it should, and leaves nothing behind.
    for run in 0..13 {
        let mut daemon = start(&scratch, &text, &[]);
        if run == 0 {
            // From now on those that were free.
            for address in [&daemon.address, &daemon.metrics] {
                text = text.replacen("127.0.0.1:0", address, 1);
            }
        }
        daemon.end(["-TERM", "-KILL"][run % 2]);
    }
}

#[test]
fn systemd_is_told_of_readiness_reload_and_the_end() {
    let scratch = Scratch::new();
    let manager = ServiceManager::new(&scratch);
    let hear = || manager.hear();
    let vars = [("NOTIFY_SOCKET", manager.path.as_str())];
    let mut daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &vars);
    assert_eq!(hear(), "READY=1");
    let legacy = "[compatibility]\nenable_legacy_support = true\n[limits]\nmax_connections = 7";
    scratch.write("lapce-ipc.toml", &config(&scratch, NEW, legacy));
    daemon.signal("-HUP");
    assert!(hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(hear(), "READY=1");
    assert!(daemon.said("enable_legacy_support is now true"));
    assert!(daemon.said("limits.max_connections cannot change while running"));
    // What is wrong in a new file changes nothing.
    scratch.write("lapce-ipc.toml", "[server]\nworkers = 99\n");
    daemon.signal("-HUP");
    assert!(daemon.said("the configuration stays as it was"));
    daemon.signal("-TERM");
    let mut told = hear();
    while told != "STOPPING=1" {
        told = hear();
    }
    // A second signal would end it at once.
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

/// systemd kills who takes longer to stop than it expects.
#[test]
fn systemd_is_told_of_an_end_that_may_take_long() {
    let scratch = Scratch::new();
    let manager = ServiceManager::new(&scratch);
    let vars = [("NOTIFY_SOCKET", manager.path.as_str())];
    let long = "[compatibility]\n[limits]\ndrain_ms = 20000";
    let daemon = start(&scratch, &config(&scratch, NEW, long), &vars);
    assert_eq!(manager.hear(), "READY=1");
    assert_eq!(daemon.stop(), 0);
    assert_eq!(manager.hear(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000");
}

/// Whoever has no patience for the answers in flight.
#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [("-TERM", "-INT"), ("-INT", "-TERM")] {
        let scratch = Scratch::new();
        let sections = "[compatibility]\nenable_legacy_support = true\n[limits]\ndrain_ms = 3600000\nsend_stall_ms = 3600000";
        let mut daemon = start(&scratch, &config(&scratch, NEW, sections), &[]);
        let client = OldClient::connect(&daemon.address);
        client.ask_much_and_read_nothing();
        daemon.signal(first);
        assert!(daemon.said("stopping"));
        // A moment later it is heeded; until then it is a first one more.
        let mut status = None;
        for _ in 0..3000 {
            daemon.signal(second);
            std::thread::sleep(Duration::from_millis(10));
            status = daemon.child.try_wait().unwrap();
            if status.is_some() {
                break;
            }
        }
        assert!(status.expect("it ends").signal().is_some());
        assert!(!daemon.control().exists());
    }
}

#[test]
fn output_that_cannot_be_written_is_said() {
    let scratch = Scratch::new();
    let file = scratch.write("old.toml", "[server]\n");
    let file = file.to_str().unwrap();
    for (program, arguments) in [
        (SERVER, vec!["--config", file, "--check-config"]),
        (SERVER, vec!["--help"]),
        (SERVER, vec!["--version"]),
        (COMMAND, vec!["migrate-config", file]),
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let (reader, unread) = std::io::pipe().unwrap();
        drop(reader);
        for stdout in [Stdio::from(full.unwrap()), Stdio::from(unread)] {
            let mut command = Command::new(program);
            let output = command.args(&arguments).stdout(stdout).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
            assert!(said.contains("standard output"), "{arguments:?}: {said}");
        }
    }
}

/// What is wrong besides is for the user to mend, in the file that is new.
#[test]
fn a_migrated_file_that_would_be_refused_is_not_passed_over() {
    let scratch = Scratch::new();
    let old = scratch.write("old.toml", "[limits]\nmax_connections = 0\n");
    let new = scratch.0.join("new.toml");
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let output = run(COMMAND, &["migrate-config", old, "--output", new]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains(&format!("{new}:2: limits.max_connections: ")),
        "{said}"
    );
    let checked = run(SERVER, &["--config", new, "--check-config"]);
    let why = text(&checked.stderr);
    let why = why.trim().trim_start_matches("lapce_ipc_server: ");
    assert!(said.contains(why), "{said} / {why}");
}

/// Something that listens, and is no server of ours: what it answers, and what is said of that.
#[test]
fn check_is_not_content_with_any_answer() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &[]);
    let ours = format!("http://{}/metrics", daemon.address);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let strange = format!("http://{}/metrics", listener.local_addr().unwrap());
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        let answer = b"HTTP/1.0 200 OK\r\n\r\nprocess_resident_memory_bytes 1\n";
        stream.write_all(answer).unwrap();
    });
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unanswered = format!("http://{}/metrics", silent.local_addr().unwrap());
    for (url, code, expected) in [
        (strange.as_str(), 1, "lapce_ipc_build_info"),
        (&ours, 1, "did not answer in HTTP"),
        (&unanswered, 1, "no answer within 5 s"),
        ("http://127.0.0.1:99999/metrics", 2, "HOST:PORT"),
        ("http://:9090/metrics", 2, "HOST:PORT"),
        ("http:///metrics", 2, "HOST:PORT"),
    ] {
        let output = run(COMMAND, &["check", "--metrics", url]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    stranger.join().unwrap();
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn the_watchdog_hears_of_it_at_intervals() {
    let scratch = Scratch::new();
    let manager = ServiceManager::new(&scratch);
    let vars = [
        ("NOTIFY_SOCKET", manager.path.as_str()),
        ("WATCHDOG_USEC", "200000"),
    ];
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &vars);
    assert_eq!(manager.hear(), "READY=1");
    for _ in 0..5 {
        assert_eq!(manager.hear(), "WATCHDOG=1");
    }
    assert_eq!(daemon.stop(), 0);
}

/// What came while the daemon was stopped is not late.
#[test]
fn a_daemon_that_was_stopped_blames_nobody() {
    let scratch = Scratch::new();
    let limits = "[limits]\nframe_timeout_ms = 500\n";
    // Awake, it looks at its clock before it asks the kernel for what has come.
    let awake = format!("{NEW}\nidle = \"spin\"");
    let daemon = start(&scratch, &config(&scratch, &awake, limits), &[]);
    // The HEARTBEAT of protocol.md.
    let heartbeat = [
        0x49, 0x41, 0x50, 0x4c, 2, 0x10, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xa5, 0x0f,
        0x06, 0xdf,
    ];
    let mut stream = TcpStream::connect(&daemon.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(&heartbeat[..10]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    daemon.signal("-STOP");
    std::thread::sleep(Duration::from_millis(1500));
    stream.write_all(&heartbeat[10..]).unwrap();
    daemon.signal("-CONT");
    let mut answer = [0; 24];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[5..8], [0x20, 5, 0], "not a response: {answer:?}");
    assert_eq!(daemon.stop(), 0);
}

/// The HANDSHAKE of docs/protocol.md, from a client that says it is `editor`.
#[test]
fn who_says_who_it_is_stands_in_the_log() {
    let hello = "49 41 50 4c 02 10 10 00 29 00 00 00 01 00 00 00 00 00 00 00 84 a9 0d 7a
        01 00 01 00 02 02 00 04 00 03 00 00 00 03 00 06 00 65 64 69 74 6f 72
        04 00 06 00 73 65 63 72 65 74 07 00 04 00 00 00 10 00";
    let hello: Vec<u8> = hello
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let scratch = Scratch::new();
    let vars = [("LAPCE_IPC_LOG", "debug")];
    let daemon = start(&scratch, &config(&scratch, NEW, COMPATIBILITY), &vars);
    let mut client = TcpStream::connect(&daemon.address).unwrap();
    client.write_all(&hello).unwrap();
    let from = client.local_addr().unwrap();
    assert!(daemon.said(&format!("debug: {from} says it is \"editor\"")));
    assert_eq!(daemon.stop(), 0);
}

/// What a client is told stands in the log too, with where it came from; once, if it comes again and again.
#[test]
fn who_was_cut_off_and_why_stands_in_the_log() {
    let scratch = Scratch::new();
    let sections = format!("{COMPATIBILITY}\n[limits]\nsend_stall_ms = 100");
    let daemon = start(&scratch, &config(&scratch, NEW, &sections), &[]);
    let mut damaged = ECHO_FRAME;
    damaged[27] ^= 1;
    for (bytes, why) in [
        (&b"GET / HTTP/1.1\r\n\r\n\r\n\r\n"[..], "BAD_MAGIC"),
        (&damaged, "CRC_MISMATCH"),
        (&OLD_ECHO_FRAME, "VERSION_MISMATCH"),
    ] {
        let from: Vec<String> = (0..3)
            .map(|_| {
                let mut client = TcpStream::connect(&daemon.address).unwrap();
                client.write_all(bytes).unwrap();
                client.read_to_end(&mut Vec::new()).unwrap();
                client.local_addr().unwrap().to_string()
            })
            .collect();
        let said = format!("warn: the connection from {} was closed: {why}: ", from[0]);
        assert!(daemon.said(&said), "{said}");
    }
    let deaf = TcpStream::connect(&daemon.address).unwrap();
    let from = deaf.local_addr().unwrap();
    let requests = ECHO_FRAME.repeat(1000);
    // Until nothing more is taken from it, or it is cut off.
    deaf.set_write_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    while (&deaf).write_all(&requests).is_ok() {}
    assert!(daemon.said(&format!(
        "warn: the connection from {from} was closed: it has not read its answers for 100 ms"
    )));
    assert_eq!(daemon.stop(), 0);
}
