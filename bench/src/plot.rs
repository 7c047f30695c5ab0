//! Plots as SVG, drawn by hand: lines over two axes, and bars.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use crate::context::Context;
use crate::report::grouped;
use crate::row::Row;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 10] = [
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf",
    "#7f7f7f", "#bcbd22",
];

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// File name, title and text of every plot that these rows allow.
pub fn all(context: &Context) -> Vec<(String, String, String)> {
    let mut plots = Vec::new();
    for (scenario, case, file) in [
        ("latency", "64 B", "latency-64B.svg"),
        ("latency", "1 KiB", "latency-1KiB.svg"),
        ("open-loop", "100000 a second", "open-loop-100k.svg"),
    ] {
        let rows = context.rows.iter();
        let lines: Vec<Line> = rows
            .filter(|row| row.scenario == scenario && row.case == case)
            .filter_map(percentile_line)
            .collect();
        if !lines.is_empty() {
            let title = format!("{scenario}, {case}: latency by percentile, all runs together");
            let svg = percentiles(&title, &lines);
            plots.push((file.to_owned(), title, svg));
        }
    }
    let lines = lines_by_x(context, "open-loop", "p99", |rate| rate.log10());
    if !lines.is_empty() {
        let title = "open-loop: p99 by rate, median of the runs".to_owned();
        let svg = rates(&title, &in_us(lines));
        plots.push(("open-loop-p99.svg".to_owned(), title, svg));
    }
    let lines = lines_by_x(context, "throughput", "requests", |window| window.log2());
    if !lines.is_empty() {
        let title = "Requests a second by window".to_owned();
        let svg = windows(&title, &lines);
        plots.push(("throughput.svg".to_owned(), title, svg));
    }
    let with_peers = context.rows.iter().any(|row| row.scenario == "peers");
    let bars: Vec<(String, f64, f64)> = context
        .rows
        .iter()
        .filter(|row| match with_peers {
            true => row.scenario == "peers" && row.case == "round trip",
            false => {
                row.scenario == "latency" && row.subject.ends_with("spin") && row.case == "64 B"
            }
        })
        .filter_map(|row| Some((row.subject.clone(), row.median("p50")?, row.median("p99")?)))
        .collect();
    if !bars.is_empty() {
        let title = "Round trip of 64 B: p50 (dark) and p99 (light), µs".to_owned();
        let svg = latency_bars(&title, bars, context.floors());
        plots.push(("peers.svg".to_owned(), title, svg));
    }
    let bars: Vec<(String, f64)> = context
        .rows
        .iter()
        .filter(|row| row.scenario == "peers" && row.case == "window 256")
        .filter_map(|row| Some((row.subject.clone(), row.median("requests")?)))
        .collect();
    if !bars.is_empty() {
        let title = "Requests of 64 B a second, 256 in flight, millions".to_owned();
        let svg = rate_bars(&title, bars);
        plots.push(("peers-window.svg".to_owned(), title, svg));
    }
    plots
}

fn percentile_line(row: &Row) -> Option<Line> {
    let histogram: &Histogram<u64> = row.histogram.as_ref()?;
    let points = histogram
        .iter_quantiles(5)
        .filter(|step| step.quantile() < 1.0)
        .map(|step| {
            let nines = 1.0 / (1.0 - step.quantile());
            (
                nines.log10(),
                (step.value_iterated_to() as f64 / 1e3).log10(),
            )
        })
        .collect();
    Some(Line {
        name: row.subject.clone(),
        points,
    })
}

/// A line for each subject of a scenario: the median of a metric, as a power of ten, over the case.
fn lines_by_x(context: &Context, scenario: &str, metric: &str, x_of: fn(f64) -> f64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for row in context.rows.iter().filter(|row| row.scenario == scenario) {
        let Some(value) = row.median(metric) else {
            continue;
        };
        let point = (x_of(row.x), value.log10());
        match lines.iter_mut().find(|line| line.name == row.subject) {
            Some(line) => line.points.push(point),
            None => lines.push(Line {
                name: row.subject.clone(),
                points: vec![point],
            }),
        }
    }
    lines
}

/// Powers of ten of nanoseconds, as those of microseconds.
fn in_us(mut lines: Vec<Line>) -> Vec<Line> {
    for point in lines.iter_mut().flat_map(|line| &mut line.points) {
        point.1 -= 3.0;
    }
    lines
}

fn rates(title: &str, lines: &[Line]) -> String {
    let ticks = [
        (3.0, "1,000"),
        (4.0, "10,000"),
        (5.0, "100,000"),
        (6.0, "1 M"),
    ]
    .map(|(x, name)| (x, name.to_owned()));
    chart(title, lines, (3.0, 6.0), &ticks, "requests a second", "µs")
}

fn percentiles(title: &str, lines: &[Line]) -> String {
    let ticks = [
        (0.0, "0%"),
        (1.0, "90%"),
        (2.0, "99%"),
        (3.0, "99.9%"),
        (4.0, "99.99%"),
        (5.0, "99.999%"),
        (6.0, "99.9999%"),
    ];
    let last = greatest(lines, |point| point.0).clamp(1.0, 6.0);
    let ticks: Vec<(f64, String)> = ticks
        .iter()
        .filter(|(x, _)| *x <= last)
        .map(|(x, name)| (*x, (*name).to_owned()))
        .collect();
    chart(title, lines, (0.0, last), &ticks, "percentile", "µs")
}

fn windows(title: &str, lines: &[Line]) -> String {
    let ticks: Vec<(f64, String)> = (0..=10)
        .step_by(2)
        .map(|power| (f64::from(power), grouped(f64::from(1u32 << power))))
        .collect();
    chart(
        title,
        lines,
        (0.0, 10.0),
        &ticks,
        "requests in flight",
        "requests a second",
    )
}

fn greatest(lines: &[Line], of: fn(&(f64, f64)) -> f64) -> f64 {
    let points = lines.iter().flat_map(|line| &line.points);
    points.map(of).fold(f64::NEG_INFINITY, f64::max)
}

fn least(lines: &[Line], of: fn(&(f64, f64)) -> f64) -> f64 {
    let points = lines.iter().flat_map(|line| &line.points);
    points.map(of).fold(f64::INFINITY, f64::min)
}

/// Lines whose x is as given and whose y is a power of ten.
fn chart(
    title: &str,
    lines: &[Line],
    (x_min, x_max): (f64, f64),
    x_ticks: &[(f64, String)],
    x_name: &str,
    y_name: &str,
) -> String {
    let (y_min, y_max) = (
        least(lines, |p| p.1).floor(),
        greatest(lines, |p| p.1).ceil(),
    );
    let y_max = y_max.max(y_min + 1.0);
    let right = WIDTH - RIGHT;
    let bottom = HEIGHT - BOTTOM;
    let x_of = |x: f64| LEFT + (x - x_min) / (x_max - x_min) * (right - LEFT);
    let y_of = |y: f64| bottom - (y - y_min) / (y_max - y_min) * (bottom - TOP);
    let mut svg = begin(title, HEIGHT);
    for (x, name) in x_ticks {
        let x = x_of(*x);
        let _ = write!(
            svg,
            "<path d='M{x:.1} {TOP}V{bottom}' stroke='#ddd'/>\
             <text x='{x:.1}' y='{:.1}' text-anchor='middle'>{name}</text>",
            bottom + 18.0
        );
    }
    for power in y_min as i32..=y_max as i32 {
        let y = y_of(f64::from(power));
        let _ = write!(
            svg,
            "<path d='M{LEFT} {y:.1}H{right}' stroke='#ddd'/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end'>{}</text>",
            LEFT - 8.0,
            y + 4.0,
            power_text(power)
        );
    }
    for (index, line) in lines.iter().enumerate() {
        // What the machine itself costs is drawn apart from what is measured on it.
        let (colour, dash) = match line.name.split_once(' ') {
            Some(("bare", what)) if what.starts_with("futex") => {
                ("#444", " stroke-dasharray='2 2'")
            }
            Some(("bare", _)) => ("#444", " stroke-dasharray='6 3'"),
            _ => (COLOURS[index % COLOURS.len()], ""),
        };
        let mut path = String::new();
        for (x, y) in line.points.iter().filter(|point| point.0 <= x_max) {
            let _ = write!(path, "{:.1},{:.1} ", x_of(*x), y_of(*y));
        }
        let y = TOP + 14.0 + 20.0 * index as f64;
        let _ = write!(
            svg,
            "<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'{dash}/>\
             <path d='M{:.1} {:.1}h20' stroke='{colour}' stroke-width='3'{dash}/>\
             <text x='{:.1}' y='{y:.1}'>{}</text>",
            right + 16.0,
            y - 4.0,
            right + 42.0,
            escaped(&line.name)
        );
    }
    let _ = write!(
        svg,
        "<text x='{:.1}' y='{:.1}' text-anchor='middle'>{x_name}</text>\
         <text transform='translate(22 {:.1}) rotate(-90)' text-anchor='middle'>{y_name}</text></svg>",
        (LEFT + right) / 2.0,
        HEIGHT - 16.0,
        (TOP + bottom) / 2.0
    );
    svg
}

/// A power of ten at an axis.
fn power_text(power: i32) -> String {
    match power {
        6.. => format!("{} M", 10f64.powi(power - 6)),
        3.. => grouped(10f64.powi(power)),
        _ => 10f64.powi(power).to_string(),
    }
}

struct Bar {
    name: String,
    /// Parts of the greatest length: the dark one, and the light one behind it.
    dark: f64,
    light: f64,
    text: String,
}

/// Latencies over a scale of powers of ten, the shortest first, floors among them.
fn latency_bars(
    title: &str,
    mut rows: Vec<(String, f64, f64)>,
    floors: crate::floors::Floors,
) -> String {
    for (name, floor) in [("shared memory", floors.shm), ("TCP", floors.tcp)] {
        rows.push((format!("floor: bare {name}"), floor, floor));
    }
    rows.sort_by(|a, b| a.1.total_cmp(&b.1));
    let scale = |ns: f64| ((ns.max(50.0) / 50.0).log10() / 4.5).min(1.0);
    let bar = |(name, p50, p99): (String, f64, f64)| Bar {
        name,
        dark: scale(p50),
        light: scale(p99),
        text: format!("{:.2} / {:.2}", p50 / 1e3, p99 / 1e3),
    };
    bars_svg(title, rows.into_iter().map(bar).collect())
}

/// Rates over a scale of powers of ten, the greatest first.
fn rate_bars(title: &str, mut rows: Vec<(String, f64)>) -> String {
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let scale = |rate: f64| ((rate.max(1e4) / 1e4).log10() / 4.0).min(1.0);
    let bar = |(name, rate): (String, f64)| Bar {
        name,
        dark: scale(rate),
        light: scale(rate),
        text: format!("{:.2}", rate / 1e6),
    };
    bars_svg(title, rows.into_iter().map(bar).collect())
}

fn bars_svg(title: &str, bars: Vec<Bar>) -> String {
    let height = TOP + 30.0 * bars.len() as f64 + 20.0;
    let left = 220.0;
    let longest = WIDTH - left - 150.0;
    let mut svg = begin(title, height);
    for (index, bar) in bars.iter().enumerate() {
        let y = TOP + 30.0 * index as f64;
        // What the machine costs, ours, and what else there is.
        let colour = match bar.name.split([' ', ':']).next() {
            Some("floor") => "#7f7f7f",
            Some("shm" | "tcp") => "#d62728",
            _ => "#1f77b4",
        };
        let (dark, light) = (bar.dark * longest, bar.light * longest);
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{:.1}' text-anchor='end'>{}</text>\
             <rect x='{left}' y='{y:.1}' width='{light:.1}' height='20' fill='{colour}' opacity='0.35'/>\
             <rect x='{left}' y='{y:.1}' width='{dark:.1}' height='20' fill='{colour}'/>\
             <text x='{:.1}' y='{:.1}'>{}</text>",
            left - 8.0,
            y + 15.0,
            escaped(&bar.name),
            left + light + 8.0,
            y + 15.0,
            bar.text
        );
    }
    svg.push_str("</svg>");
    svg
}

fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' \
         height='{height}' font-family='sans-serif' font-size='13'>\
         <rect width='100%' height='100%' fill='white'/>\
         <text x='{:.1}' y='24' font-size='16' text-anchor='middle'>{}</text>",
        WIDTH / 2.0,
        escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
