//! What is wrong with a configuration: where, and what to do.

use std::fmt;
use std::string::FromUtf8Error;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Config;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// The line, counted from 1, where one can be named.
    pub line: Option<usize>,
    /// The key at fault, where it is one.
    pub key: Option<String>,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {}", on_one_line(key))?;
        }
        write!(f, ": {}", on_one_line(&self.problem))
    }
}

/// What the file says is repeated, and may have line ends; whoever reads the log expects one line an event.
fn on_one_line(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    pub(super) fn new(file: &str, problem: String) -> ConfigError {
        ConfigError {
            file: file.to_owned(),
            line: None,
            key: None,
            problem,
        }
    }

    /// A fault of the value of `key`, written `section.name`.
    pub(super) fn at_key(file: &str, text: &str, key: &str, problem: String) -> ConfigError {
        ConfigError {
            file: file.to_owned(),
            line: line_of_key(text, key),
            key: Some(key.to_owned()),
            problem,
        }
    }

    /// A file in another encoding: Latin-1, say, in a comment.
    pub(super) fn not_utf8(error: &FromUtf8Error, file: &str) -> ConfigError {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
        ConfigError {
            line: Some(line),
            ..ConfigError::new(
                file,
                "this line is not UTF-8: save the file as UTF-8".into(),
            )
        }
    }

    /// A fault that the TOML reader found.
    pub(super) fn from_toml(error: &toml::de::Error, text: &str, file: &str) -> ConfigError {
        if let Some((line, section)) = section_in_double_brackets(text) {
            return ConfigError {
                file: file.to_owned(),
                line: Some(line),
                key: Some(section),
                problem: "a section is there once, its name in one pair of [ ]".into(),
            };
        }
        let start = error.span().map(|span| span.start.min(text.len()));
        let message = error.message().replace('\n', " ");
        let problem = match message.strip_prefix("unknown field") {
            Some(_) => {
                // The reader names what it did not know and what it knows, all in backquotes.
                let mut names = message.split('`').skip(1).step_by(2);
                let unknown = names.next().unwrap_or_default().to_owned();
                unknown_key(&unknown, names)
            }
            // Its name is all that is known of the second.
            None if message == "duplicate key" => {
                let name = error.span().and_then(|span| text.get(span));
                format!("`{}` is there twice", name.unwrap_or_default())
            }
            None => in_users_words(&message),
        };
        ConfigError {
            file: file.to_owned(),
            line: start.map(|start| line_at(text, start)),
            key: start.and_then(|start| key_at(text, start)),
            problem,
        }
    }
}

/// What to do about a key that is not known where it stands, where `near` are.
fn unknown_key<'a>(unknown: &str, near: impl Iterator<Item = &'a str>) -> String {
    let elsewhere: Vec<_> = keys()
        .filter(|(_, name)| name == unknown)
        .map(|(section, _)| format!("[{section}]"))
        .collect();
    if !elsewhere.is_empty() {
        return format!(
            "unknown key here; it belongs under {}",
            elsewhere.join(" or ")
        );
    }
    // A part of a name is nearer to it than letters that happen to be the same: `protocol` is not `workers`.
    let nearness = |name: &&str| {
        let is_part = name.contains(unknown) || unknown.contains(name);
        (!is_part, distance(name, unknown))
    };
    match near.min_by_key(nearness) {
        Some(name) => format!("unknown key; did you mean `{name}`?"),
        None => "unknown key".to_owned(),
    }
}

/// All keys that there are, with their sections.
fn keys() -> impl Iterator<Item = (String, String)> {
    let file = Config::default().to_string();
    let file: toml::Table = file.parse().expect("what is shown reads back");
    file.into_iter().flat_map(|(section, keys)| {
        let keys = keys.as_table().cloned().unwrap_or_default();
        keys.into_iter()
            .map(move |(name, _)| (section.clone(), name))
    })
}

/// The reader speaks of the types of the program.
fn in_users_words(message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else {
        return message.to_owned();
    };
    let number = found.split_once(": integer `");
    let digits = number.and_then(|(_, rest)| rest.split('`').next());
    let expected = match expected {
        "usize" | "u32" | "u64" | "i64" => match digits.filter(|digits| !digits.starts_with('-')) {
            // It is what is expected, but has no place in the type.
            Some(digits) => return format!("{digits} is too great: use a smaller number"),
            None => "a whole number, of 0 or more, without quotes",
        },
        "a boolean" => "true or false, without quotes",
        "a string" => "text in quotes",
        other if other.starts_with("struct ") => "a section, which begins with its name in [ ]",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// The line in which a byte lies.
fn line_at(text: &str, byte: usize) -> usize {
    text[..byte].matches('\n').count() + 1
}

/// The line on which a key of a section is set, or on which its section begins, in whichever of TOML's
/// ways both are written.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.')?;
    let file = DeTable::parse(text).ok()?;
    let (header, keys) = named(file.get_ref(), section)?;
    let keys = keys.get_ref().as_table();
    let place = match keys.and_then(|keys| named(keys, name)) {
        Some((name, _)) => name.span(),
        None => header.span(),
    };
    Some(line_at(text, place.start))
}

type Entry<'a, 'text> = (&'a Spanned<DeString<'text>>, &'a Spanned<DeValue<'text>>);

fn named<'a, 'text>(table: &'a DeTable<'text>, name: &str) -> Option<Entry<'a, 'text>> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

/// The key whose name or value is at a byte, `section.name`, or the section whose name is there. Where it is
/// no TOML, a value without quotes for example, it is the key that is set on that line, if there is one.
fn key_at(text: &str, byte: usize) -> Option<String> {
    let (file, faults) = DeTable::parse_recoverable(text);
    let line = line_at(text, byte);
    let is_here = |(key, value): &Entry<'_, '_>| {
        let is_on_line = !faults.is_empty() && line_at(text, key.span().start) == line;
        key.span().contains(&byte) || value.span().contains(&byte) || is_on_line
    };
    // The last of those on the line that begin before the fault.
    let begins = |(key, _): &Entry<'_, '_>| {
        let start = key.span().start;
        (start <= byte).then_some(start)
    };
    for (section, keys) in file.get_ref() {
        let keys = keys.get_ref().as_table();
        let here = keys.and_then(|keys| keys.iter().filter(is_here).max_by_key(begins));
        if let Some((name, _)) = here {
            return Some(format!("{}.{}", section.get_ref(), name.get_ref()));
        }
    }
    let (section, _) = file.get_ref().iter().find(is_here)?;
    // A line without a name is read as one that is empty.
    Some(section.get_ref().to_string()).filter(|name| !name.is_empty())
}

/// A section written as one of several, which the reader would take for its keys' values in turn.
fn section_in_double_brackets(text: &str) -> Option<(usize, String)> {
    let file = DeTable::parse(text).ok()?;
    let is_section = |name: &str| keys().any(|(section, _)| section == name);
    let (section, _) = file
        .get_ref()
        .iter()
        .find(|(name, value)| value.get_ref().is_array() && is_section(name.get_ref()))?;
    let line = line_at(text, section.span().start);
    Some((line, section.get_ref().to_string()))
}

/// Levenshtein's distance between two short words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn keys_are_found_in_their_section() {
        let text = "[server]\nbind_address = 1\n\n[metrics]\n  bind_address=2\n";
        assert_eq!(line_of_key(text, "server.bind_address"), Some(2));
        assert_eq!(line_of_key(text, "metrics.bind_address"), Some(5));
        assert_eq!(line_of_key(text, "limits.drain_ms"), None);
        assert_eq!(line_of_key(text, "server.workers"), Some(1));
        assert_eq!(
            line_of_key("\n\"shm\".'enabled' = 1", "shm.enabled"),
            Some(2)
        );
        let inline = "shm = {\n  enabled = 1 }";
        assert_eq!(line_of_key(inline, "shm.enabled"), Some(2));
        let at = |text: &str, what: &str| key_at(text, text.find(what).unwrap());
        assert_eq!(at(inline, "enabled").unwrap(), "shm.enabled");
        assert_eq!(at(inline, "1").unwrap(), "shm.enabled");
        assert_eq!(at("[server]\n[metrics]\n", "metrics").unwrap(), "metrics");
        let several = "shm = { enabled = true, instance = spare }";
        assert_eq!(at(several, "spare").unwrap(), "shm.instance");
        assert_eq!(at("= 1", "="), None);
        assert_eq!(at("[server]\nidle = spin", "spin").unwrap(), "server.idle");
    }
}
