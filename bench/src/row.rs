//! What is measured: rows of figures, and verdicts on promises.

use hdrhistogram::Histogram;

use crate::floors::Floors;

/// One figure of each run.
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub values: Vec<f64>,
}

impl Metric {
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
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
    /// Runs in which the machine stalled or changed.
    pub disturbed: usize,
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
            disturbed: 0,
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
        match &mut self.histogram {
            Some(all) => all.add(&run).expect("all have the same bounds"),
            None => self.histogram = Some(run),
        }
    }

    /// For verdicts: says so if most runs were disturbed, because then the figure says little.
    pub fn remark(&self) -> &'static str {
        if 2 * self.disturbed > self.floors.len() {
            " (disturbed: run again on a quiet machine)"
        } else {
            ""
        }
    }

    pub fn median(&self, name: &str) -> Option<f64> {
        let metric = self.metrics.iter().find(|metric| metric.name == name);
        metric.map(Metric::median)
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
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Kept => "kept",
            Outcome::Broken => "BROKEN",
            Outcome::NotMeasured => "not measured",
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
    fn latencies_of_all_runs_are_kept_and_each_run_counts() {
        let mut row = Row::new("latency", "tcp spin", "64 B", 64.0);
        for value in [100, 300, 200] {
            let mut run = latencies();
            run.record(value).unwrap();
            row.push_latencies(run);
        }
        assert_eq!(row.histogram.as_ref().unwrap().len(), 3);
        assert_eq!(row.median("p50"), Some(200.0));
    }
}
