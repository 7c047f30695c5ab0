//! Where a server is.

use super::Error;
use crate::wire::is_instance_name;

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// HOST:PORT.
    Tcp(String),
    /// `shm:` or `shm:INSTANCE`; the default instance has no name.
    Shm(String),
}

impl Address {
    pub(crate) fn parse(address: &str) -> Result<Address, Error> {
        let invalid = |reason| Error::InvalidAddress {
            address: address.to_owned(),
            reason,
        };
        if let Some(instance) = address.strip_prefix("shm:") {
            return match is_instance_name(instance) {
                true => Ok(Address::Shm(instance.to_owned())),
                false => Err(invalid(
                    "an instance's name has at most 64 letters, digits, `_`, `-` and `.`",
                )),
            };
        }
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Address::Tcp(address.to_owned()))
            }
            Some(("", _)) => Err(invalid("the host is missing")),
            Some(_) => Err(invalid("the port is no number from 0 to 65535")),
            None => Err(invalid("the port is missing")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Shm(instance) => write!(f, "shm:{instance}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        let shm = |text: &str| Address::Shm(text.to_owned());
        for (text, address) in [
            ("127.0.0.1:8080", tcp("127.0.0.1:8080")),
            ("[::1]:80", tcp("[::1]:80")),
            ("localhost:1", tcp("localhost:1")),
            ("shm:", shm("")),
            ("shm:a", shm("a")),
        ] {
            assert_eq!(Address::parse(text).unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "localhost",
            ":80",
            "host:",
            "host:99999",
            "host:x",
            "shm:a/b",
            "shm:ä",
        ] {
            assert!(
                matches!(Address::parse(text), Err(Error::InvalidAddress { .. })),
                "{text}"
            );
        }
    }
}
