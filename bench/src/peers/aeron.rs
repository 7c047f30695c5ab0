//! Aeron IPC by the crates rusteron-client and rusteron-media-driver: a stream each way, with both
//! sides polling. The driver makes the streams, moves their limits and clears what was read; it is
//! a process of its own, as in production, and sleeps between its rounds.

use std::time::{Duration, Instant};

use lapce_ai::ipc::monotonic_ns;
use rusteron_client::{
    AERON_IPC_STREAM, Aeron, AeronContext, AeronExclusivePublication, AeronImage,
    AeronSubscription, Handlers, IntoCString,
};
use rusteron_media_driver::bindings::aeron_threading_mode_enum as ThreadingMode;
use rusteron_media_driver::{AeronDriver, AeronDriverContext};

use super::round_trips::RoundTrips;
use super::scratch::Scratch;
use super::tcp;
use super::window::{Clock, WINDOW, Window};
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::host::Watch;
use crate::payloads::{payload, stamp};
use crate::row::Row;

const BYTES: usize = 64;
const REQUESTS: i32 = 1001;
const ANSWERS: i32 = 1002;
const PATIENCE: Duration = Duration::from_secs(10);
const WARM_UP: u64 = 10_000;
/// Polls without a message between two looks at the clock.
const POLLS_MAX: u32 = 1 << 20;

/// The driver: everything on one thread, which takes a CPU for some microseconds a millisecond.
pub fn drive(directory: &str) -> Result<(), Failure> {
    let context = AeronDriverContext::new()?;
    context.set_dir(&directory.into_c_string())?;
    context.set_dir_delete_on_start(true)?;
    context.set_threading_mode(ThreadingMode::AERON_THREADING_MODE_SHARED)?;
    context.set_shared_idle_strategy_init_args(c"1ms")?;
    context.set_shared_idle_strategy(c"sleep-ns")?;
    context.set_term_buffer_sparse_file(false)?;
    let driver = AeronDriver::new(&context)?;
    driver.start(true)?;
    println!("ready {directory}");
    loop {
        driver.main_idle_strategy(driver.main_do_work()?);
    }
}

/// A process's side: what it sends on, and what it receives from.
struct Side {
    publication: AeronExclusivePublication,
    subscription: AeronSubscription,
    _aeron: Aeron,
}

impl Side {
    fn open(directory: &str, to: i32, from: i32) -> Result<Side, Failure> {
        let context = AeronContext::new()?;
        context.set_dir(&directory.into_c_string())?;
        // Else the first lap of each stream, 192 MiB, costs a page fault every 42 messages.
        context.set_pre_touch_mapped_memory(true)?;
        // Its own handler ends the process, and the bench with it.
        context.set_error_handler(Some(|code: i32, text: &str| {
            eprintln!("Aeron: error {code}: {text}");
        }))?;
        let aeron = Aeron::new(&context)?;
        aeron.start()?;
        let adding = aeron.async_add_exclusive_publication(AERON_IPC_STREAM, to)?;
        let publication = wait_for(|| Ok(adding.poll()?))?;
        let adding =
            aeron.async_add_subscription(AERON_IPC_STREAM, from, Handlers::NONE, Handlers::NONE)?;
        let subscription = wait_for(|| Ok(adding.poll()?))?;
        Ok(Side {
            publication,
            subscription,
            _aeron: aeron,
        })
    }

    /// The other side's stream, when both are connected.
    fn image(&self) -> Result<AeronImage, Failure> {
        wait_for(|| {
            let connected = self.publication.is_connected();
            Ok(self.subscription.image_at_index(0).filter(|_| connected))
        })
    }

    /// Sends one message, when there is room.
    fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut refused = 0;
        loop {
            // A claim, filled and committed, takes 70 ns a round trip longer.
            match self.publication.offer(bytes) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() && refused < POLLS_MAX => refused += 1,
                Err(error) => return Err(error.into()),
            }
            std::hint::spin_loop();
        }
    }
}

fn wait_for<T>(mut look: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if began.elapsed() > PATIENCE {
            return Err("the driver does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Who echoes.
pub fn serve(directory: &str) -> Result<(), Failure> {
    let side = Side::open(directory, ANSWERS, REQUESTS)?;
    println!("ready {directory}");
    let image = side.image()?;
    let mut result = Ok(());
    while result.is_ok() {
        let count = image.poll_fn(
            |bytes, _| {
                if result.is_ok() {
                    result = side.send(bytes);
                }
            },
            WINDOW,
        )?;
        if count == 0 {
            std::hint::spin_loop();
        }
    }
    result
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let host = &context.host;
    let cpu = host.server_cpu.to_string();
    // A third CPU for the driver, if there is one.
    let taken = [host.client_cpu, host.server_cpu];
    let third = host.cpus.iter().find(|cpu| !taken.contains(cpu));
    let third = third.unwrap_or(&host.server_cpu).to_string();
    let duration = context.duration.as_nanos() as u64;
    let scratch = Scratch::new("aeron");
    let directory = format!("/dev/shm/{}", scratch.name());
    for windowed in [false, true] {
        context.measure(tcp::row("Aeron IPC", windowed), |row| {
            scratch.clear();
            let start =
                |kind, cpu| Served::start(&["--kind", kind, "--cpu", cpu, "--name", &directory]);
            let _driver = start("aeron-driver", &third)?;
            let _served = start("aeron", &cpu)?;
            let side = Side::open(&directory, REQUESTS, ANSWERS)?;
            let image = side.image()?;
            // All that its threads do until then takes half a second, and is not measured.
            row.watch = Watch::start();
            match windowed {
                true => window(&side, &image, row, duration),
                false => one_by_one(&side, &image, row, duration),
            }
        })?;
    }
    Ok(())
}

/// Polls until something came.
fn receive(image: &AeronImage, mut take: impl FnMut(&[u8])) -> Result<(), Failure> {
    let mut polls = 0;
    loop {
        if image.poll_fn(|bytes, _| take(bytes), WINDOW)? > 0 {
            return Ok(());
        }
        polls += 1;
        if polls % POLLS_MAX == 0 && image.is_closed() {
            return Err("the other side is gone".into());
        }
        std::hint::spin_loop();
    }
}

fn one_by_one(
    side: &Side,
    image: &AeronImage,
    row: &mut Row,
    duration: u64,
) -> Result<(), Failure> {
    let mut trips = RoundTrips::new(WARM_UP, duration);
    let mut sent = payload(BYTES);
    let mut got = vec![0; BYTES];
    for number in 0u64.. {
        stamp(&mut sent, number);
        let start = monotonic_ns();
        side.send(&sent)?;
        let mut right_length = true;
        receive(image, |bytes| {
            right_length &= bytes.len() == BYTES;
            if right_length {
                got.copy_from_slice(bytes);
            }
        })?;
        let now = monotonic_ns();
        if !right_length || got != sent {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    row.push_latencies(trips.into_histogram());
    Ok(())
}

fn window(side: &Side, image: &AeronImage, row: &mut Row, duration: u64) -> Result<(), Failure> {
    let mut window = Window::new(BYTES, Clock::new(WARM_UP, duration));
    loop {
        while let Some(request) = window.next_request() {
            side.send(request)?;
        }
        receive(image, |bytes| window.take(bytes))?;
        if let Some(rate) = window.rate()? {
            row.push("requests", "/s", rate);
            return Ok(());
        }
    }
}
