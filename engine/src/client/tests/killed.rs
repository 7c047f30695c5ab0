//! A server whose process is killed, and one that takes its place.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ipc::{Client, Error, IdleMode, Responder, Server, Transport, msg_type};

/// Tells the child which instance to serve.
const INSTANCE: &str = "LAPCE_IPC_TEST_INSTANCE";
/// Never answered.
const SILENT: u16 = 0x0100;
/// Keeps the worker from reading for as long as any test takes.
const BLOCKS: u16 = 0x0101;

/// A server in a process of its own; killed when dropped.
struct Process(Child);

impl Process {
    fn start(instance: &str) -> Process {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["client::tests::killed::serve_until_killed", "--exact"])
            .args(["--ignored", "--nocapture"])
            .env(INSTANCE, instance)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the process that other tests kill"]
fn serve_until_killed() {
    let Ok(instance) = std::env::var(INSTANCE) else {
        return;
    };
    let _server = Server::builder()
        .workers(1)
        .shm(instance)
        .handler(SILENT, |_, responder: Responder<'_>| {
            std::mem::forget(responder.detach());
        })
        .handler(BLOCKS, |_, _: Responder<'_>| {
            std::thread::sleep(Duration::from_secs(60))
        })
        .start()
        .unwrap();
    // Longer than any test that forgets to kill it.
    std::thread::sleep(Duration::from_secs(60));
}

/// Connects as soon as the server is there.
fn connect(instance: &str, idle: IdleMode) -> Client {
    let begin = Instant::now();
    loop {
        let builder = Client::builder()
            .idle(idle)
            .timeout(Duration::from_secs(20));
        match builder.connect(&format!("shm:{instance}")) {
            Ok(client) => return client,
            Err(Error::SharedMemory(_)) if begin.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_killed_server_is_noticed_and_its_successor_found() {
    let instance = format!("killed_test_{}", std::process::id());
    let mut server = Process::start(&instance);
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let client = connect(&instance, idle);
        let idle_client = connect(&instance, idle);
        client.ping().unwrap();
        let waits_for = client.submit(SILENT, b"").unwrap();
        client.flush().unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            server.kill();
        });
        // Not a timeout.
        let error = client.wait(waits_for).unwrap_err();
        let lost = matches!(
            error,
            Error::ConnectionLost {
                may_have_run: true,
                ..
            }
        );
        assert!(lost, "{error}");
        killer.join().unwrap();
        assert!(!client.is_connected() && !idle_client.is_connected());

        server = Process::start(&instance);
        for client in [client, idle_client] {
            // Sent only once there is somebody to send it to.
            assert_eq!(client.call(msg_type::ECHO, b"back").unwrap(), b"back");
            assert_eq!(client.transport(), Transport::Shm);
            assert_eq!(client.stats().reconnects, 1);
        }
    }
    server.kill();
    // The next server takes the dead one's name, and takes it away when it ends.
    let path = format!("/dev/shm/lapce_ipc_v2_{instance}_control");
    assert!(std::fs::exists(&path).unwrap());
    Server::builder()
        .workers(1)
        .shm(instance)
        .start()
        .unwrap()
        .stop();
    assert!(!std::fs::exists(&path).unwrap());
}

/// Of a message that is longer than the ring, the first bytes were sent when the server died. Nobody
/// can have acted on them, so all of it goes to the successor.
#[test]
fn a_message_half_sent_to_a_killed_server_reaches_its_successor() {
    let instance = format!("killed_half_test_{}", std::process::id());
    let mut server = Process::start(&instance);
    for idle in [IdleMode::Spin, IdleMode::Park] {
        let client = connect(&instance, idle);
        let blocks = client.submit(BLOCKS, b"").unwrap();
        client.flush().unwrap();
        let replaced = std::thread::spawn({
            let instance = instance.clone();
            move || {
                std::thread::sleep(Duration::from_millis(50));
                server.kill();
                std::thread::sleep(Duration::from_millis(20));
                Process::start(&instance)
            }
        });
        let sent: Vec<u8> = (0..1_000_000u32).map(|at| (at / 3) as u8).collect();
        assert!(client.call(msg_type::ECHO, &sent).unwrap() == sent);
        assert_eq!(client.stats().reconnects, 1);
        let error = client.wait(blocks).unwrap_err();
        let lost = matches!(
            error,
            Error::ConnectionLost {
                may_have_run: true,
                ..
            }
        );
        assert!(lost, "{error}");
        server = replaced.join().unwrap();
    }
    server.kill();
    let _ = std::fs::remove_file(format!("/dev/shm/lapce_ipc_v2_{instance}_control"));
}
