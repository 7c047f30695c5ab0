//! The upgrade guide from top to bottom, in a scratch root: to be held beside it, step by step.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use lapce_ai::ipc::{
    Client, ConnectionPool, Error, ErrorCode, ProtocolVersion, Transport, msg_type,
};
use support::{COMMAND, Daemon, OldClient, SERVER, Scratch, config};

/// "Rust Clients", the old and the new snippet.
#[test]
fn the_clients_of_the_guide() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = Scratch::new();
    let file = scratch.write(
        "c.toml",
        &config(&scratch, "protocol_version = 2", "[compatibility]"),
    );
    let daemon = Daemon::start(SERVER, &file, &scratch.instance(), &[]);
    let address = daemon.address.as_str();

    let client = Client::connect(address)?;
    assert_eq!(client.call(msg_type::ECHO, b"old")?, b"old");

    let client = Client::builder()
        .protocol_version(ProtocolVersion::V2)
        .connect(address)?;
    assert_eq!(client.call(msg_type::ECHO, b"new")?, b"new");

    // "Connection Pool Updates".
    let pool = ConnectionPool::builder()
        .max_connections(100)
        .reuse_threshold(0.95)
        .health_check_interval(Duration::from_secs(30))
        .endpoint(address)
        .build()?;
    for _ in 0..100 {
        assert_eq!(pool.get()?.call(msg_type::ECHO, b"pool")?, b"pool");
    }
    // "Connection pool reuse: Should maintain >95%", as /metrics shows it.
    let start = std::time::Instant::now();
    loop {
        let metrics = daemon.get("/metrics");
        let ratio = metrics
            .lines()
            .find_map(|line| line.strip_prefix("lapce_ipc_pool_reuse_ratio "))
            .unwrap()
            .parse::<f64>()?;
        if ratio > 0.95 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{ratio}");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(pool);
    assert_eq!(daemon.stop(), 0);
    Ok(())
}

/// The guide's pool as it stands, without an endpoint: 127.0.0.1:8080, reached when first used.
#[test]
fn the_pool_of_the_guide_needs_no_server_to_be_built() -> Result<(), Error> {
    let pool = ConnectionPool::builder()
        .max_connections(100)
        .reuse_threshold(0.95)
        .health_check_interval(Duration::from_secs(30))
        .build()?;
    assert_eq!(pool.stats().max_connections, 100);
    Ok(())
}

/// Version 0.x, as far as the guide shows it: answers every version 1 frame with its payload.
fn old_server(listener: TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer_old(stream));
    }
}

fn answer_old(mut stream: TcpStream) {
    let mut head = [0; 19];
    while stream.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes(head[7..11].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        if stream.read_exact(&mut payload).is_err() {
            return;
        }
        let mut answer = head.to_vec();
        answer.extend_from_slice(&payload);
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

#[test]
fn the_journey_there_and_back() {
    let scratch = Scratch::new();
    // Before: version 0.x serves its clients.
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let old_address = old.local_addr().unwrap().to_string();
    std::thread::spawn(move || old_server(old));
    assert_eq!(
        OldClient::connect(&old_address).call(0xF0, 1, b"0.x"),
        (0xF0, 1, b"0.x".to_vec())
    );
    let old_config = format!(
        "# the old one, by hand\n[server]\nbind_address = \"127.0.0.1:0\" # ours\n\n[shm]\ninstance = \"{}\"\n\n[metrics]\nbind_address = \"127.0.0.1:0\"\n",
        scratch.instance()
    );
    let file = scratch.write("lapce-ipc.toml", &old_config);
    let binary = scratch.0.join("lapce_ipc_server");
    std::fs::write(&binary, "the old binary").unwrap();

    // Steps 1 and 2: stop, back up.
    std::fs::copy(&file, scratch.0.join("lapce-ipc.toml.backup")).unwrap();
    std::fs::copy(&binary, scratch.0.join("lapce_ipc_server.backup")).unwrap();

    // Step 3: install.
    std::fs::remove_file(&binary).unwrap();
    std::fs::copy(SERVER, &binary).unwrap();

    // Step 4: the configuration. The old one starts, with a line on what is missing.
    let checked = Command::new(&binary)
        .arg("--config")
        .arg(&file)
        .arg("--check-config")
        .output()
        .unwrap();
    assert!(checked.status.success());
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(
        said.contains("protocol_version is missing") && said.contains("[compatibility] is missing"),
        "{said}"
    );
    let new = scratch.0.join("new.toml");
    let migrated = Command::new(COMMAND)
        .arg("migrate-config")
        .arg(&file)
        .arg("--output")
        .arg(&new)
        .output()
        .unwrap();
    assert!(migrated.status.success());
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        old_config,
        "OLD is left as it is"
    );
    let text = std::fs::read_to_string(&new).unwrap();
    assert!(text.contains("# the old one, by hand") && text.contains("# ours"));
    assert!(
        text.contains("protocol_version = 2") && text.contains("enable_legacy_support = false")
    );
    std::fs::write(
        &file,
        text.replace(
            "enable_legacy_support = false",
            "enable_legacy_support = true",
        ),
    )
    .unwrap();

    // Step 5: start. Old and new clients at the same time.
    let daemon = Daemon::start(binary.to_str().unwrap(), &file, &scratch.instance(), &[]);
    let (tcp, shm) = (
        daemon.address.clone(),
        format!("shm:{}", scratch.instance()),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut old = OldClient::connect(&tcp);
            for id in 1..=100_000u64 {
                let payload = id.to_be_bytes();
                assert_eq!(old.call(0xF0, id, &payload), (0xF0, id, payload.to_vec()));
            }
        });
        for address in [&tcp, &shm] {
            scope.spawn(move || {
                let client = Client::connect(address).unwrap();
                assert_eq!(client.transport(), Transport::Shm);
                for id in 0..100_000u64 {
                    assert_eq!(
                        client.call(msg_type::ECHO, &id.to_le_bytes()).unwrap(),
                        id.to_le_bytes()
                    );
                }
            });
        }
    });
    // Monitoring.
    let metrics = daemon.get("/metrics");
    assert!(metrics.contains("lapce_ipc_error_ratio 0\n"));
    assert!(metrics.contains("lapce_ipc_legacy_requests_total 100000\n"));
    let check = Command::new(COMMAND)
        .args([
            "check",
            "--metrics",
            &format!("http://{}/metrics", daemon.metrics),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(
        said.contains("error ratio: 0.0000 %") && said.contains("pool reuse"),
        "{said}"
    );

    // Rollback.
    assert_eq!(daemon.stop(), 0);
    std::fs::copy(scratch.0.join("lapce_ipc_server.backup"), &binary).unwrap();
    std::fs::copy(scratch.0.join("lapce-ipc.toml.backup"), &file).unwrap();
    assert_eq!(std::fs::read_to_string(&binary).unwrap(), "the old binary");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), old_config);
    assert_eq!(
        OldClient::connect(&old_address).call(0xF0, 2, b"back"),
        (0xF0, 2, b"back".to_vec())
    );
}

/// "Troubleshooting", text for text.
#[test]
fn the_errors_of_the_guide() {
    let scratch = Scratch::new();
    let file = scratch.write(
        "c.toml",
        &config(&scratch, "protocol_version = 2", "[compatibility]"),
    );
    let daemon = Daemon::start(SERVER, &file, &scratch.instance(), &[]);

    let mut old = OldClient::connect(&daemon.address);
    let (msg_type, msg_id, payload) = old.call(0xF0, 77, b"hello");
    assert_eq!((msg_type, msg_id, &payload[..2]), (4, 77, &[2, 0][..]));
    assert_eq!(
        &payload[2..],
        b"Protocol version mismatch: expected 2, got 1"
    );
    assert!(old.is_closed());
    // The same from a Rust client that speaks version 1.
    let error = Client::builder()
        .protocol_version(ProtocolVersion::V1)
        .connect(&daemon.address)
        .and_then(|client| client.call(msg_type::ECHO, b"x"))
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::VersionMismatch));
    assert_eq!(
        error.to_string(),
        "Protocol version mismatch: expected 2, got 1"
    );

    let error = Client::connect("shm:not_there").unwrap_err().to_string();
    assert!(
        error.starts_with("Failed to open shared memory: /dev/shm/lapce_ipc_v2_not_there_control")
    );

    let mut stream = TcpStream::connect(&daemon.address).unwrap();
    let mut frame = vec![
        0x49, 0x41, 0x50, 0x4C, 2, 0x10, 0xF0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    ];
    frame.extend_from_slice(&0x1234_5678u32.to_le_bytes());
    stream.write_all(&frame).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let said = String::from_utf8_lossy(&answer[26..]).into_owned();
    assert!(
        said.starts_with("CRC32 mismatch: expected 0x12345678, got 0x"),
        "{said}"
    );
    assert_eq!(daemon.stop(), 0);
}
