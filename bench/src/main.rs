//! Measures every promise of the engine, beside the floor of the machine and the peers that a user
//! would pick instead. See docs/benchmarks.md.

mod away;
mod bare;
mod c_loop;
mod child;
mod cli;
mod context;
mod engine;
mod floors;
mod host;
mod load;
mod paced;
mod payloads;
#[cfg(feature = "peers")]
mod peers;
mod plot;
mod report;
mod row;
mod scenarios;
mod serve;
mod sys;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use lapce_ai::bench_internals::affinity;

use cli::{Cli, Command};
use context::{Context, Failure};
use row::Outcome;

#[global_allocator]
static ALLOCATOR: sys::Counting = sys::Counting;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Command::Serve(arguments)) => serve::serve(arguments).map(|()| true),
        None if cli.list => {
            for scenario in scenarios::ALL {
                println!("{:12} {}", scenario.name, scenario.about);
            }
            Ok(true)
        }
        None => run(&cli),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lapce-ipc-bench: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the suite; true if no promise was broken.
fn run(cli: &Cli) -> Result<bool, Failure> {
    lapce_ai::ipc::keep_process_small();
    let chosen = scenarios::choose(&cli.scenario)?;
    let host = host::Host::look();
    // Threads and processes started from here on inherit this; servers pin themselves anew.
    affinity::pin_current_thread(host.client_cpu)?;
    if host.cpus.len() < 2 {
        eprintln!("note: client and server share one CPU; figures say little");
    }
    println!("{}", host.line());
    let started = Instant::now();
    let bar = ProgressBar::new(chosen.len() as u64).with_style(ProgressStyle::with_template(
        "{spinner} [{elapsed_precise}] {bar:24} {pos}/{len} {wide_msg}",
    )?);
    let probe = floors::Probe::start(host.server_cpu)?;
    let default_seconds = if cli.quick { 0.05 } else { 0.25 };
    let mut context = Context {
        quick: cli.quick,
        duration: Duration::from_secs_f64(cli.duration.unwrap_or(default_seconds)),
        runs: 3,
        host,
        bar,
        probe,
        rows: Vec::new(),
        verdicts: Vec::new(),
        notes: Vec::new(),
    };
    for scenario in chosen {
        context.bar.set_message(scenario.name);
        if let Err(error) = (scenario.run)(&mut context) {
            // One scenario that cannot run must not hide the others' figures.
            context.note(format!("{} failed: {error}", scenario.name));
            context.verdict(
                format!("{} runs to its end", scenario.name),
                error.to_string(),
                false,
            );
        }
        context.bar.inc(1);
    }
    context.bar.finish_and_clear();
    engine::sweep();
    tally::promise(&mut context);
    report::print(&context);
    println!("took {:.0} s", started.elapsed().as_secs_f64());
    if let Some(path) = &cli.json {
        std::fs::write(path, report::json(&context).to_string())?;
    }
    if let Some(directory) = &cli.report {
        report::write(&context, directory)?;
        println!("report: {}", directory.join("report.md").display());
    }
    let broken = |outcome| outcome == Outcome::Broken;
    Ok(!context.verdicts.iter().any(|v| broken(v.outcome)))
}
