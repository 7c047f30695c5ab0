//! More clients than a worker looks at in every round, and whose pages come back.

use std::time::{Duration, Instant};

use super::instance;
use super::scene::PATIENCE;
use crate::client::Client;
use crate::config::IdleMode;
use crate::server::Server;
use crate::wire::msg_type;

const CLIENTS: usize = 200;

fn client(instance: &str) -> Client {
    Client::connect(&format!("shm:{instance}")).unwrap()
}

fn call(client: &Client, number: usize) {
    let payload = number.to_le_bytes();
    assert_eq!(client.call(msg_type::ECHO, &payload).unwrap(), payload);
}

/// Mappings of the instance's segments in this process that have pages.
fn resident_mappings(instance: &str) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut of_ours = false;
    let mut count = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            // The control segment stays.
            of_ours = line.contains(instance) && !line.contains("control");
        } else if of_ours && first == "Rss:" && !line.contains(" 0 kB") {
            count += 1;
        }
    }
    count
}

/// Clients in turn, of whom some leave and others come; then all are silent but one.
fn in_turn(idle: IdleMode) {
    let instance = instance();
    let server = Server::builder().idle(idle).shm(&instance).start().unwrap();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| client(&instance)).collect();
    for round in 0..40 {
        // Few at a time, then more than are kept warm.
        let active = [20, 60, 120, CLIENTS][round % 4];
        for index in 0..active {
            call(&clients[(index * 7 + round) % CLIENTS], round);
        }
        for index in 0..5 {
            clients[(round * 11 + index * 31) % CLIENTS] = client(&instance);
        }
    }
    // The clients' own mappings keep theirs, once for each; of the server's there is one left.
    let start = Instant::now();
    loop {
        call(&clients[0], 1);
        let resident = resident_mappings(&instance);
        // And of those that got cold before they were a crowd.
        if resident <= CLIENTS + 64 {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{resident} have pages");
        std::thread::sleep(Duration::from_millis(20));
    }
    for client in &clients {
        call(client, 2);
    }
    drop(clients);
    server.stop();
}

#[test]
fn a_crowd_in_turn_beside_a_worker_that_spins() {
    in_turn(IdleMode::Spin);
}

#[test]
fn a_crowd_in_turn_beside_a_worker_that_sleeps() {
    in_turn(IdleMode::Park);
}
