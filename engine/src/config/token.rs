//! The auth token.

/// The longest that a HANDSHAKE can carry.
const BYTES_MAX: usize = u16::MAX as usize;

/// Refuses a token that would let everybody in, or nobody.
pub(crate) fn check_token(token: &[u8]) -> Result<(), String> {
    match token.len() {
        0 => Err("it is empty, which everybody's is who has none".into()),
        1..=BYTES_MAX => Ok(()),
        bytes => Err(format!(
            "it has {bytes} bytes, and no client can send more than {BYTES_MAX}"
        )),
    }
}
