//! What is measured: rows of figures, and verdicts on promises.

use hdrhistogram::Histogram;

use crate::floors::Floors;
use crate::host::Watch;

/// One figure of each run.
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub values: Vec<f64>,
}

impl Metric {
    pub fn median(&self) -> f64 {
        median(self.values.clone()).unwrap_or(f64::NAN)
    }

    /// The least and the greatest of the runs.
    pub fn spread(&self) -> (f64, f64) {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = self.values.iter().copied().fold(0.0, f64::max);
        (least, greatest)
    }
}

/// One subject in one case.
pub struct Row {
    pub scenario: &'static str,
    /// Who: "shm spin", "tokio".
    pub subject: String,
    /// What: "64 B", "window 256".
    pub case: String,
    /// The case as a number, for plots.
    pub x: f64,
    pub metrics: Vec<Metric>,
    /// Floors before and after each run.
    pub floors: Vec<(Floors, Floors)>,
    /// Since the run that is going on began. To be started anew where a run has long to set itself up.
    pub watch: Watch,
    /// Whether the machine stalled or changed in each run.
    pub disturbed_runs: Vec<bool>,
    pub histogram: Option<Histogram<u64>>,
}

impl Row {
    pub fn new(
        scenario: &'static str,
        subject: impl Into<String>,
        case: impl Into<String>,
        x: f64,
    ) -> Row {
        Row {
            scenario,
            subject: subject.into(),
            case: case.into(),
            x,
            metrics: Vec::new(),
            floors: Vec::new(),
            watch: Watch::start(),
            disturbed_runs: Vec::new(),
            histogram: None,
        }
    }

    /// Adds one run's value of a metric.
    pub fn push(&mut self, name: &'static str, unit: &'static str, value: f64) {
        match self.metrics.iter_mut().find(|metric| metric.name == name) {
            Some(metric) => metric.values.push(value),
            None => self.metrics.push(Metric {
                name,
                unit,
                values: vec![value],
            }),
        }
    }

    /// Adds one run's latencies, in nanoseconds.
    pub fn push_latencies(&mut self, run: Histogram<u64>) {
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            self.push(name, "ns", run.value_at_quantile(quantile) as f64);
        }
        self.push("max", "ns", run.max() as f64);
        match &mut self.histogram {
            Some(all) => all.add(&run).expect("all have the same bounds"),
            None => self.histogram = Some(run),
        }
    }

    /// The state of the machine during the runs: the median of the cache line's floors, in ns.
    pub fn line_ns(&self) -> Option<f64> {
        median_line_ns(self.floors.iter())
    }

    /// Runs in which the machine stalled or changed.
    pub fn disturbed(&self) -> usize {
        self.disturbed_runs.iter().filter(|&&run| run).count()
    }

    /// What a promise is judged by: the median of the runs that nothing disturbed.
    pub fn judged(&self, name: &str) -> Option<Judged> {
        let metric = self.metric(name)?;
        let was_calm = self.disturbed_runs.contains(&false);
        let counts = |run: &usize| !was_calm || self.disturbed_runs.get(*run) == Some(&false);
        let runs: Vec<usize> = (0..metric.values.len()).filter(counts).collect();
        Some(Judged {
            value: median(runs.iter().map(|&run| metric.values[run]).collect())?,
            was_calm,
            line_ns: median_line_ns(runs.iter().filter_map(|&run| self.floors.get(run))),
        })
    }

    pub fn median(&self, name: &str) -> Option<f64> {
        self.metric(name).map(Metric::median)
    }

    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let above = *values.get(values.len() / 2)?;
    let below = values[(values.len() - 1) / 2];
    Some((below + above) / 2.0)
}

fn median_line_ns<'a>(floors: impl Iterator<Item = &'a (Floors, Floors)>) -> Option<f64> {
    let both = floors.flat_map(|(before, after)| [before.line, after.line]);
    median(both.collect())
}

/// The machine is in one state as long as a cache line takes no more than so many times as long.
const SAME_STATE: f64 = 1.5;

/// A figure to judge a promise by.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Judged {
    pub value: f64,
    /// False: every run was disturbed.
    pub was_calm: bool,
    /// The state of the machine in these runs: what a cache line took there and back.
    pub line_ns: Option<f64>,
}

impl Judged {
    /// A time in ns, in words.
    pub fn us(self) -> String {
        format!("{:.2} µs", self.value / 1000.0)
    }

    /// Why a loss tells nothing: the machine was worse to the one that lost than to the winner, if
    /// there is one. None: it tells something.
    fn excuse(self, winner: Option<Judged>) -> Option<String> {
        if !self.was_calm {
            return Some(
                "every run of the one behind was disturbed: run again on a quiet machine"
                    .to_owned(),
            );
        }
        let (own_ns, other_ns) = (self.line_ns?, winner?.line_ns?);
        (own_ns > SAME_STATE * other_ns).then(|| {
            format!(
                "the machine was worse to the one behind: cache line {own_ns:.0} ns against {other_ns:.0}"
            )
        })
    }
}

/// An empty histogram of nanoseconds, up to a minute, with three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Kept,
    Broken,
    NotMeasured,
    /// The machine was too restless to say.
    NotJudged,
}

impl Outcome {
    /// The one rule for figures that a restless machine spoils. It makes them only worse: so whoever
    /// is behind, ours or what it is held against, must have had a calm run in no worse a state of the
    /// machine. Else nothing is judged, and it is said why.
    pub fn of(own: Judged, against: Option<Judged>, keeps: bool) -> (Outcome, Option<String>) {
        let excuse = match (keeps, against) {
            (false, against) => own.excuse(against),
            (true, Some(against)) => against.excuse(Some(own)),
            (true, None) => None,
        };
        match (&excuse, keeps) {
            (Some(_), _) => (Outcome::NotJudged, excuse),
            (None, true) => (Outcome::Kept, None),
            (None, false) => (Outcome::Broken, None),
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Outcome::Kept => "kept",
            Outcome::Broken => "BROKEN",
            Outcome::NotMeasured => "not measured",
            Outcome::NotJudged => "not judged",
        }
    }
}

/// Whether a promise is kept.
pub struct Verdict {
    pub promise: String,
    pub measured: String,
    pub outcome: Outcome,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_runs_and_their_spread() {
        let mut row = Row::new("latency", "tcp spin", "64 B", 64.0);
        for value in [9.0, 1.0, 5.0] {
            row.push("p50", "ns", value);
        }
        assert_eq!(row.median("p50"), Some(5.0));
        assert_eq!(row.metrics[0].spread(), (1.0, 9.0));
        assert_eq!(row.median("p99"), None);
    }

    #[test]
    fn promises_are_judged_by_the_runs_that_nothing_disturbed() {
        let mut row = Row::new("latency", "tcp spin", "64 B", 64.0);
        for value in [9.0, 1.0, 5.0, 7.0] {
            row.push("p99", "ns", value);
        }
        row.disturbed_runs = vec![true, false, true, false];
        let floors = |line| {
            (
                Floors {
                    line,
                    ..Floors::default()
                },
                Floors {
                    line,
                    ..Floors::default()
                },
            )
        };
        row.floors = [500.0, 100.0, 500.0, 120.0].map(floors).to_vec();
        let judged = row.judged("p99").unwrap();
        assert_eq!((judged.value, judged.was_calm), (4.0, true));
        assert_eq!(judged.line_ns, Some(110.0));
        row.disturbed_runs = vec![true; 4];
        let judged = row.judged("p99").unwrap();
        assert_eq!((judged.value, judged.was_calm), (6.0, false));
        assert_eq!(row.judged("p50"), None);
        assert_eq!(row.disturbed(), 4);
    }

    #[test]
    fn nothing_is_judged_where_the_machine_was_worse_to_the_one_behind() {
        let figure = |was_calm, line_ns| Judged {
            value: 1.0,
            was_calm,
            line_ns: Some(line_ns),
        };
        let (calm, disturbed) = (figure(true, 100.0), figure(false, 100.0));
        let far = figure(true, 400.0);
        // What is judged if ours is ahead, and if it is behind.
        let judged = |own, against| {
            [true, false].map(|keeps| Outcome::of(own, against, keeps).0 != Outcome::NotJudged)
        };
        assert_eq!(judged(calm, None), [true, true]);
        assert_eq!(judged(disturbed, None), [true, false]);
        assert_eq!(judged(calm, Some(calm)), [true, true]);
        assert_eq!(judged(calm, Some(disturbed)), [false, true]);
        assert_eq!(judged(disturbed, Some(calm)), [true, false]);
        assert_eq!(judged(disturbed, Some(disturbed)), [false, false]);
        assert_eq!(judged(calm, Some(far)), [false, true]);
        assert_eq!(judged(far, Some(calm)), [true, false]);
        assert_eq!(Outcome::of(calm, Some(calm), true).0, Outcome::Kept);
        assert_eq!(Outcome::of(calm, Some(calm), false).0, Outcome::Broken);
    }

    #[test]
    fn latencies_of_all_runs_are_kept_and_each_run_counts() {
        let mut row = Row::new("latency", "tcp spin", "64 B", 64.0);
        for value in [100, 300, 200] {
            let mut run = latencies();
            run.record(value).unwrap();
            row.push_latencies(run);
        }
        assert_eq!(row.histogram.as_ref().unwrap().len(), 3);
        assert_eq!(row.median("p50"), Some(200.0));
        assert_eq!(row.median("max"), Some(200.0));
        assert_eq!(row.metrics.last().unwrap().spread(), (100.0, 300.0));
    }
}
