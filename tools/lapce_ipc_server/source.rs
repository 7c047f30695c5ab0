//! Where the configuration comes from.

use std::path::{Path, PathBuf};

use lapce_ai::ipc::Config;

/// Read where no file is named and this one exists.
const USUAL: &str = "/etc/lapce-ipc.toml";

/// The file that is read, once there is one.
pub struct Source {
    file: Option<PathBuf>,
    usual: PathBuf,
}

impl Source {
    /// The file that was named, or else the usual one.
    pub fn new(named: Option<PathBuf>) -> Source {
        Source {
            file: named,
            usual: PathBuf::from(USUAL),
        }
    }

    /// The configuration in force: the file's, or the defaults if there is none so far. A file that was
    /// read once must stay.
    pub fn load(&mut self) -> Result<Config, String> {
        if self.file.is_none() && self.usual.exists() {
            self.file = Some(self.usual.clone());
        }
        match &self.file {
            Some(file) => Config::load(file).map_err(|error| error.to_string()),
            None => Ok(Config::default()),
        }
    }

    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_appears_later_is_read() {
        let name = format!("lapce_ipc_usual_{}.toml", std::process::id());
        let usual = std::env::temp_dir().join(name);
        let mut source = Source {
            file: None,
            usual: usual.clone(),
        };
        assert_eq!(source.load(), Ok(Config::default()));
        std::fs::write(&usual, "[server]\nworkers = 3\n").unwrap();
        assert_eq!(source.load().unwrap().workers, 3);
        std::fs::remove_file(&usual).unwrap();
        let gone = source.load().unwrap_err();
        assert!(gone.contains("cannot be read"), "{gone}");
        assert_eq!(source.file(), Some(usual.as_path()));
    }
}
