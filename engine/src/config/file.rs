//! The configuration file: TOML in, checked settings out, and back.

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use super::{BadLimit, ConfigError, IdleMode, Limits, address, token};
use crate::shm::WORKERS_MAX;
use crate::wire::is_instance_name;

/// The daemon's configuration. The defaults are those of a daemon without a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The TCP address to listen on, HOST:PORT.
    pub bind_address: String,
    /// Worker threads, at most 16. 0: half of the CPUs that the process may use.
    pub workers: usize,
    /// How idle workers wait.
    pub idle: IdleMode,
    /// Whether version 1 clients are served.
    pub legacy: bool,
    /// Whether shared memory is offered.
    pub shm_enabled: bool,
    /// The name of this server's shared memory among several servers on the machine; empty for the default.
    pub shm_instance: String,
    /// The address on which metrics are served over HTTP, HOST:PORT; empty: they are not.
    pub metrics_bind_address: String,
    /// Limits on what peers can use.
    pub limits: Limits,
    /// The file that holds the auth token; empty: none is asked for.
    pub auth_token_file: String,
    /// The token in that file.
    pub auth_token: Option<Vec<u8>>,
    /// Lines for the log: what is missing in the file and assumed, and what may not be meant.
    pub notices: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            bind_address: "127.0.0.1:8080".into(),
            workers: 0,
            idle: IdleMode::Adaptive,
            legacy: false,
            shm_enabled: true,
            shm_instance: String::new(),
            metrics_bind_address: "127.0.0.1:9090".into(),
            limits: Limits::default(),
            auth_token_file: String::new(),
            auth_token: None,
            notices: Vec::new(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    server: ServerSection,
    compatibility: Option<CompatibilitySection>,
    shm: ShmSection,
    metrics: MetricsSection,
    limits: LimitsSection,
    security: SecuritySection,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ServerSection {
    bind_address: Option<String>,
    protocol_version: Option<i64>,
    workers: Option<usize>,
    idle: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct CompatibilitySection {
    enable_legacy_support: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ShmSection {
    enabled: Option<bool>,
    instance: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MetricsSection {
    bind_address: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LimitsSection {
    max_message_bytes: Option<u32>,
    max_connections: Option<u32>,
    drain_ms: Option<u64>,
    max_inflight_per_connection: Option<u32>,
    max_buffered_bytes: Option<u64>,
    send_stall_ms: Option<u64>,
    frame_timeout_ms: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct SecuritySection {
    auth_token_file: Option<String>,
}

/// A HANDSHAKE of up to this length should fit into `max_message_bytes`.
const HANDSHAKE_BYTES: u32 = 1024;

impl Config {
    /// Reads a file, and the token file that it names.
    ///
    /// # Errors
    /// A file that cannot be read or a setting that cannot be used, with its line.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| {
            let link = std::fs::read_link(path);
            let link = link.map_or_else(
                |_| String::new(),
                |target| format!(" (it is a link to {})", target.display()),
            );
            ConfigError::new(&name, format!("cannot be read{link}: {error}"))
        })?;
        let text =
            String::from_utf8(bytes).map_err(|error| ConfigError::not_utf8(&error, &name))?;
        let mut config = Config::parse(&text, &name)?;
        config.load_token(&text, &name)?;
        Ok(config)
    }

    /// Reads the text of a file; `name` is what messages call the file. The token file is not read.
    ///
    /// # Errors
    /// A setting that cannot be used, with its line.
    pub fn parse(text: &str, name: &str) -> Result<Config, ConfigError> {
        let file: File =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, name))?;
        let at = |key: &str, problem: String| Err(ConfigError::at_key(name, text, key, problem));
        let mut config = Config::default();

        if let Some(address) = file.server.bind_address {
            config.bind_address = address;
        }
        let listens = match address::resolve(&config.bind_address) {
            Ok(listens) => listens,
            Err(problem) => return at("server.bind_address", problem),
        };
        match file.server.protocol_version {
            Some(2) => {}
            Some(1) => {
                return at(
                    "server.protocol_version",
                    "1 is not spoken natively: leave it at 2, and serve old clients with enable_legacy_support = true under [compatibility]".into(),
                );
            }
            Some(other) => {
                return at(
                    "server.protocol_version",
                    format!("{other} is no version of the protocol: 2 is the only one"),
                );
            }
            None => config.notices.push(format!(
                "{name}: [server] protocol_version is missing: 2 is assumed (lapce-ipc migrate-config adds it)"
            )),
        }
        if let Some(workers) = file.server.workers {
            if workers > WORKERS_MAX {
                return at(
                    "server.workers",
                    format!("{workers} is too many: use 0 to {WORKERS_MAX}"),
                );
            }
            config.workers = workers;
        }
        if let Some(idle) = file.server.idle {
            config.idle = match idle.parse() {
                Ok(idle) => idle,
                Err(error) => return at("server.idle", format!("{error}")),
            };
        }
        match file.compatibility {
            Some(section) => config.legacy = section.enable_legacy_support.unwrap_or(false),
            None => config.notices.push(format!(
                "{name}: [compatibility] is missing: enable_legacy_support = false is assumed, so version 1 clients are refused"
            )),
        }
        config.shm_enabled = file.shm.enabled.unwrap_or(config.shm_enabled);
        if let Some(instance) = file.shm.instance {
            if !is_instance_name(&instance) {
                return at(
                    "shm.instance",
                    format!(
                        "`{instance}` cannot be part of a file name: use at most 64 letters, digits, `_`, `-` and `.`"
                    ),
                );
            }
            config.shm_instance = instance;
        }
        let metrics_are_set = file.metrics.bind_address.is_some();
        if let Some(address) = file.metrics.bind_address {
            config.metrics_bind_address = address;
        }
        if !config.metrics_bind_address.is_empty() {
            match address::resolve(&config.metrics_bind_address) {
                Ok(metrics) if address::collide(&listens, &metrics) => {
                    // The line at fault is the one that is in the file.
                    return match metrics_are_set {
                        true => at(
                            "metrics.bind_address",
                            format!(
                                "{} is server.bind_address too: choose another port for one of them, or \"\" for no metrics",
                                config.metrics_bind_address
                            ),
                        ),
                        false => at(
                            "server.bind_address",
                            format!(
                                "{} is where metrics are served if metrics.bind_address is not set: choose another port for one of them, or metrics.bind_address = \"\" for no metrics",
                                config.bind_address
                            ),
                        ),
                    };
                }
                Ok(_) => {}
                Err(problem) => return at("metrics.bind_address", problem),
            }
        }
        config.limits = limits(&file.limits, name, text)?;
        if config.limits.max_message_bytes < HANDSHAKE_BYTES {
            config.notices.push(format!(
                "{name}: limits.max_message_bytes is {}: a HANDSHAKE of up to {HANDSHAKE_BYTES} bytes, with which most clients begin, may be refused with TOO_LARGE",
                config.limits.max_message_bytes
            ));
        }
        config.auth_token_file = file.security.auth_token_file.unwrap_or_default();
        if config.auth_token_file.is_empty()
            && let Err(problem) = address::check_loopback(&config.bind_address, &listens)
        {
            return at("server.bind_address", problem);
        }
        Ok(config)
    }

    fn load_token(&mut self, text: &str, name: &str) -> Result<(), ConfigError> {
        if self.auth_token_file.is_empty() {
            return Ok(());
        }
        let (token, notices) =
            token::load(&self.auth_token_file, &self.limits).map_err(|problem| {
                ConfigError::at_key(name, text, "security.auth_token_file", problem)
            })?;
        self.notices.extend(notices);
        self.auth_token = Some(token);
        Ok(())
    }
}

fn limits(section: &LimitsSection, name: &str, text: &str) -> Result<Limits, ConfigError> {
    let usual = Limits::default();
    let mut limits = Limits {
        max_message_bytes: section.max_message_bytes.unwrap_or(usual.max_message_bytes),
        max_connections: section.max_connections.unwrap_or(usual.max_connections),
        drain_ms: section.drain_ms.unwrap_or(usual.drain_ms),
        max_inflight_per_connection: section
            .max_inflight_per_connection
            .unwrap_or(usual.max_inflight_per_connection),
        send_stall_ms: section.send_stall_ms.unwrap_or(usual.send_stall_ms),
        frame_timeout_ms: section.frame_timeout_ms.unwrap_or(usual.frame_timeout_ms),
        ..usual
    };
    limits.max_buffered_bytes = section
        .max_buffered_bytes
        .unwrap_or_else(|| limits.max_buffered_bytes.max(limits.buffered_bytes_min()));
    match limits.check() {
        Ok(()) => Ok(limits),
        Err(BadLimit {
            name: limit,
            problem,
        }) => Err(ConfigError::at_key(
            name,
            text,
            &format!("limits.{limit}"),
            problem,
        )),
    }
}

impl fmt::Display for Config {
    /// As a file that has the same effect.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let limits = &self.limits;
        writeln!(f, "[server]")?;
        writeln!(f, "bind_address = {}", text(&self.bind_address))?;
        writeln!(f, "protocol_version = 2")?;
        writeln!(f, "workers = {}", self.workers)?;
        writeln!(f, "idle = \"{}\"", self.idle)?;
        writeln!(
            f,
            "\n[compatibility]\nenable_legacy_support = {}",
            self.legacy
        )?;
        writeln!(f, "\n[shm]\nenabled = {}", self.shm_enabled)?;
        writeln!(f, "instance = {}", text(&self.shm_instance))?;
        writeln!(
            f,
            "\n[metrics]\nbind_address = {}",
            text(&self.metrics_bind_address)
        )?;
        writeln!(
            f,
            "\n[limits]\nmax_message_bytes = {}",
            limits.max_message_bytes
        )?;
        writeln!(f, "max_connections = {}", limits.max_connections)?;
        writeln!(f, "drain_ms = {}", limits.drain_ms)?;
        writeln!(
            f,
            "max_inflight_per_connection = {}",
            limits.max_inflight_per_connection
        )?;
        writeln!(f, "max_buffered_bytes = {}", limits.max_buffered_bytes)?;
        writeln!(f, "send_stall_ms = {}", limits.send_stall_ms)?;
        writeln!(f, "frame_timeout_ms = {}", limits.frame_timeout_ms)?;
        write!(
            f,
            "\n[security]\nauth_token_file = {}",
            text(&self.auth_token_file)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "test.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn the_guides_file() {
        let config = parse(
            "# /etc/lapce-ipc.toml\n[server]\nbind_address = \"127.0.0.1:8080\"\nprotocol_version = 2  # New field\n\n[compatibility]\nenable_legacy_support = false  # Set to true for gradual migration\n",
        );
        assert_eq!(config.unwrap(), Config::default());
    }

    #[test]
    fn an_old_file_is_read_with_notices() {
        let config = parse("[server]\nbind_address = \"127.0.0.1:8081\"\n").unwrap();
        assert_eq!(config.bind_address, "127.0.0.1:8081");
        assert_eq!(config.notices.len(), 2);
        assert!(config.notices[0].contains("protocol_version"));
        assert!(config.notices[1].contains("[compatibility]"));
    }

    #[test]
    fn a_limit_that_may_lock_clients_out_is_told() {
        let notices = |bytes: u32| {
            let text = format!(
                "[server]\nprotocol_version = 2\n[compatibility]\n[limits]\nmax_message_bytes = {bytes}\n"
            );
            parse(&text).unwrap().notices
        };
        assert_eq!(notices(1024).len(), 0);
        assert!(notices(1023)[0].contains("limits.max_message_bytes is 1023"));
    }

    #[test]
    fn what_is_shown_reads_back() {
        let mut config = parse(
            "[server]\nprotocol_version=2\nidle=\"park\"\nworkers=3\n[compatibility]\nenable_legacy_support=true\n[shm]\ninstance=\"a\"\n[limits]\ndrain_ms=7\n",
        )
        .unwrap();
        let back = parse(&config.to_string()).unwrap();
        config.notices.clear();
        assert_eq!(back, config);
        assert_eq!(
            parse(&Config::default().to_string()).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn a_fault_of_the_token_names_line_and_key() {
        let mut config = Config {
            auth_token_file: "/dev/null".into(),
            ..Config::default()
        };
        let text = "[security]\nauth_token_file = \"/dev/null\"\n";
        let error = config.load_token(text, "test.toml").unwrap_err();
        let said = error.to_string();
        let expected = "test.toml:2: security.auth_token_file: /dev/null holds no token";
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn faults_name_file_line_key_and_remedy() {
        for (text, expected) in [
            (
                "[server]\nbind_adress = \"x\"\n",
                &["test.toml:2", "bind_adress", "bind_address"][..],
            ),
            ("[limit]\n", &["test.toml:1", "limit", "limits"]),
            (
                "[server]\nprotocol = 2\n",
                &["test.toml:2: server.protocol", "`protocol_version`"],
            ),
            (
                "[limits]\n\nmax_connections = \"many\"\n",
                &["test.toml:3", "limits.max_connections", "a whole number"],
            ),
            (
                "[shm]\nenabled = \"yes\"\n",
                &["test.toml:2", "shm.enabled", "true or false"],
            ),
            (
                "[[server]]\nworkers = 1\n",
                &["test.toml:1", "server", "a section"],
            ),
            (
                "[server]\nmax_connections = 1\n",
                &["test.toml:2", "server.max_connections", "under [limits]"],
            ),
            (
                "bind_address = \"127.0.0.1:1\"\n",
                &["test.toml:1", "bind_address", "[metrics]", "[server]"],
            ),
            (
                "[server]\nbind_address = \"256.1.1.1:80\"\n",
                &["test.toml:2", "leads nowhere"],
            ),
            (
                "[limits]\nframe_timeout_ms = 0\n",
                &["test.toml:2", "limits.frame_timeout_ms", "at least 1"],
            ),
            (
                "[limits]\nmax_connections = 0\n",
                &["test.toml:2", "limits.max_connections"],
            ),
            (
                "[server]\nprotocol_version = 1\n",
                &["test.toml:2", "server.protocol_version", "[compatibility]"],
            ),
            (
                "[server]\nprotocol_version = 3\n",
                &["test.toml:2", "3 is no version"],
            ),
            (
                "[server]\nidle = \"sleepy\"\n",
                &["test.toml:2", "spin, adaptive or park"],
            ),
            (
                "[server]\nbind_address = \"0.0.0.0:80\"\n",
                &["auth_token_file"],
            ),
            (
                "[server]\nbind_address = \"here\"\n",
                &["test.toml:2", "HOST:PORT"],
            ),
            (
                "[metrics]\nbind_address = \"http://127.0.0.1:9090\"\n",
                &["test.toml:2", "metrics.bind_address", "HOST:PORT"],
            ),
            (
                "[server]\nbind_address = \"127.0.0.1:81\"\n[metrics]\nbind_address = \"127.0.0.1:81\"\n",
                &["test.toml:4", "metrics.bind_address", "another port"],
            ),
            (
                "[server]\nbind_address = \"127.0.0.1:9090\"\n",
                &[
                    "test.toml:2: server.bind_address",
                    "metrics.bind_address",
                    "another port",
                ],
            ),
            (
                "[server]\nbind_address = \"\"\"127.0.0.1:80\nerror: \"\"\"\n",
                &["test.toml:2", "`127.0.0.1:80\\nerror: ` is not HOST:PORT"],
            ),
            ("[server]\nworkers = 17\n", &["test.toml:2", "0 to 16"]),
            ("[server]\nworkers = -1\n", &["test.toml:2", "workers"]),
            (
                "[limits]\nmax_message_bytes = 4294967296\n",
                &["test.toml:2: limits.max_message_bytes: 4294967296 is too great"],
            ),
            (
                "[limits]\ndrain_ms = 99999999999999999999\n",
                &["test.toml:2: limits.drain_ms: 99999999999999999999 is too great"],
            ),
            (
                "[shm]\ninstance = \"a/b\"\n",
                &["test.toml:2", "shm.instance"],
            ),
            ("[server\n", &["test.toml:1"]),
            (
                "[server]\nbind_address = 127.0.0.1:8080\n",
                &["test.toml:2: server.bind_address: "],
            ),
            (
                "[limits]\ndrain_ms = 1\nmax_connections =\n",
                &["test.toml:3: limits.max_connections: "],
            ),
            (
                "[server]\nidle = \"spin\"\nidle = \"park\"\n",
                &["test.toml:3", "`idle` is there twice"],
            ),
            (
                "[server]\n[shm]\n[server]\n",
                &["test.toml:3", "`server` is there twice"],
            ),
            (
                "\nserver.workers = 17\n",
                &["test.toml:2", "server.workers", "0 to 16"],
            ),
            (
                "\nlimits = { max_connections = 9, drain_ms = 99999999999 }\n",
                &["test.toml:2", "limits.drain_ms", "a day"],
            ),
            (
                "[ \"limits\" ] # here\n\n'frame_timeout_ms' = 0\n",
                &["test.toml:3", "limits.frame_timeout_ms", "at least 1"],
            ),
            (
                "\nshm.enabled = \"yes\"\n",
                &["test.toml:2", "shm.enabled", "true or false"],
            ),
            (
                "\nserver = { wrokers = 1 }\n",
                &["test.toml:2", "server.wrokers", "`workers`"],
            ),
            ("server = 5\n", &["test.toml:1: server:", "a section"]),
            (
                "[server]\nworkers = [\n1]\n",
                &["test.toml:2", "server.workers", "a whole number"],
            ),
            (
                "[limits]\nmax_buffered_bytes = 1\n",
                &["test.toml:2", "max_buffered_bytes"],
            ),
        ] {
            let error = parse(text).expect_err(text);
            for part in expected {
                assert!(error.contains(part), "{text:?}: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
