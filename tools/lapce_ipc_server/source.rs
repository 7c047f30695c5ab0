//! Where the configuration comes from.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use lapce_ai::ipc::Config;

/// Read where no file is named and this one exists.
const USUAL: &str = "/etc/lapce-ipc.toml";

/// The file that is read, once there is one.
pub struct Source {
    file: Option<PathBuf>,
    usual: PathBuf,
    /// It was read once, at the start.
    is_read: bool,
}

impl Source {
    /// The file that was named, or else the usual one.
    pub fn new(named: Option<PathBuf>) -> Source {
        Source {
            file: named,
            usual: PathBuf::from(USUAL),
            is_read: false,
        }
    }

    /// The configuration in force: the file's, or the defaults if there is none so far. A file that was
    /// read once must stay.
    pub fn load(&mut self) -> Result<Config, String> {
        let file = match self.file.clone() {
            Some(file) => file,
            None => match self.usual.symlink_metadata() {
                // Whatever it is, and even if it cannot be read: somebody wants it to count.
                Ok(_) => self.usual.clone(),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.is_read = true;
                    return Ok(Config::default());
                }
                Err(error) => {
                    return Err(format!("{}: cannot be read: {error}", self.usual.display()));
                }
            },
        };
        // A pipe, from a shell for example, is empty then, as if no key were set, or is waited for.
        if self.is_read && file.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
            return Err(format!(
                "{}: is a pipe, which is read at the start only: name a file",
                file.display()
            ));
        }
        let config = Config::load(&file).map_err(|error| error.to_string())?;
        self.file = Some(file);
        self.is_read = true;
        Ok(config)
    }

    /// What the log says of it.
    pub fn described(&self) -> String {
        match &self.file {
            Some(file) => format!("configuration {}", file.display()),
            None => format!("no configuration: there is no {}", self.usual.display()),
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
            is_read: false,
        };
        assert_eq!(source.load(), Ok(Config::default()));
        std::fs::write(&usual, "[server]\nworkers = 3\n").unwrap();
        assert_eq!(source.load().unwrap().workers, 3);
        std::fs::remove_file(&usual).unwrap();
        let gone = source.load().unwrap_err();
        assert!(gone.contains("cannot be read"), "{gone}");
        assert_eq!(source.file(), Some(usual.as_path()));
    }

    #[test]
    fn a_pipe_is_read_once() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"[server]\nworkers = 3\n").unwrap();
        drop(writer);
        let file = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let mut source = Source::new(Some(file.into()));
        assert_eq!(source.load().unwrap().workers, 3);
        // It is empty now, which are not the defaults.
        let said = source.load().unwrap_err();
        assert!(said.contains("is a pipe"), "{said}");
    }

    #[test]
    fn a_file_that_cannot_be_followed_is_not_passed_over() {
        let name = format!("lapce_ipc_dangling_{}.toml", std::process::id());
        let usual = std::env::temp_dir().join(name);
        std::os::unix::fs::symlink("/nowhere/at/all.toml", &usual).unwrap();
        let mut source = Source {
            file: None,
            usual: usual.clone(),
            is_read: false,
        };
        let said = source.load().unwrap_err();
        std::fs::remove_file(&usual).unwrap();
        assert!(said.contains("a link to /nowhere/at/all.toml"), "{said}");
        // It was never read, so it need not stay.
        assert_eq!(source.load(), Ok(Config::default()));
        assert!(source.described().contains("there is no /"));
        // Below a file there is none, but that is not for certain what was meant.
        source.usual = "/dev/null/lapce-ipc.toml".into();
        assert!(source.load().unwrap_err().contains("Not a directory"));
    }
}
