//! What an old configuration says that this version would refuse.

use std::collections::BTreeSet;

use lapce_ai::ipc::Config;
use toml_edit::{Document, DocumentMut, Item, Key, Table, TomlError};

/// A section, or one of its keys.
type Name = (String, Option<String>);

/// The text without what is not known where it stands, and one line for each such thing.
pub fn leave_out(text: &str) -> Result<(DocumentMut, Vec<String>), TomlError> {
    let document = Document::parse(text)?;
    let (mut changes, mut all_taken) = (Vec::new(), BTreeSet::new());
    // Whole lines, so that all others stay: the comments above what is left out included.
    for (section, key) in unknown(document.as_table()) {
        let (mut name, mut item) = named(document.as_table(), &section);
        if let Some(key) = &key {
            match item.as_table() {
                Some(table) => (name, item) = named(table, key),
                // In braces, see below.
                None => continue,
            }
        }
        let mut taken = BTreeSet::new();
        take_lines(text, name, item, &mut taken);
        let was = text.lines().enumerate();
        let was = was.filter(|(number, _)| taken.contains(number));
        changes.push(told(&section, key.as_deref(), was.map(|(_, line)| line)));
        all_taken.append(&mut taken);
    }
    let rest = text.split_inclusive('\n').enumerate();
    let rest = rest.filter(|(number, _)| !all_taken.contains(number));
    let rest: String = rest.map(|(_, line)| line).collect();

    let mut document: DocumentMut = rest.parse()?;
    for (section, key) in unknown(document.as_table()) {
        let keys = document[&section].as_table_like_mut();
        let Some((keys, key)) = keys.zip(key) else {
            continue;
        };
        let was = keys.remove(&key).unwrap_or_default();
        let was = format!("{key} = {}", was.to_string().trim());
        changes.push(told(&section, Some(&key), was.lines()));
    }
    Ok((document, changes))
}

/// All that this version knows.
fn known() -> DocumentMut {
    let usual = Config::default().to_string();
    usual.parse().expect("what is shown reads back")
}

fn unknown(document: &Table) -> Vec<Name> {
    let known = known();
    let mut unknown = Vec::new();
    for (section, item) in document {
        match (known.get(section), item.as_table_like()) {
            (Some(known), Some(keys)) => {
                let keys = keys.iter().map(|(key, _)| key);
                let keys = keys.filter(|key| known.get(key).is_none());
                unknown.extend(keys.map(|key| (section.to_owned(), Some(key.to_owned()))));
            }
            (None, _) => unknown.push((section.to_owned(), None)),
            // Of the wrong kind: the user is told when it is read.
            (Some(_), None) => {}
        }
    }
    unknown
}

fn named<'a>(table: &'a Table, name: &str) -> (&'a Key, &'a Item) {
    table.get_key_value(name).expect("it was found there")
}

/// The numbers of the lines on which something stands. Outside of braces each key has lines of its own, and
/// so has each section's header.
fn take_lines(text: &str, key: &Key, item: &Item, taken: &mut BTreeSet<usize>) {
    let line = |byte: usize| text[..byte].matches('\n').count();
    let mut take_table = |table: &Table| {
        let mut values = BTreeSet::new();
        for (name, item) in table {
            let (key, _) = named(table, name);
            // Those with a header of their own may be anywhere.
            let is_below = item.is_value() || item.as_table().is_some_and(Table::is_dotted);
            let lines = if is_below { &mut values } else { &mut *taken };
            take_lines(text, key, item, lines);
        }
        if let Some(header) = table.span().filter(|_| !table.is_implicit()) {
            // With the comments among them: they belong to it.
            let first = line(header.start);
            let last = values.last().copied().unwrap_or(first);
            values.extend(first..=last);
        }
        taken.append(&mut values);
    };
    match item {
        Item::None => {}
        Item::Table(table) => take_table(table),
        Item::ArrayOfTables(tables) => tables.iter().for_each(take_table),
        Item::Value(value) => {
            let start = key.span().or(value.span()).unwrap_or_default().start;
            let end = value.span().unwrap_or_default().end;
            taken.extend(line(start)..=line(end.max(start)));
        }
    }
}

/// What the user is told of something that was left out, which is shown whole.
fn told<'a>(section: &str, key: Option<&str>, was: impl Iterator<Item = &'a str>) -> String {
    let name = key.map_or(section.to_owned(), |key| format!("{section}.{key}"));
    // A quoted key may have control characters.
    let name = name.escape_debug();
    let lines = was.map(str::trim).filter(|line| !line.is_empty());
    let was = lines.collect::<Vec<_>>().join("; ");
    let known = known();
    let places = known.iter().filter(|(_, keys)| {
        let keys = keys.as_table();
        keys.is_some_and(|keys| keys.contains_key(key.unwrap_or(section)))
    });
    let places: Vec<_> = places.map(|(place, _)| format!("[{place}]")).collect();
    if places.is_empty() {
        return format!("{name} is not known to this version and was left out (it was: {was})");
    }
    let places = places.join(" or ");
    // Not moved: who wrote it there cannot have seen it heeded.
    format!(
        "{name} belongs under {places} and was left out (it was: {was}): set it there if it is to hold"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(text: &str) -> (String, Vec<String>) {
        let (document, changes) = leave_out(text).unwrap();
        (document.to_string(), changes)
    }

    #[test]
    fn comments_stay_and_what_goes_is_told_whole() {
        let (new, changes) = left(
            "# top\nport = 3 # three\n[server]\n# how many\nthreads = [ # fast\n  4,\n]\n# where\nbind_address = \"127.0.0.1:1\"\n# log\n[logging]\n# loud\nlevel = \"x\" # why\n\n# opts\n[tls.server.opts]\ncert = \"x\"\n[limits]\ndrain_ms = 1\n[[peer]]\na = 1\n[[peer]]\na = 2\n# end\n",
        );
        assert_eq!(
            new,
            "# top\n[server]\n# how many\n# where\nbind_address = \"127.0.0.1:1\"\n# log\n\n# opts\n[limits]\ndrain_ms = 1\n# end\n"
        );
        for line in [
            "port is not known to this version and was left out (it was: port = 3 # three)",
            "(it was: threads = [ # fast; 4,; ])",
            "(it was: [logging]; # loud; level = \"x\" # why)",
            "(it was: [tls.server.opts]; cert = \"x\")",
            "(it was: [[peer]]; a = 1; [[peer]]; a = 2)",
        ] {
            assert!(
                changes.iter().any(|change| change.contains(line)),
                "{line}: {changes:?}"
            );
        }
        assert_eq!(changes.len(), 5);
    }

    #[test]
    fn what_stands_in_the_wrong_place_is_shown_the_right_one() {
        let (new, changes) =
            left("bind_address = \"127.0.0.1:9\"\n[server]\nmax_connections = 77\n");
        assert_eq!(new, "[server]\n");
        assert!(changes[0].starts_with("bind_address belongs under [server] or [metrics] and"));
        assert!(changes[1].starts_with("server.max_connections belongs under [limits] and"));
        assert!(changes[1].contains("max_connections = 77"));
    }

    #[test]
    fn other_ways_to_write_it() {
        let (new, changes) = left("server = { x = 1, workers = 2 }\n");
        assert_eq!(new, "server = { workers = 2 }\n");
        assert!(changes[0].contains("server.x") && changes[0].contains("x = 1"));
        let (new, _) = left("[a.b]\nc = 1\n[server]\n[a]\n# x\nx.y = 1\n# d\n[a.d]\n");
        assert_eq!(new, "[server]\n# d\n");
        let (new, changes) = left("server.x.y = 1\nserver.workers = 2\n");
        assert_eq!((new.as_str(), changes.len()), ("server.workers = 2\n", 1));
        let (new, changes) = left("\"\\u001b[31m\" = 1\n");
        assert_eq!(new, "");
        assert!(
            changes[0].starts_with("\\u{1b}[31m is not known"),
            "{changes:?}"
        );
        let (new, _) = left("\u{feff}[a.b]\r\nc = 1\r\n[server]\r\nworkers = 2\r\n[a.d]\r\n");
        assert_eq!(new, "[server]\nworkers = 2\n");
    }
}
