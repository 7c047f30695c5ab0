//! What the programs print. The standard library's macros panic where that cannot be written.

use std::io::Write;

/// Prints on standard output. The error is for the user: whoever reads the output got less than all.
pub fn print(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| format!("standard output cannot be written: {error}"))
}

/// Says something on standard error. There is nobody to tell if that fails.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
