//! What a scenario runs in: how long, how often, between which floors, and where its rows go.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::floors::{Floors, Probe};
use crate::host::{Host, Watch};
use crate::row::{self, Judged, Outcome, Row, Verdict};

pub type Failure = Box<dyn Error>;

/// So often rows are measured before a promise is called broken.
const TRIES: usize = 3;

pub struct Context {
    pub host: Host,
    pub quick: bool,
    pub duration: Duration,
    pub runs: usize,
    pub bar: ProgressBar,
    pub probe: Probe,
    pub rows: Vec<Row>,
    pub verdicts: Vec<Verdict>,
    pub notes: Vec<String>,
}

impl Context {
    /// Measures one row: so many runs, each between two probes of the floors. Servers must be
    /// started and ended inside `run`: a spinning one would be in the probes' way.
    pub fn measure(
        &mut self,
        row: Row,
        mut run: impl FnMut(&mut Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.measure_in_turn(vec![row], self.runs, |_, _, row| run(row))
    }

    /// Measures rows to be held against each other: they take turns, run by run, so that a change
    /// of the machine meets all alike. `run` is told which row is next.
    pub fn measure_in_turn(
        &mut self,
        rows: Vec<Row>,
        runs: usize,
        run: impl FnMut(&mut Probe, usize, &mut Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.measure_until(rows, runs, |_| Vec::new(), run)
    }

    /// As [`Context::measure_in_turn`]; then the rows that `doubtful` names, in which a promise seems broken, are
    /// measured again: a shared machine can be worse to one row for all of its runs.
    pub fn measure_until(
        &mut self,
        mut rows: Vec<Row>,
        runs: usize,
        doubtful: impl Fn(&[Row]) -> Vec<usize>,
        mut run: impl FnMut(&mut Probe, usize, &mut Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut due: Vec<usize> = (0..rows.len()).collect();
        for _ in 0..TRIES {
            let mut before = self.probe.measure()?;
            for _ in 0..runs {
                for &index in &due {
                    let row = &mut rows[index];
                    before = self.run(before, row, |probe, row| run(probe, index, row))?;
                }
            }
            due = doubtful(&rows);
            if due.is_empty() {
                break;
            }
        }
        self.rows.append(&mut rows);
        Ok(())
    }

    /// One more run of a row that is measured amid others. It is not among the context's rows yet.
    #[cfg(feature = "peers")]
    pub fn measure_once(
        &mut self,
        row: &mut Row,
        run: impl FnOnce(&mut Row) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let before = self.probe.measure()?;
        self.run(before, row, |_, row| run(row)).map(drop)
    }

    /// One run. Returns the floors after it.
    fn run(
        &mut self,
        before: Floors,
        row: &mut Row,
        run: impl FnOnce(&mut Probe, &mut Row) -> Result<(), Failure>,
    ) -> Result<Floors, Failure> {
        let name = format!("{}: {}, {}", row.scenario, row.subject, row.case);
        self.bar.set_message(name.clone());
        self.bar.tick();
        row.watch = Watch::start();
        run(&mut self.probe, row).map_err(|cause| FailedIn { name, cause })?;
        let disturbed = row.watch.disturbed();
        let after = self.probe.measure()?;
        row.disturbed_runs.push(disturbed || before.moved(&after));
        row.floors.push((before, after));
        Ok(after)
    }

    /// Says why something is not measured, now and in the report.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.bar.suspend(|| eprintln!("note: {text}"));
        self.notes.push(text);
    }

    pub fn verdict(&mut self, promise: impl Into<String>, measured: String, kept: bool) {
        let outcome = if kept { Outcome::Kept } else { Outcome::Broken };
        self.say(promise, measured, outcome);
    }

    /// A verdict on a figure that a restless machine spoils, beside what it is held against, if
    /// anything, by the rule of [`Outcome::of`].
    pub fn judge(
        &mut self,
        promise: impl Into<String>,
        mut measured: String,
        own: Judged,
        against: Option<Judged>,
        keeps: bool,
    ) {
        let (outcome, excuse) = Outcome::of(own, against, keeps);
        if let Some(why) = excuse {
            measured += &format!(" ({why})");
        }
        self.say(promise, measured, outcome);
    }

    /// A verdict on a latency that must stay below `max` ns. Where a bare echo, measured in turn with it, does not
    /// either, the machine broke the promise.
    pub fn judge_beside_bare(&mut self, promise: String, own: Judged, bare: Judged, max: f64) {
        let measured = format!("{}; a bare echo has {}", own.us(), bare.us());
        let keeps = own.value < max;
        if !keeps && bare.value >= max {
            self.not_judged(promise, measured);
        } else {
            self.judge(promise, measured, own, None, keeps);
        }
    }

    /// The machine itself kept the promise from being kept.
    pub fn not_judged(&mut self, promise: impl Into<String>, measured: impl Into<String>) {
        self.say(promise, measured, Outcome::NotJudged);
    }

    pub fn not_measured(&mut self, promise: impl Into<String>, why: impl Into<String>) {
        self.say(promise, why, Outcome::NotMeasured);
    }

    fn say(&mut self, promise: impl Into<String>, measured: impl Into<String>, outcome: Outcome) {
        self.verdicts.push(Verdict {
            promise: promise.into(),
            measured: measured.into(),
            outcome,
        });
    }

    pub fn find(&self, scenario: &str, subject: &str, case: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.scenario == scenario && row.subject == subject && row.case == case)
    }

    /// The medians of all floors of this run of the suite.
    pub fn floors(&self) -> Floors {
        let all: Vec<Floors> = self
            .rows
            .iter()
            .flat_map(|row| {
                row.floors
                    .iter()
                    .flat_map(|(before, after)| [*before, *after])
            })
            .collect();
        let median =
            |of: fn(&Floors) -> f64| row::median(all.iter().map(of).collect()).unwrap_or(f64::NAN);
        Floors {
            line: median(|floors| floors.line),
            shm: median(|floors| floors.shm),
            tcp: median(|floors| floors.tcp),
            futex: median(|floors| floors.futex),
        }
    }
}

/// Bytes as people write them.
pub fn bytes_text(bytes: usize) -> String {
    match bytes {
        1_048_576.. => format!("{} MiB", bytes / 1_048_576),
        1024.. => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} B"),
    }
}

/// What failed in a row.
#[derive(Debug)]
struct FailedIn {
    name: String,
    cause: Failure,
}

impl fmt::Display for FailedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.cause)
    }
}

impl Error for FailedIn {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}

/// Whether the machine has too little of something: that says nothing of the engine.
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    let short = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::ENOSPC,
        libc::EADDRNOTAVAIL,
    ];
    let mut cause = Some(error);
    while let Some(error) = cause {
        let errno = error.downcast_ref().and_then(io::Error::raw_os_error);
        if errno.is_some_and(|errno| short.contains(&errno)) {
            return true;
        }
        cause = error.source();
    }
    false
}

pub fn wrong_answer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer's bytes are wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_lacks_is_a_shortage() {
        let in_row = |cause: io::Error| {
            let (name, cause) = ("connections: tcp, 10".to_owned(), cause.into());
            is_shortage(&FailedIn { name, cause })
        };
        assert!(in_row(io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!in_row(io::Error::from_raw_os_error(libc::ECONNRESET)));
        assert!(!in_row(wrong_answer()));
        assert!(!in_row(io::ErrorKind::TimedOut.into()));
    }
}
