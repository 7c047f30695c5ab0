//! What peers leave in the file system, and its end.

use std::path::{Path, PathBuf};

const PREFIX: &str = "lapce-bench-";
const SHM: &str = "/dev/shm";

/// A name for files of one peer in the temporary directory and in /dev/shm. Whatever begins with
/// it is removed when this is dropped: servers are killed, and remove nothing.
pub struct Scratch {
    name: String,
}

impl Scratch {
    pub fn new(peer: &str) -> Scratch {
        Scratch {
            name: format!("{PREFIX}{}-{peer}", std::process::id()),
        }
    }

    /// For servers, too, which have another process id.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn temporary(&self) -> PathBuf {
        std::env::temp_dir().join(&self.name)
    }

    pub fn clear(&self) {
        remove(|file| file.starts_with(&self.name));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Removes what runs of the bench left that were killed and could not.
pub fn sweep() {
    remove(|file| {
        owner(file).is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
    });
}

/// The process that a file of the bench belongs to.
fn owner(file: &str) -> Option<u32> {
    let rest = file.strip_prefix(PREFIX)?;
    rest.split(['-', '_', '.'])
        .find_map(|part| part.parse().ok())
}

fn remove(wanted: impl Fn(&str) -> bool) {
    for directory in [std::env::temp_dir(), PathBuf::from(SHM)] {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        for entry in entries.flatten() {
            if wanted(&entry.file_name().to_string_lossy()) {
                let path = entry.path();
                // Gone already is as good.
                let _ = match path.is_dir() {
                    true => std::fs::remove_dir_all(path),
                    false => std::fs::remove_file(path),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_the_process_they_belong_to() {
        assert_eq!(owner("lapce-bench-71-aeron"), Some(71));
        assert_eq!(owner("lapce-bench-71"), Some(71));
        assert_eq!(owner("lapce-bench-71_1f.data"), Some(71));
        assert_eq!(owner("lapce-bench-floor2-71"), Some(71));
        assert_eq!(owner("lapce-bench-x"), None);
        assert_eq!(owner("other-71"), None);
    }

    #[test]
    fn all_that_begins_with_the_name_goes_and_nothing_else() {
        let scratch = Scratch::new("test");
        let other = Scratch::new("other");
        let file = PathBuf::from(SHM).join(format!("{}_1.data", scratch.name()));
        std::fs::write(&file, "x").unwrap();
        std::fs::create_dir_all(scratch.temporary().join("within")).unwrap();
        std::fs::write(other.temporary(), "x").unwrap();
        let directory = scratch.temporary();
        drop(scratch);
        assert!(!file.exists() && !directory.exists());
        sweep();
        assert!(other.temporary().exists(), "its process lives");
        let path = other.temporary();
        drop(other);
        assert!(!path.exists());
    }
}
