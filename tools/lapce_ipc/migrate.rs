//! `lapce-ipc migrate-config`: an old configuration as this version reads it, the user's comments
//! and order kept.

mod unknown;

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use lapce_ai::ipc::Config;
use toml_edit::{DocumentMut, Item, RawString, Table, TableLike, Value, value};

use crate::output::complain;
use crate::{Failure, print};

pub fn run(old: &Path, output: Option<&Path>) -> Result<(), Failure> {
    let failed = |text: String| Failure::Failed(text);
    let cannot_read =
        |error: std::io::Error| failed(format!("{} cannot be read: {error}", old.display()));
    let text = std::fs::read_to_string(old).map_err(cannot_read)?;
    let meta = std::fs::metadata(old).map_err(cannot_read)?;
    let (new, changes) =
        migrate(&text).map_err(|error| failed(format!("{}: {error}", old.display())))?;
    if let Some(output) = output
        && is_same_file(old, output)
    {
        return Err(Failure::Usage(format!(
            "{} is the old file, which stays as it is: name another one",
            output.display()
        )));
    }
    for change in changes {
        complain(&change);
    }
    let name = match output {
        None => {
            print(&new)?;
            "standard output".to_owned()
        }
        Some(output) => {
            write(output, &new, &meta).map_err(|error| {
                failed(format!("{} cannot be written: {error}", output.display()))
            })?;
            output.display().to_string()
        }
    };
    // What is wrong besides stays for the user to decide.
    Config::parse(&new, &name).map(drop).map_err(|error| {
        failed(format!(
            "it was migrated, but the server will not start with it before this is mended: {error}"
        ))
    })
}

/// Writes the new file. One that is made now gets the old one's mode, and is removed if it cannot be written whole.
fn write(output: &Path, text: &str, old: &Metadata) -> std::io::Result<()> {
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(output);
    match made {
        Ok(mut file) => {
            let written = match old.is_file() {
                true => file.set_permissions(old.permissions()),
                false => Ok(()),
            }
            .and_then(|()| file.write_all(text.as_bytes()));
            if written.is_err() {
                std::fs::remove_file(output)?;
            }
            written
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            File::create(output)?.write_all(text.as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// Whether both names lead to one file, by whatever links.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// The new text, and what was changed.
fn migrate(text: &str) -> Result<(String, Vec<String>), String> {
    let (mut document, mut changes) =
        unknown::leave_out(text).map_err(|error| error.to_string().trim().replace('\n', " "))?;
    let server = section(&mut document, "server")?;
    match server.get_mut("protocol_version") {
        Some(Item::Value(Value::Integer(version))) if *version.value() == 2 => {}
        Some(Item::Value(version)) => {
            let decor = std::mem::take(version.decor_mut());
            changes.push(format!("server.protocol_version: {version} became 2"));
            *version = Value::from(2);
            *version.decor_mut() = decor;
        }
        _ => {
            server.insert("protocol_version", value(2));
            changes.push("server.protocol_version = 2 was added".into());
        }
    }
    let compatibility = section(&mut document, "compatibility")?;
    if !compatibility.contains_key("enable_legacy_support") {
        compatibility.insert("enable_legacy_support", value(false));
        changes.push("compatibility.enable_legacy_support = false was added".into());
    }
    for (number, line) in text.lines().enumerate() {
        if line.contains("lapce_ipc_")
            && !line.contains("lapce_ipc_v2_")
            && line.contains("/dev/shm")
        {
            changes.push(format!(
                "line {} of the old file: segments are called /dev/shm/lapce_ipc_v2_* now: `{}`",
                number + 1,
                line.trim()
            ));
        }
    }
    Ok((document.to_string(), changes))
}

/// The section of that name, made behind all others if there is none.
fn section<'a>(document: &'a mut DocumentMut, name: &str) -> Result<&'a mut dyn TableLike, String> {
    if !document.contains_key(name) {
        let mut table = Table::new();
        // The comments at the end stay where they are, which is above it then.
        let comments = document.trailing().as_str().unwrap_or_default().to_owned();
        if !comments.trim().is_empty() {
            document.set_trailing(RawString::default());
            let comments = comments.trim_end_matches(['\r', '\n']);
            table.decor_mut().set_prefix(format!("{comments}\n\n"));
        }
        document.insert(name, Item::Table(table));
    }
    document[name]
        .as_table_like_mut()
        .ok_or_else(|| format!("`{name}` is no section"))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn comments_and_order_are_kept() {
        let old = "# my server\n[server]\nbind_address = \"127.0.0.1:8081\" # chosen by Ann\n\n[limits] # small\nmax_connections = 5\n";
        let (new, changes) = migrate(old).unwrap();
        assert_eq!(
            new,
            "# my server\n[server]\nbind_address = \"127.0.0.1:8081\" # chosen by Ann\nprotocol_version = 2\n\n[limits] # small\nmax_connections = 5\n\n[compatibility]\nenable_legacy_support = false\n"
        );
        assert_eq!(changes.len(), 2);
        let config = Config::parse(&new, "new").unwrap();
        assert!(config.notices.is_empty());
        assert_eq!(
            (config.bind_address.as_str(), config.limits.max_connections),
            ("127.0.0.1:8081", 5)
        );
    }

    #[test]
    fn what_is_not_known_is_left_out_and_told() {
        let old = "log_level = \"debug\"\n[server]\nbind_address = \"127.0.0.1:1\"\nthreads = 4 # fast\n\n[tls]\nkey = \"x\"\n";
        let (new, changes) = migrate(old).unwrap();
        for (unknown, value) in [
            ("log_level", "debug"),
            ("server.threads", "4"),
            ("tls", "key"),
        ] {
            let told = |change: &String| change.starts_with(unknown) && change.contains(value);
            assert!(changes.iter().any(told), "{unknown}: {changes:?}");
        }
        assert_eq!(
            Config::parse(&new, "new").unwrap().bind_address,
            "127.0.0.1:1"
        );
    }

    #[test]
    fn the_version_is_changed_where_it_stands() {
        let (new, changes) =
            migrate("[server]\n# the old one\nprotocol_version = 1 # set by Ann\n").unwrap();
        let kept = "[server]\n# the old one\nprotocol_version = 2 # set by Ann\n";
        assert!(new.starts_with(kept), "{new}");
        assert_eq!(changes[0], "server.protocol_version: 1 became 2");
        let (new, changes) = migrate("[server]\nprotocol_version = \"1\" # c\n").unwrap();
        assert!(
            new.starts_with("[server]\nprotocol_version = 2 # c\n"),
            "{new}"
        );
        assert_eq!(changes[0], "server.protocol_version: \"1\" became 2");
    }

    #[test]
    fn comments_at_the_top_stay_there() {
        for (old, top) in [
            ("# team X\n# keep\n", "# team X\n# keep\n\n[server]\n"),
            ("# team X\n\nfoo = 1\n[server]\n", "# team X\n\n[server]\n"),
            (
                "# team X\n[foo]\nx = 1\n",
                "# team X\n\n[server]\nprotocol_version",
            ),
            (
                "[server]\nprotocol_version = 2\n# end",
                "[server]\nprotocol_version = 2\n# end\n\n[compatibility]\n",
            ),
        ] {
            let (new, _) = migrate(old).unwrap();
            assert!(new.starts_with(top), "{new}");
            Config::parse(&new, "new").unwrap();
        }
    }

    #[test]
    fn sections_may_be_written_in_one_line() {
        let (new, _) = migrate("server = { bind_address = \"127.0.0.1:5\" }\n").unwrap();
        let config = Config::parse(&new, "new").unwrap();
        assert_eq!(config.bind_address, "127.0.0.1:5");
        assert!(config.notices.is_empty());
    }

    #[test]
    fn a_new_file_stays_as_it_is() {
        let text = format!("{}\n", Config::default());
        assert_eq!(migrate(&text).unwrap(), (text, vec![]));
    }

    #[test]
    fn the_old_file_stays_as_it_is_by_whatever_name() {
        let folder = std::env::temp_dir().join(format!("lapce-ipc-migrate-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let (old, new) = (folder.join("old.toml"), folder.join("new.toml"));
        let (hard, soft) = (folder.join("hard.toml"), folder.join("soft.toml"));
        let text = "[server]\nprotocol_version = 1\n";
        std::fs::write(&old, text).unwrap();
        std::fs::hard_link(&old, &hard).unwrap();
        std::os::unix::fs::symlink(&old, &soft).unwrap();
        let refused = [&old, &hard, &soft].map(|name| run(&old, Some(name)).is_err());
        std::fs::set_permissions(&old, Permissions::from_mode(0o640)).unwrap();
        let written = run(&old, Some(&new)).is_ok();
        let mode = std::fs::metadata(&new).unwrap().mode() & 0o7777;
        let left = std::fs::read_to_string(&old).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!((refused, written, mode), ([true; 3], true, 0o640));
        assert_eq!(left, text);
    }

    #[test]
    fn what_is_no_toml_is_refused() {
        assert!(migrate("[server").is_err());
        assert!(migrate("server = 1").is_err());
    }
}
