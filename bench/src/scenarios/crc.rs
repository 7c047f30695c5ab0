//! Checksums: ours beside the crates a user would pick.

use std::hint::black_box;

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use lapce_ai::bench_internals::crc;
use lapce_ai::ipc::monotonic_ns;

use crate::context::{Context, Failure, bytes_text};
use crate::payloads::payload;
use crate::row::Row;

const SIZES: [usize; 8] = [24, 64, 88, 256, 1024, 4096, 65_536, 1_048_576];
/// What one sample lasts; runs take turns, so that a change of the machine meets all alike.
const SAMPLE_NS: f64 = 200_000.0;
const ROUNDS: usize = 41;
const QUICK_ROUNDS: usize = 11;
/// As fast as: a hundredth is within the noise of a median.
const TOLERANCE: f64 = 1.03;
const BATCH: usize = 32;

type Sum = fn(&[u8]) -> u32;

const SUBJECTS: [(&str, Sum); 3] = [
    ("ours", crc::crc32c),
    ("crate crc32c", crc32c::crc32c),
    ("crate crc-fast", fast),
];

fn fast(bytes: &[u8]) -> u32 {
    crc_fast::checksum(Crc32Iscsi, bytes) as u32
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let rounds = if context.quick { QUICK_ROUNDS } else { ROUNDS };
    let mut behind = Vec::new();
    for bytes in SIZES {
        context
            .bar
            .set_message(format!("crc: {}", bytes_text(bytes)));
        let data = payload(bytes);
        let mut rows =
            SUBJECTS.map(|(name, _)| Row::new("crc", name, bytes_text(bytes), bytes as f64));
        for _ in 0..rounds {
            for (row, (_, sum)) in rows.iter_mut().zip(SUBJECTS) {
                assert_eq!(sum(&data), crc32c::crc32c(&data));
                let ns = each_ns(|| sum(black_box(&data)));
                row.push("time", "ns", ns);
                row.push("speed", "GB/s", bytes as f64 / ns);
            }
        }
        let medians = rows
            .each_ref()
            .map(|row| row.median("time").unwrap_or(f64::NAN));
        if medians[0] > TOLERANCE * medians[1].min(medians[2]) {
            let best = medians[1].min(medians[2]);
            behind.push(format!(
                "{}: {:.1} ns against {best:.1}",
                bytes_text(bytes),
                medians[0]
            ));
        }
        context.rows.extend(rows);
    }
    let measured = if behind.is_empty() {
        "at every size".to_owned()
    } else {
        behind.join("; ")
    };
    context.verdict(
        "CRC-32C at least as fast as the better crate, 24 B to 1 MiB (within 3 %)",
        measured,
        behind.is_empty(),
    );
    batches(context, rounds);
    Ok(())
}

/// Frames of 64 bytes, header included: many at once against one by one.
fn batches(context: &mut Context, rounds: usize) {
    let data = payload(BATCH * 64);
    let frames: Vec<&[u8]> = data.chunks_exact(64).collect();
    let parts: Vec<(&[u8; 24], &[u8])> = frames
        .iter()
        .filter_map(|frame| frame.split_first_chunk())
        .collect();
    let mut batched = [0; BATCH];
    let mut single = [0; BATCH];
    let mut rows =
        ["one by one", "in a batch"].map(|name| Row::new("crc", name, "64 B frames", 64.0));
    for _ in 0..rounds {
        let one_ns = each_ns(|| {
            for (sum, (header, rest)) in single.iter_mut().zip(black_box(&parts)) {
                *sum = crc::frame_crc(header, rest);
            }
            single[BATCH - 1]
        });
        let batch_ns = each_ns(|| {
            crc::frame_batch(black_box(&frames), &mut batched);
            batched[BATCH - 1]
        });
        rows[0].push("time", "ns", one_ns / BATCH as f64);
        rows[1].push("time", "ns", batch_ns / BATCH as f64);
    }
    assert_eq!(single, batched);
    let [one, batch] = rows
        .each_ref()
        .map(|row| row.median("time").unwrap_or(f64::NAN));
    context.rows.extend(rows);
    context.verdict(
        "batches of 64 B frames at least twice as fast as one by one",
        format!(
            "{:.2} times: {batch:.1} ns against {one:.1} ns a frame",
            one / batch
        ),
        one / batch >= 2.0,
    );
}

/// Nanoseconds of a call, over as many as a sample lasts.
fn each_ns(mut call: impl FnMut() -> u32) -> f64 {
    let mut count = 1u64;
    // Doubles until a sample is long enough; 40 doublings are years.
    for _ in 0..40 {
        let start = monotonic_ns();
        for _ in 0..count {
            black_box(call());
        }
        let ns = (monotonic_ns() - start) as f64;
        if ns >= SAMPLE_NS {
            return ns / count as f64;
        }
        count *= 2;
    }
    f64::NAN
}
