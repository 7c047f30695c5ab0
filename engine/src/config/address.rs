//! Addresses to listen on.

use std::net::{SocketAddr, ToSocketAddrs};

use crate::sys::socket;

/// What `HOST:PORT` leads to, or what is wrong with it.
pub(super) fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let bad = || format!("`{address}` is not HOST:PORT, 127.0.0.1:8080 for example");
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    // Those of names and of addresses, [::1%eth0] too.
    let is_of_hosts = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if host.is_empty() || !host.chars().all(is_of_hosts) || !is_port {
        return Err(bad());
    }
    address
        .to_socket_addrs()
        .map(Iterator::collect)
        .map_err(|error| format!("{address} leads nowhere: {error}"))
}

/// Refuses what other machines can reach.
pub(super) fn check_loopback(address: &str, leads_to: &[SocketAddr]) -> Result<(), String> {
    match leads_to.iter().all(|to| socket::is_loopback(to.ip())) {
        true => Ok(()),
        false => Err(format!(
            "{address} can be reached from other machines: set auth_token_file under [security], or listen on 127.0.0.1"
        )),
    }
}

/// Whether both cannot be listened on at a time, as far as that is certain: what `[::]` takes of IPv4 is for the
/// system to decide.
pub(super) fn collide(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    // Of several the first is taken.
    let (Some(one), Some(other)) = (one.first(), other.first()) else {
        return false;
    };
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    let same_host = one.ip() == other.ip() || any && one.is_ipv4() == other.is_ipv4();
    // Port 0 is any free one.
    one.port() != 0 && one.port() == other.port() && same_host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_what_is_none() {
        for good in [
            "127.0.0.1:0",
            "localhost:80",
            "[::1]:65535",
            "0.0.0.0:1",
            "[::]:1",
        ] {
            resolve(good).unwrap_or_else(|problem| panic!("{problem}"));
        }
        for bad in [
            "",
            "127.0.0.1",
            ":80",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0.1:+1",
            "http://127.0.0.1:80",
            "*:80",
            " 127.0.0.1:80",
            "127.0.0.1:80 ",
        ] {
            let said = resolve(bad).unwrap_err();
            assert!(said.contains("is not HOST:PORT"), "{said}");
        }
        assert!(
            resolve("256.0.0.1:80")
                .unwrap_err()
                .contains("leads nowhere")
        );
    }

    #[test]
    fn one_port_is_for_one_listener() {
        let collide = |one, other| collide(&resolve(one).unwrap(), &resolve(other).unwrap());
        assert!(collide("127.0.0.1:80", "127.0.0.1:80"));
        assert!(collide("127.0.0.1:80", "0.0.0.0:80"));
        assert!(collide("[::]:80", "[::1]:80"));
        assert!(!collide("0.0.0.0:80", "[::1]:80"));
        assert!(!collide("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!collide("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!collide("127.0.0.1:0", "127.0.0.1:0"));
    }
}
