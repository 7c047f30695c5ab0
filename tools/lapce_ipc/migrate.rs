//! `lapce-ipc migrate-config`: an old configuration as this version reads it, the user's comments
//! and order kept.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lapce_ai::ipc::Config;
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use crate::output::complain;
use crate::{Failure, print};

pub fn run(old: &Path, output: Option<&Path>) -> Result<(), Failure> {
    let failed = |text: String| Failure::Failed(text);
    let text = std::fs::read_to_string(old)
        .map_err(|error| failed(format!("{} cannot be read: {error}", old.display())))?;
    let (new, changes) =
        migrate(&text).map_err(|error| failed(format!("{}: {error}", old.display())))?;
    let name = old.display().to_string();
    if let Err(error) = Config::parse(&new, &name) {
        // What is wrong besides stays for the user to decide, but is told.
        complain(&format!("note: after migration, {error}"));
    }
    for change in changes {
        complain(&change);
    }
    match output {
        None => print(&new)?,
        Some(output) => {
            if is_same_file(old, output) {
                return Err(Failure::Usage(format!(
                    "{} is the old file, which stays as it is: name another one",
                    output.display()
                )));
            }
            std::fs::write(output, new).map_err(|error| {
                failed(format!("{} cannot be written: {error}", output.display()))
            })?;
        }
    }
    Ok(())
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
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.to_string().trim().replace('\n', " "))?;
    let mut changes = Vec::new();
    let server = section(&mut document, "server")?;
    match server.get("protocol_version").and_then(Item::as_integer) {
        Some(2) => {}
        Some(old) => {
            server.insert("protocol_version", value(2));
            changes.push(format!("server.protocol_version: {old} became 2"));
        }
        None => {
            server.insert("protocol_version", value(2));
            changes.push("server.protocol_version = 2 was added".into());
        }
    }
    let compatibility = section(&mut document, "compatibility")?;
    if !compatibility.contains_key("enable_legacy_support") {
        compatibility.insert("enable_legacy_support", value(false));
        changes.push("compatibility.enable_legacy_support = false was added".into());
    }
    changes.extend(drop_unknown(&mut document));
    for (number, line) in text.lines().enumerate() {
        if line.contains("lapce_ipc_")
            && !line.contains("lapce_ipc_v2_")
            && line.contains("/dev/shm")
        {
            changes.push(format!(
                "line {}: segments are called /dev/shm/lapce_ipc_v2_* now: `{}`",
                number + 1,
                line.trim()
            ));
        }
    }
    Ok((document.to_string(), changes))
}

/// Takes away what this version does not know, which it would refuse. Says what.
fn drop_unknown(document: &mut DocumentMut) -> Vec<String> {
    let known: DocumentMut = Config::default().to_string().parse().expect("it is TOML");
    let mut unknown = Vec::new();
    for (section, item) in document.iter() {
        match (known.get(section), item.as_table_like()) {
            (Some(known), Some(keys)) => {
                let is_known = |key: &str| known.get(key).is_some();
                let keys = keys.iter().map(|(key, _)| key.to_owned());
                let keys = keys.filter(|key| !is_known(key));
                unknown.extend(keys.map(|key| (section.to_owned(), Some(key))));
            }
            (None, _) => unknown.push((section.to_owned(), None)),
            // Of the wrong kind: the user is told when it is read.
            (Some(_), None) => {}
        }
    }
    let mut changes = Vec::new();
    for (section, key) in unknown {
        let taken = match &key {
            Some(key) => document[&section]
                .as_table_like_mut()
                .and_then(|keys| keys.remove(key)),
            None => document.remove(&section),
        };
        let name = key.map_or(section.clone(), |key| format!("{section}.{key}"));
        let was = taken.map_or_else(String::new, |taken| taken.to_string());
        changes.push(format!(
            "{name} is not known to this version and was left out (it was: {})",
            was.trim().replace('\n', "; ")
        ));
    }
    changes
}

fn section<'a>(document: &'a mut DocumentMut, name: &str) -> Result<&'a mut dyn TableLike, String> {
    document
        .entry(name)
        .or_insert_with(|| Item::Table(Table::new()))
        .as_table_like_mut()
        .ok_or_else(|| format!("`{name}` is no section"))
}

#[cfg(test)]
mod tests {
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
        let written = run(&old, Some(&new)).is_ok();
        let left = std::fs::read_to_string(&old).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!((refused, written), ([true; 3], true));
        assert_eq!(left, text);
    }

    #[test]
    fn what_is_no_toml_is_refused() {
        assert!(migrate("[server").is_err());
        assert!(migrate("server = 1").is_err());
    }
}
