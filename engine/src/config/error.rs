//! What is wrong with a configuration: where, and what to do.

use std::fmt;

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
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.problem)
    }
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

    /// A fault that the TOML reader found.
    pub(super) fn from_toml(error: &toml::de::Error, text: &str, file: &str) -> ConfigError {
        let start = error.span().map(|span| span.start.min(text.len()));
        let line = start.map(|start| text[..start].matches('\n').count() + 1);
        let message = error.message().replace('\n', " ");
        let section = line.and_then(|line| section_at(text, line));
        let (name, problem) = match message.strip_prefix("unknown field") {
            Some(_) => {
                // The reader names what it did not know and what it knows, all in backquotes.
                let mut names = message.split('`').skip(1).step_by(2);
                let unknown = names.next().unwrap_or_default().to_owned();
                let problem = unknown_key(&unknown, names);
                (Some(unknown), problem)
            }
            None => {
                let its_line = line.and_then(|line| text.lines().nth(line - 1));
                let name = its_line
                    .and_then(|line| line.split_once('='))
                    .map(|(key, _)| key.trim().to_owned());
                let problem = match its_line.is_some_and(|line| line.trim().starts_with("[[")) {
                    true => "a section is there once, its name in one pair of [ ]".into(),
                    false => in_users_words(&message),
                };
                (name, problem)
            }
        };
        let key = match (section, name) {
            (Some(section), Some(name)) if section != name => Some(format!("{section}.{name}")),
            (section, name) => name.or(section),
        };
        ConfigError {
            file: file.to_owned(),
            line,
            key,
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
    match near.min_by_key(|name| distance(name, unknown)) {
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
    let expected = match expected {
        "usize" | "u32" | "u64" | "i64" => "a whole number, of 0 or more, without quotes",
        "a boolean" => "true or false, without quotes",
        "a string" => "text in quotes",
        other if other.starts_with("struct ") => "a section, which begins with its name in [ ]",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// The section in which a line lies.
fn section_at(text: &str, line: usize) -> Option<String> {
    let lines: Vec<_> = text.lines().take(line).collect();
    let header = lines.iter().rev().find_map(|line| {
        let line = line.trim().strip_prefix('[')?;
        Some(line.trim_start_matches('[').split(']').next()?.trim())
    })?;
    (!header.is_empty()).then(|| header.to_owned())
}

/// The line on which a key of a section is set, or on which its section begins.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.')?;
    let mut in_section = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            let header = line
                .trim_start_matches('[')
                .split(']')
                .next()
                .unwrap_or_default();
            in_section = (header.trim() == section).then_some(index + 1);
        } else if in_section.is_some()
            && line
                .split_once('=')
                .is_some_and(|(key, _)| key.trim() == name)
        {
            return Some(index + 1);
        }
    }
    None
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
    fn a_line_is_in_the_section_above_it() {
        let text = "top = 1\n[server]\na = 1\n[[limits]]\nb = 2\n";
        let sections: Vec<_> = (1..=5).map(|line| section_at(text, line)).collect();
        let named = |name: &str| Some(name.to_owned());
        let (server, limits) = (named("server"), named("limits"));
        assert_eq!(
            sections,
            [None, server.clone(), server, limits.clone(), limits]
        );
    }

    #[test]
    fn keys_are_found_in_their_section() {
        let text = "[server]\nbind_address = 1\n\n[metrics]\n  bind_address=2\n";
        assert_eq!(line_of_key(text, "server.bind_address"), Some(2));
        assert_eq!(line_of_key(text, "metrics.bind_address"), Some(5));
        assert_eq!(line_of_key(text, "limits.drain_ms"), None);
    }
}
