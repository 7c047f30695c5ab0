//! The programs that a user would pick instead.

#[cfg(not(feature = "peers"))]
use crate::context::{Context, Failure};

#[cfg(feature = "peers")]
pub use crate::peers::run;

#[cfg(not(feature = "peers"))]
pub fn run(context: &mut Context) -> Result<(), Failure> {
    context.note("peers are not in this build: add `--features peers`");
    context.not_measured("ahead of every peer", "needs `--features peers`");
    Ok(())
}
