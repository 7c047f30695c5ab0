//! The table on the terminal, the page, and the files for other tools.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::context::Context;
use crate::plot;
use crate::row::{Metric, Outcome, Row};

/// Ticks of each halving of the distance to 100 %, as HdrHistogram's own files have.
const TICKS_PER_HALF: u32 = 5;

pub fn print(context: &Context) {
    println!("{}", tables(context));
    for note in &context.notes {
        println!("note: {note}");
    }
    println!("\n{}", verdicts(context));
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => grouped(value),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Whole, with a comma between thousands.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        let left = digits.len() - index;
        if index > 0 && left.is_multiple_of(3) && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn cell(metric: &Metric) -> String {
    let (least, greatest) = metric.spread();
    let median = number(metric.median());
    if metric.values.len() < 2 {
        return format!("{median} {}", metric.unit);
    }
    format!(
        "{median} {} ({}..{})",
        metric.unit,
        number(least),
        number(greatest)
    )
}

fn tables(context: &Context) -> String {
    let mut text = String::new();
    let mut scenario = "";
    let mut names: Vec<&str> = Vec::new();
    for row in &context.rows {
        let own: Vec<&str> = row.metrics.iter().map(|metric| metric.name).collect();
        if row.scenario != scenario {
            scenario = row.scenario;
            names.clear();
            let _ = writeln!(text, "\n### {scenario}");
        }
        if own != names {
            let columns = own.join(" | ");
            let _ = writeln!(
                text,
                "\n| subject | case | {columns} | runs | disturbed | cache line |"
            );
            let _ = writeln!(text, "|---|---|{}---|---|---|", "---|".repeat(own.len()));
            names = own;
        }
        let cells: Vec<String> = row.metrics.iter().map(cell).collect();
        let runs = row.metrics.first().map_or(0, |metric| metric.values.len());
        let mark = if row.disturbed() > 0 { "!" } else { "" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {runs} | {}{mark} | {} |",
            row.subject,
            row.case,
            cells.join(" | "),
            row.disturbed(),
            line_floor(row)
        );
    }
    if context.rows.iter().any(|row| !row.floors.is_empty()) {
        text.push_str("\n### floors\n\n| floor | median of all probes |\n|---|---|\n");
        for (name, ns) in context.floors().named() {
            let _ = writeln!(text, "| {name} | {} ns |", number(ns));
        }
    }
    text
}

/// What a cache line took there and back around this row's runs: the state of the machine.
fn line_floor(row: &Row) -> String {
    let line_ns = row.line_ns();
    line_ns.map_or(String::new(), |ns| format!("{} ns", number(ns)))
}

fn verdicts(context: &Context) -> String {
    let mut text = String::from("| promise | measured | verdict |\n|---|---|---|\n");
    for verdict in &context.verdicts {
        let word = verdict.outcome.word();
        let _ = writeln!(
            text,
            "| {} | {} | {word} |",
            verdict.promise, verdict.measured
        );
    }
    let broken = context
        .verdicts
        .iter()
        .filter(|v| v.outcome == Outcome::Broken);
    let _ = writeln!(text, "\n{} promises broken.", broken.count());
    text
}

pub fn json(context: &Context) -> Value {
    json!({
        "host": {
            "cpu": context.host.cpu,
            "kernel": context.host.kernel,
            "cpus": context.host.cpus,
            "client_cpu": context.host.client_cpu,
            "server_cpu": context.host.server_cpu,
            "load_at_end": crate::host::load(),
        },
        "quick": context.quick,
        "run_seconds": context.duration.as_secs_f64(),
        "rows": context.rows.iter().map(row_json).collect::<Vec<_>>(),
        "floors_ns": context.floors().named().map(|(name, ns)| json!({ "name": name, "ns": ns })),
        "verdicts": context.verdicts.iter().map(|verdict| json!({
            "promise": verdict.promise,
            "measured": verdict.measured,
            "verdict": verdict.outcome.word(),
        })).collect::<Vec<_>>(),
        "notes": context.notes,
    })
}

fn row_json(row: &Row) -> Value {
    let metrics = row.metrics.iter().map(|metric| {
        let (least, greatest) = metric.spread();
        json!({
            "name": metric.name, "unit": metric.unit, "median": metric.median(),
            "least": least, "greatest": greatest, "runs": metric.values,
        })
    });
    let floors = row.floors.iter().map(|(before, after)| {
        let list = |floors: &crate::floors::Floors| floors.named().map(|(_, ns)| ns);
        json!({ "before_ns": list(before), "after_ns": list(after) })
    });
    json!({
        "scenario": row.scenario, "subject": row.subject, "case": row.case,
        "metrics": metrics.collect::<Vec<_>>(),
        "floors": floors.collect::<Vec<_>>(),
        "disturbed": row.disturbed(),
    })
}

/// The page, its plots, and a .hgrm file for each row of latencies.
pub fn write(context: &Context, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut page = String::from("# Benchmark report\n\n");
    let _ = writeln!(page, "{}\n", context.host.line());
    let _ = writeln!(
        page,
        "Each figure is the median of its runs, with the least and the greatest of them. Runs last \
         {} s.{} A row marked `!` had runs in which the machine stalled or changed.\n",
        context.duration.as_secs_f64(),
        if context.quick {
            " This was a quick run: figures are rough."
        } else {
            ""
        },
    );
    page.push_str(&verdicts(context));
    for note in &context.notes {
        let _ = writeln!(page, "\nNote: {note}");
    }
    page.push('\n');
    for (file, title, svg) in plot::all(context) {
        fs::write(directory.join(&file), svg)?;
        let _ = writeln!(page, "![{title}]({file})\n");
    }
    page.push_str(&tables(context));
    for row in &context.rows {
        if let Some(histogram) = &row.histogram {
            let name = format!("{} {} {}", row.scenario, row.subject, row.case);
            let file = format!("{}.hgrm", name.replace([' ', '/', ':'], "-"));
            fs::write(directory.join(file), hgrm(histogram))?;
        }
    }
    fs::write(directory.join("report.md"), page)
}

/// The text that HdrHistogram's plotter reads, in microseconds.
fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        let quantile = step.quantile();
        let value = step.value_iterated_to() as f64 / 1000.0;
        let count = histogram.count_between(0, step.value_iterated_to());
        let _ = write!(text, "{value:12.3} {quantile:1.12} {count:10}");
        if quantile < 1.0 {
            let _ = writeln!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        } else {
            text.push('\n');
        }
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / 1000.0,
        histogram.stdev() / 1000.0
    );
    let _ = writeln!(
        text,
        "#[Max     = {:12.3}, Total count    = {:12}]",
        histogram.max() as f64 / 1000.0,
        histogram.len()
    );
    let _ = writeln!(
        text,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        histogram.buckets(),
        2048
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(number(12.345), "12.35");
        assert_eq!(number(0.0), "0");
    }

    #[test]
    fn the_file_for_the_plotter_ends_at_the_greatest_value() {
        let mut histogram = crate::row::latencies();
        for value in 1..=1000 {
            histogram.record(value * 1000).unwrap();
        }
        let text = hgrm(&histogram);
        let last = text.lines().rfind(|line| !line.starts_with('#'));
        let fields: Vec<&str> = last.unwrap().split_whitespace().collect();
        assert_eq!(fields[1], "1.000000000000");
        assert_eq!(fields[2], "1000");
        assert!(text.contains("Total count    =         1000"));
    }
}
