//! The hidden subcommand: the other process of a run.

use lapce_ai::bench_internals::affinity;

use crate::cli::Serve;
use crate::context::Failure;

pub fn serve(arguments: &Serve) -> Result<(), Failure> {
    crate::sys::end_with_parent();
    affinity::pin_current_thread(arguments.cpu)?;
    match arguments.kind.as_str() {
        "engine" => crate::engine::serve(arguments.idle, &arguments.bind, &arguments.name),
        "floor" => Ok(crate::floors::serve(&arguments.name)?),
        "bulk" => Ok(crate::scenarios::serve_bulk(&arguments.name)?),
        "layouts" => Ok(crate::scenarios::serve_layouts(&arguments.name)?),
        #[cfg(feature = "peers")]
        kind => crate::peers::serve(kind, &arguments.name),
        #[cfg(not(feature = "peers"))]
        kind => Err(format!("no such kind: {kind}").into()),
    }
}
