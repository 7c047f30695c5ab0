//! A fixed rate, whatever the server does: latency counts from when each request was due. Beside it
//! what the same costs without the engine: on a shared machine most of a p99 is stalls of the
//! machine, which meet both alike.

use std::time::Duration;

use lapce_ai::ipc::{IdleMode, Transport};

use crate::context::{Context, Failure};
use crate::row::Row;
use crate::{engine, load};

const RATES: [f64; 5] = [1_000.0, 10_000.0, 20_000.0, 100_000.0, 500_000.0];
const QUICK_RATES: [f64; 2] = [1_000.0, 100_000.0];
const BYTES: usize = 64;
const IN_FLIGHT_MAX: usize = 1024;
/// Runs of rows that a promise is judged by, and what each lasts, in parts of a usual run. At 1,000 a second
/// the third slowest of 250 requests would be the p99. At fast rates many short runs are better: a stall of
/// the machine spoils less of them.
const SLOWEST: (usize, f64) = (5, 2.0);
const SLOW: (usize, f64) = (5, 1.0);
const FAST: (usize, f64) = (9, 0.5);
/// Nothing is promised of these.
const TCP: (usize, f64) = (3, 0.5);
const QUICK: (usize, f64) = (3, 1.0);

const SCENARIO: &str = "open-loop";
const ECHO: &str = "bare echo, spinning";
const FUTEX: &str = "bare futex, parked";
/// How many requests. For the CPUs alone, what [`Probe::late_share`](crate::floors::Probe::late_share) tells.
const LATE: &str = "later than 10 µs";
/// From so many percent on a p99 is up to chance, and from 1 % on that of the CPUs. (At 0.9 to 1.0 %, in four runs of the
/// scenario, 13 of 32 were above 10 µs, and 10 of the bare echo's, each time at other rates.)
const LATE_PERCENT_MAX: f64 = 0.5;
/// More late requests than a bare echo's are the engine's from so many percent on, each in its calmest run,
const LATE_MORE_PERCENT: f64 = 1.0;
/// and from so many requests on: at 1,000 a second, of 500 each, a bare echo had 6 and the engine 12 by chance.
const LATE_MORE_MIN: f64 = 25.0;
/// Before the clock starts. For some tens of milliseconds after a process has started, one request in 200 more
/// than later finds a CPU away; the floors' process is not started for each run.
const SETTLE: Duration = Duration::from_millis(50);
/// Of a run's time, how much it is measured for.
const AWAY_PART: u32 = 4;
/// What p99 is promised to stay below, where a worker is awake.
const P99_NS_MAX: f64 = 10_000.0;
/// From this rate on so many requests come that a run need not be long.
const SLOW_RATE: f64 = 10_000.0;
/// From this rate on an adaptive worker stays awake.
const AWAKE_RATE: f64 = 20_000.0;
/// Rows that are judged beside a bare echo, and from which rate on.
const BESIDE_ECHO: [(&str, f64); 2] = [("shm spin", 0.0), ("shm adaptive", AWAKE_RATE)];
/// What the engine may add to being woken.
const WAKE_NS_MAX: f64 = 5_000.0;

/// What a row sends its requests through.
#[derive(Clone, Copy)]
enum Way {
    Echo,
    Futex,
    Engine(Transport, IdleMode),
}

impl Way {
    fn name(self) -> String {
        match self {
            Way::Echo => ECHO.to_owned(),
            Way::Futex => FUTEX.to_owned(),
            Way::Engine(transport, idle) => format!("{transport} {idle}"),
        }
    }
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let rates = if context.quick {
        &QUICK_RATES[..]
    } else {
        &RATES
    };
    let mut away = Row::new(SCENARIO, "both CPUs", "away", 0.0);
    for &rate in rates {
        let mut ways = vec![Way::Echo];
        ways.extend(engine_ways(Transport::Shm));
        if rate < AWAKE_RATE {
            ways.push(Way::Futex);
        }
        measure(context, &ways, rate, runs(context, rate), &mut away)?;
    }
    for &rate in rates {
        let runs = if context.quick { QUICK } else { TCP };
        measure(context, &engine_ways(Transport::Tcp), rate, runs, &mut away)?;
    }
    let late = away.median(LATE).unwrap_or(0.0);
    context.rows.push(away);
    for &rate in rates {
        promises(context, rate, late);
    }
    Ok(())
}

fn engine_ways(transport: Transport) -> [Way; 3] {
    [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park].map(|idle| Way::Engine(transport, idle))
}

/// Of the rows that a promise is judged by.
fn runs(context: &Context, rate: f64) -> (usize, f64) {
    match rate {
        _ if context.quick => QUICK,
        ..SLOW_RATE => SLOWEST,
        ..AWAKE_RATE => SLOW,
        _ => FAST,
    }
}

fn case(rate: f64) -> String {
    format!("{rate} a second")
}

fn measure(
    context: &mut Context,
    ways: &[Way],
    rate: f64,
    (runs, part): (usize, f64),
    away: &mut Row,
) -> Result<(), Failure> {
    let cpu = context.host.server_cpu;
    let duration = context.duration.mul_f64(part);
    let rows = ways.iter();
    let rows = rows.map(|way| Row::new(SCENARIO, way.name(), case(rate), rate));
    let doubtful = |rows: &[Row]| later_than_echo(rows, duration);
    context.measure_until(rows.collect(), runs, doubtful, |probe, index, row| {
        let latencies = match ways[index] {
            Way::Echo => {
                let late = probe.late_share(duration / AWAY_PART, P99_NS_MAX as u64 / 1000)?;
                away.push(LATE, "%", 100.0 * late);
                probe.echo_at_rate(rate, duration)?
            }
            Way::Futex => probe.futex_at_rate(rate, duration)?,
            Way::Engine(transport, idle) => {
                let served = engine::start(cpu, idle)?;
                let builder = engine::builder(idle).max_inflight(IN_FLIGHT_MAX);
                let client = engine::connect(&served, transport, builder)?;
                std::thread::sleep(SETTLE);
                load::at_rate(&client, BYTES, rate, IN_FLIGHT_MAX, duration)?
            }
        };
        let late = latencies.count_between(P99_NS_MAX as u64, u64::MAX) as f64;
        let late_percent = 100.0 * late / latencies.len() as f64;
        row.push_latencies(latencies);
        row.push(LATE, "%", late_percent);
        Ok(())
    })
}

/// Which rows that are judged beside a bare echo are later than it; if any is, the echo too.
fn later_than_echo(rows: &[Row], run: Duration) -> Vec<usize> {
    let Some(echo) = rows.iter().position(|row| row.subject == ECHO) else {
        return Vec::new();
    };
    let is_later = |&index: &usize| {
        let row = &rows[index];
        let is_judged = BESIDE_ECHO
            .iter()
            .any(|(subject, from)| row.subject == *subject && row.x >= *from);
        is_judged && is_later(row, &rows[echo], run)
    };
    let mut later: Vec<usize> = (0..rows.len()).filter(is_later).collect();
    if !later.is_empty() {
        later.push(echo);
    }
    later
}

/// Whether a row has so many more late requests than a bare echo that they are the engine's. The calmest runs tell:
/// what the machine does differs from run to run.
fn is_later(row: &Row, echo: &Row, run: Duration) -> bool {
    let requests = row.x * run.as_secs_f64();
    let telling_percent = LATE_MORE_PERCENT.max(100.0 * LATE_MORE_MIN / requests);
    late_least(row) - late_least(echo) >= telling_percent
}

/// How many percent of requests were late in the run with the fewest.
fn late_least(row: &Row) -> f64 {
    row.metric(LATE)
        .map_or(f64::NAN, |metric| metric.spread().0)
}

/// `late`: how many percent of requests at a fixed rate find a CPU away for more than 10 µs.
fn promises(context: &mut Context, rate: f64, late: f64) {
    let run = context.duration.mul_f64(runs(context, rate).1);
    // Where that nears a hundredth, a p99 is how long a CPU was away.
    let why = format!("{late:.1} % of all requests find a CPU away for more than 10 µs");
    let spoilt = late >= LATE_PERCENT_MAX;
    for (subject, _) in BESIDE_ECHO.iter().filter(|(_, from)| rate >= *from) {
        let find = |subject: &str| context.find(SCENARIO, subject, &case(rate));
        let (Some(row), Some(echo_row)) = (find(subject), find(ECHO)) else {
            return;
        };
        let (Some(own), Some(echo)) = (row.judged("p99"), echo_row.judged("p99")) else {
            return;
        };
        let mode = subject.trim_start_matches("shm ");
        let promise = format!("p99 below 10 µs over shm, {rate} a second: {mode}");
        if !spoilt || own.value < P99_NS_MAX {
            context.judge_beside_bare(promise, own, echo, P99_NS_MAX);
            continue;
        }
        let measured = format!(
            "{}; a bare echo has {}; {why}; later in the calmest run {:.1} %, bare {:.1}",
            own.us(),
            echo.us(),
            late_least(row),
            late_least(echo_row),
        );
        if is_later(row, echo_row, run) {
            context.verdict(promise, measured, false);
        } else {
            context.not_judged(promise, measured);
        }
    }
    let p99 = |subject: &str| context.find(SCENARIO, subject, &case(rate))?.judged("p99");
    if let (Some(adaptive), Some(futex)) = (p99("shm adaptive"), p99(FUTEX)) {
        let promise = format!("p99 at most 5 µs above a bare futex's, {rate} a second: adaptive");
        let measured = format!("{}; a bare futex has {}", adaptive.us(), futex.us());
        let keeps = adaptive.value <= futex.value + WAKE_NS_MAX;
        if spoilt && !keeps {
            context.not_judged(promise, format!("{measured}; {why}"));
        } else {
            context.judge(promise, measured, adaptive, Some(futex), keeps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn rows(rate: f64, late: &[(&str, &[f64])]) -> Vec<Row> {
        let row = |&(subject, shares): &(&str, &[f64])| {
            let mut row = Row::new(SCENARIO, subject, case(rate), rate);
            for &share in shares {
                row.push(LATE, "%", share);
            }
            row
        };
        late.iter().map(row).collect()
    }

    #[test]
    fn only_what_is_judged_and_later_than_the_echo_is_measured_again() {
        let late: &[(&str, &[f64])] = &[
            (ECHO, &[2.5, 1.2]),
            ("shm spin", &[9.0, 2.1]),
            ("shm adaptive", &[2.3, 7.0]),
            ("shm park", &[60.0, 50.0]),
        ];
        let run = Duration::from_millis(125);
        assert_eq!(later_than_echo(&rows(100_000.0, late), run), [2, 0]);
        // An adaptive worker sleeps at this rate.
        let run = Duration::from_millis(500);
        assert_eq!(later_than_echo(&rows(10_000.0, late), run), NONE);
        assert_eq!(later_than_echo(&rows(100_000.0, &late[1..]), run), NONE);
    }

    #[test]
    fn a_few_late_requests_more_tell_nothing() {
        let late: &[(&str, &[f64])] = &[(ECHO, &[1.2]), ("shm spin", &[2.4])];
        let run = Duration::from_millis(500);
        assert_eq!(later_than_echo(&rows(1_000.0, late), run), NONE);
        assert_eq!(later_than_echo(&rows(10_000.0, late), run), [1, 0]);
    }
}
