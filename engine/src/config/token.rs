//! The auth token, and the file that it is read from.

use std::io;
use std::path::Path;

use super::{Limits, SMALL_FRAME_BYTES};
use crate::wire::HEADER_BYTES;

/// What a HANDSHAKE may carry beside the token.
const BESIDE_BYTES: usize = 128;
/// The longest token. A server reads no frame of more than SMALL_FRAME_BYTES from a connection that has not
/// shown its credentials.
const BYTES_MAX: usize = SMALL_FRAME_BYTES - HEADER_BYTES - BESIDE_BYTES;

/// The auth token that a file holds: all its bytes without the line ends at the end.
pub fn read_token(file: &Path) -> io::Result<Vec<u8>> {
    let mut token = std::fs::read(file)?;
    let is_line_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let bytes = token.iter().rposition(|byte| !is_line_end(byte));
    token.truncate(bytes.map_or(0, |last| last + 1));
    Ok(token)
}

/// Refuses a token that would admit everybody (it is empty) or nobody (it is too long to be sent).
pub(crate) fn check_token(token: &[u8], limits: &Limits) -> Result<(), String> {
    let bytes = token.len();
    let most = limits.max_message_bytes as usize;
    if bytes == 0 {
        return Err("it is empty, which everybody's is who has none".into());
    }
    if bytes > BYTES_MAX {
        return Err(format!(
            "it has {bytes} bytes, and no client can send more than {BYTES_MAX}"
        ));
    }
    if bytes + BESIDE_BYTES > most {
        return Err(format!(
            "it has {bytes} bytes, and with the {BESIDE_BYTES} that a client may say beside it that is more than limits.max_message_bytes, {most}"
        ));
    }
    Ok(())
}

/// Reads the server's token file. Returns the token and notices for the log, or what is wrong with it.
pub(super) fn load(file: &str, limits: &Limits) -> Result<(Vec<u8>, Vec<String>), String> {
    let path = Path::new(file);
    let token = read_token(path).map_err(|error| format!("{file} cannot be read: {error}"))?;
    let blank = token.trim_ascii().is_empty();
    check_token(if blank { b"" } else { &token }, limits)
        .map_err(|problem| format!("{file} holds no token that can be used: {problem}"))?;
    if token.contains(&b'\n') {
        return Err(format!(
            "{file} has more than one line: the token is to be all of it"
        ));
    }
    let mut notices = Vec::new();
    if token.trim_ascii() != token {
        notices.push(format!(
            "{file}: the token begins or ends with a blank, which is part of it"
        ));
    }
    use std::os::unix::fs::PermissionsExt;
    // Not the group's bits: of a file with an ACL they are its mask, systemd's credentials for example, and
    // otherwise somebody chose the group.
    if std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o006 != 0) {
        notices.push(format!(
            "{file}: other users may read or change the token: chmod o-rwx it"
        ));
    }
    Ok((token, notices))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct File(String);

    impl File {
        fn new(name: &str) -> File {
            let name = format!("lapce_ipc_token_{}_{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            File(path.to_str().unwrap().to_owned())
        }

        fn load(&self, bytes: &[u8], limits: &Limits) -> Result<(Vec<u8>, Vec<String>), String> {
            std::fs::write(&self.0, bytes).unwrap();
            load(&self.0, limits)
        }

        fn allow(&self, mode: u32) {
            std::fs::set_permissions(&self.0, Permissions::from_mode(mode)).unwrap();
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_token_that_nobody_or_everybody_has_is_refused() {
        let (file, limits) = (File::new("refused"), Limits::default());
        for (token, word) in [
            (&b""[..], "empty"),
            (b"\r\n\n", "empty"),
            (b" \n", "empty"),
            (&[b'x'; BYTES_MAX + 1], "65384"),
            (b"a\nb", "one line"),
            (b"\na", "one line"),
        ] {
            let said = file.load(token, &limits).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
        let longest = [b'x'; BYTES_MAX];
        assert_eq!(file.load(&longest, &limits).unwrap().0, longest);
        let few = Limits {
            max_message_bytes: 200,
            ..limits
        };
        let said = file.load(&[b'x'; 73], &few).unwrap_err();
        assert!(said.contains("max_message_bytes, 200"), "{said}");
        file.load(&[b'x'; 72], &few).unwrap();
    }

    #[test]
    fn line_ends_are_no_part_of_it_and_blanks_are() {
        let (file, limits) = (File::new("ends"), Limits::default());
        for (bytes, token, notices) in [
            (&b"a b"[..], &b"a b"[..], 0),
            (b"a\n", b"a", 0),
            (b"a\r\n", b"a", 0),
            (b" a\t\n", b" a\t", 1),
        ] {
            file.load(bytes, &limits).unwrap();
            file.allow(0o600);
            let (got, said) = file.load(bytes, &limits).unwrap();
            assert_eq!((&got[..], said.len()), (token, notices), "{said:?}");
        }
    }

    #[test]
    fn what_everybody_may_read_is_told() {
        let (file, limits) = (File::new("mode"), Limits::default());
        file.load(b"a", &limits).unwrap();
        for (mode, notices) in [(0o600, 0), (0o440, 0), (0o644, 1), (0o602, 1)] {
            file.allow(mode);
            assert_eq!(load(&file.0, &limits).unwrap().1.len(), notices, "{mode:o}");
        }
    }
}
