use proptest::prelude::*;

use super::kernel::Kernel;
use super::*;

/// Bytes without a pattern that a kernel's mistake could hide in.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15_u64;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// Past the lengths at which any kernel changes its way, with a few turns of each loop.
const LEN_MAX: usize = 2400;

fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::ALL
        .into_iter()
        .filter(|kernel| kernel.is_available())
}

fn append_by(kernel: Kernel, crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: only available kernels are passed; `bytes` is a slice and nothing is copied.
    !unsafe { kernel.run::<false>(std::ptr::null_mut(), bytes.as_ptr(), bytes.len(), !crc) }
}

fn copy_by(kernel: Kernel, dst: &mut [u8], src: &[u8], crc: u32) -> u32 {
    assert_eq!(dst.len(), src.len());
    // SAFETY: only available kernels are passed; both are slices of one length.
    !unsafe { kernel.run::<true>(dst.as_mut_ptr(), src.as_ptr(), src.len(), !crc) }
}

#[test]
fn known_values() {
    let ascending: Vec<u8> = (0..32).collect();
    let descending: Vec<u8> = (0..32).rev().collect();
    // The check value, then the examples of RFC 3720, B.4.
    for (bytes, expected) in [
        (&b"123456789"[..], 0xE306_9283),
        (&[0; 32], 0x8A91_36AA),
        (&[0xFF; 32], 0x62A8_AB43),
        (&ascending, 0x46DD_794E),
        (&descending, 0x113F_DB5C),
        (&[], 0),
    ] {
        assert_eq!(crc32c(bytes), expected);
        for kernel in kernels() {
            assert_eq!(append_by(kernel, 0, bytes), expected, "{kernel:?}");
        }
    }
}

/// The HEARTBEAT request with msg_id 1, as docs/protocol.md prints it.
const HEARTBEAT: [u8; 24] = [
    0x49, 0x41, 0x50, 0x4c, 0x02, 0x10, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0xa5, 0x0f, 0x06, 0xdf,
];

#[test]
fn heartbeat_frame() {
    assert_eq!(frame_crc(&HEARTBEAT, &[]), 0xdf06_0fa5);
    assert_eq!(header_seed(&HEARTBEAT), 0xdf06_0fa5);
}

#[test]
fn every_kernel_at_every_length() {
    let data = noise(LEN_MAX + 64);
    for kernel in kernels() {
        for len in 0..=LEN_MAX {
            // Every alignment comes up with every residue of the length sooner or later.
            for at in [0, len % 64, (len * 7 + 3) % 64] {
                let bytes = &data[at..at + len];
                let seed = 0x1234_5678_u32.wrapping_mul(len as u32);
                let expected = crc32c::crc32c_append(seed, bytes);
                assert_eq!(
                    append_by(kernel, seed, bytes),
                    expected,
                    "{kernel:?}, {len} bytes at {at}"
                );
            }
        }
        for len in [4096, 4099, 65_536, 65_599, (1 << 20) - 1, 1 << 20] {
            let bytes = noise(len);
            let expected = crc32c::crc32c(&bytes);
            assert_eq!(append_by(kernel, 0, &bytes), expected, "{kernel:?}, {len}");
            let mut copied = vec![0; len];
            assert_eq!(copy_by(kernel, &mut copied, &bytes, 0), expected);
            assert!(copied == bytes, "{kernel:?} copies {len} bytes");
        }
    }
}

#[test]
fn every_kernel_copies_exactly_the_bytes() {
    let data = noise(LEN_MAX + 64);
    for kernel in kernels() {
        for len in 0..=LEN_MAX {
            let (from, to) = ((len * 5) % 64, (len * 11 + 1) % 64);
            let src = &data[from..from + len];
            let mut dst = vec![0xA5; LEN_MAX + 128];
            let crc = copy_by(kernel, &mut dst[to..to + len], src, 77);
            assert_eq!(crc, crc32c::crc32c_append(77, src), "{kernel:?}, {len}");
            assert_eq!(&dst[to..to + len], src, "{kernel:?}, {len}");
            assert!(dst[..to].iter().all(|&byte| byte == 0xA5));
            assert!(dst[to + len..].iter().all(|&byte| byte == 0xA5));
        }
    }
}

/// As large as a page may be (aarch64): what begins behind it is in a page of its own everywhere.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 * 1024;

/// A page that may be touched between two that may not: a kernel that reads or writes outside its
/// bytes, even ones it then ignores, faults here.
#[cfg(target_os = "linux")]
struct Guarded(*mut u8);

#[cfg(target_os = "linux")]
impl Guarded {
    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping; the middle page of its three becomes accessible.
        unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(base, libc::MAP_FAILED);
            let page = base.cast::<u8>().add(PAGE);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(page.cast(), PAGE, access), 0);
            Self(page)
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, and nobody uses it any more.
        unsafe { libc::munmap(self.0.sub(PAGE).cast(), 3 * PAGE) };
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_kernel_leaves_its_bytes() {
    let (src, dst) = (Guarded::new(), Guarded::new());
    for kernel in kernels() {
        for len in 0..=LEN_MAX {
            for at in [0, PAGE - len] {
                // SAFETY: `len` bytes at `at` lie in the middle page of each mapping.
                unsafe {
                    let (from, to) = (src.0.add(at), dst.0.add(at));
                    let crc = kernel.run::<true>(to, from, len, 1);
                    assert_eq!(crc, kernel.run::<false>(to, from, len, 1));
                }
            }
        }
    }
}

/// Whole frames of every length, equal and unequal, each of which ends where its page does.
#[cfg(target_os = "linux")]
#[test]
fn frames_in_batches_by_every_kernel() {
    let guarded = Guarded::new();
    // SAFETY: the middle page of the mapping, which nothing else refers to; it is written here and
    // only read from here on, as long as `guarded` lives.
    let page: &[u8] = unsafe {
        std::ptr::copy_nonoverlapping(noise(PAGE).as_ptr(), guarded.0, PAGE);
        std::slice::from_raw_parts(guarded.0, PAGE)
    };
    let frame = |len: usize| &page[PAGE - len..];
    let expected: Vec<u32> = (24..=LEN_MAX)
        .map(|len| {
            let mut copy = frame(len).to_vec();
            copy[20..24].fill(0);
            append_by(Kernel::Software, 0, &copy)
        })
        .collect();
    let mut crcs = [0; 9];
    for kernel in kernels() {
        for len in 24..=LEN_MAX {
            let other = 24 + (len * 7) % 300;
            let one_less = (len - 1).max(24);
            for lens in [
                [len; 9],
                [len, len, one_less, len, len, len, len, one_less, len],
                [len, other, one_less, 24, other, len, 31, len, 40],
            ] {
                kernel.batch(&lens.map(frame), &mut crcs);
                assert_eq!(
                    crcs,
                    lens.map(|len| expected[len - 24]),
                    "{kernel:?}, {lens:?}"
                );
            }
        }
    }
}

/// A frame's CRC bit by bit, sharing nothing with the kernels but the polynomial.
fn frame_crc_bitwise(frame: &[u8]) -> u32 {
    let state = frame
        .iter()
        .enumerate()
        .fold(u32::MAX, |state, (at, &byte)| {
            let byte = if (20..24).contains(&at) { 0 } else { byte };
            gf::times_x(state ^ u32::from(byte), 8)
        });
    !state
}

/// Every number of odd bytes beside every other, at every place in a word; one of each four is
/// some words longer than the others.
#[test]
fn frames_side_by_side_by_every_kernel() {
    let data = noise(200);
    for odd in 0..4096_usize {
        let odd_of_four = [odd & 7, odd >> 3 & 7, odd >> 6 & 7, odd >> 9];
        let mut lens = odd_of_four.map(|odd| 24 + 8 * (odd % 3) + odd);
        lens[odd % 4] += 8 * (odd % 11);
        let mut at = odd % 5;
        let frames = lens.map(|len| {
            at = (at + 3) % 8;
            &data[at..][..len]
        });
        let expected = frames.map(frame_crc_bitwise);
        for kernel in kernels() {
            let mut crcs = [0; 4];
            kernel.batch(&frames, &mut crcs);
            assert_eq!(crcs, expected, "{kernel:?}, {lens:?}");
        }
    }
}

/// Every length, and every number of frames up to more than are listed at once. The last ends where the
/// page does. Each frame in turn is damaged.
#[cfg(target_os = "linux")]
#[test]
fn frames_in_rows_by_every_kernel() {
    let guarded = Guarded::new();
    // SAFETY: as in `frames_in_batches_by_every_kernel`.
    let page: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(guarded.0, PAGE) };
    let noise = noise(PAGE);
    for kernel in kernels() {
        for len in 24..=300 {
            for count in 0..=37.min(PAGE / len) {
                page.copy_from_slice(&noise);
                let row = &mut page[PAGE - count * len..];
                let begin = noise[..ID_AT].to_vec();
                for frame in row.chunks_exact_mut(len) {
                    frame[..ID_AT].copy_from_slice(&begin);
                }
                let mut expected = row.to_vec();
                for frame in expected.chunks_exact_mut(len) {
                    let crc = frame_crc_bitwise(frame);
                    frame[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
                }
                kernel.seal_row(row, len);
                assert_eq!(row, expected, "{kernel:?}, {count} of {len}");
                assert_eq!(kernel.count_good(row, len, true), count);
                for bad in 0..count {
                    let at = bad * len + (7 * bad + count) % len;
                    row[at] ^= 4;
                    assert_eq!(
                        kernel.count_good(row, len, true),
                        bad,
                        "{kernel:?}, {count} of {len}"
                    );
                    row[at] ^= 4;
                }
            }
        }
    }
}

/// As `frames_in_rows_by_every_kernel` and `frames_in_batches_by_every_kernel`, for the lanes of processors that sum
/// so and of those that could.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn frames_in_lanes() {
    for kernel in kernels().filter(|kernel| kernel.has_lanes()) {
        frames_in_lanes_by(kernel);
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn frames_in_lanes_by(kernel: Kernel) {
    let guarded = Guarded::new();
    // SAFETY: as in `frames_in_batches_by_every_kernel`.
    let page: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(guarded.0, PAGE) };
    let noise = noise(PAGE);
    for len in 24..=300 {
        let (mut sealed, mut counted) = (false, false);
        for count in 0..=13.min(PAGE / len) {
            page.copy_from_slice(&noise);
            let row = &mut page[PAGE - count * len..];
            for frame in row.chunks_exact_mut(len) {
                frame[..ID_AT].copy_from_slice(&noise[..ID_AT]);
            }
            let crcs: Vec<u32> = row.chunks_exact(len).map(frame_crc_bitwise).collect();
            let frames: Vec<&[u8]> = row.chunks_exact(len).collect();
            let (fours, _) = frames.as_chunks::<4>();
            let mut found = vec![[0; 4]; fours.len()];
            // SAFETY: the features are there.
            let batched = unsafe { lanes::batch(kernel, fours, &mut found) };
            let fours = fours.len();
            assert_eq!(found[..batched].as_flattened(), &crcs[..4 * batched]);
            let mut expected = row.to_vec();
            for (frame, crc) in expected.chunks_exact_mut(len).zip(&crcs) {
                frame[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            }
            // SAFETY: as above.
            sealed = unsafe { lanes::seal(kernel, row, len) }.is_some();
            if !sealed {
                assert_eq!(batched, 0, "{len}");
                break;
            }
            assert_eq!(batched, fours, "{len}");
            assert_eq!(row, expected, "{count} of {len}");
            for bad in 0..count {
                let at = bad * len + (7 * bad + count) % len;
                row[at] ^= 4;
                // SAFETY: as above.
                let good = unsafe { lanes::good(kernel, row, len, true) };
                row[at] ^= 4;
                counted = good.is_some();
                assert!(good.is_none_or(|good| good == bad), "{count} of {len}");
            }
            // SAFETY: as above.
            let good = unsafe { lanes::good(kernel, row, len, true) };
            assert!(good.is_none_or(|good| good == count), "{count} of {len}");
        }
        let words = (len % 8 == 0).then_some((len - 24) / 8);
        assert_eq!(
            sealed,
            words.is_some_and(|n| (3..=16).contains(&n)),
            "{len}"
        );
        assert_eq!(
            counted,
            words.is_some_and(|n| (5..=16).contains(&n)),
            "{len}"
        );
    }
}

/// Long messages at every place in a cache line, and of every number of odd bytes.
#[test]
fn long_messages_at_every_alignment() {
    const LONG: usize = 8192;
    let data = noise(LONG + 256);
    for kernel in kernels() {
        for at in 0..64 {
            let len = LONG - 1 + at;
            let (from, to) = (at, (at * 23 + 5) % 64);
            let bytes = &data[from..from + len];
            let expected = crc32c::crc32c_append(9, bytes);
            assert_eq!(append_by(kernel, 9, bytes), expected, "{kernel:?}, {at}");
            let mut copied = vec![0xA5; len + 64];
            let crc = copy_by(kernel, &mut copied[to..to + len], bytes, 9);
            assert_eq!(crc, expected, "{kernel:?}, copied, {at}");
            assert_eq!(copied[to..to + len], *bytes, "{kernel:?}, {at}");
            assert!(
                copied[..to]
                    .iter()
                    .chain(&copied[to + len..])
                    .all(|&byte| byte == 0xA5)
            );
        }
    }
}

#[test]
#[should_panic(expected = "whole frames")]
fn a_row_ends_with_a_frame() {
    seal_row(&mut [0; 5 * 24 - 1], 24);
}

#[test]
#[should_panic(expected = "a frame has a header")]
fn a_row_has_whole_headers() {
    count_good(&[0; 5 * 16], 16, false);
}

#[test]
fn frames_by_every_kernel() {
    let data = noise(700);
    for kernel in kernels() {
        for len in 0..=600 {
            let payload = &data[len % 64..][..len];
            let mut header: [u8; 24] = noise(24).try_into().unwrap();
            header[8] = len as u8;
            let mut whole = header.to_vec();
            whole[20..].fill(0);
            whole.extend_from_slice(payload);
            let expected = crc32c::crc32c(&whole);
            let mut copied = vec![0; len];
            // SAFETY: the kernel is available; `payload` and `copied` are slices of `len` bytes.
            let (summed, with_copy) = unsafe {
                let null = std::ptr::null_mut();
                (
                    !kernel.frame::<false>(header_words(&header), null, payload.as_ptr(), len),
                    !kernel.frame::<true>(
                        header_words(&header),
                        copied.as_mut_ptr(),
                        payload.as_ptr(),
                        len,
                    ),
                )
            };
            assert_eq!(summed, expected, "{kernel:?}, {len}");
            assert_eq!(with_copy, expected, "{kernel:?}, {len}");
            assert_eq!(copied, payload, "{kernel:?}, {len}");
        }
    }
}

#[test]
#[should_panic(expected = "a CRC for every frame")]
fn frame_batch_refuses_too_few_places() {
    frame_batch(&[&HEARTBEAT, &HEARTBEAT], &mut [0]);
}

#[test]
#[should_panic(expected = "a frame has a header")]
fn frame_batch_refuses_a_part_of_a_header() {
    frame_batch(&[&[0; 24], &[0; 23]], &mut [0; 2]);
}

#[test]
#[should_panic(expected = "a frame has a header")]
fn frame_batch_refuses_a_part_of_a_header_among_four() {
    frame_batch(&[&[0; 24], &[0; 23], &[0; 24], &[0; 24]], &mut [0; 4]);
}

#[test]
#[should_panic(expected = "a frame has a header")]
fn frame_batch_refuses_four_parts_of_a_header() {
    frame_batch(&[&[0; 16][..]; 4], &mut [0; 4]);
}

proptest! {
    #[test]
    fn append_in_parts_is_the_whole(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let expected = crc32c::crc32c(&bytes);
        for kernel in kernels() {
            let mut copied = vec![0; bytes.len()];
            let (mut crc, mut copy_crc) = (0, 0);
            for pair in cuts.windows(2) {
                let part = pair[0]..pair[1];
                crc = append_by(kernel, crc, &bytes[part.clone()]);
                copy_crc = copy_by(kernel, &mut copied[part.clone()], &bytes[part], copy_crc);
            }
            prop_assert_eq!(crc, expected);
            prop_assert_eq!(copy_crc, expected);
            prop_assert_eq!(&copied, &bytes);
        }
    }

    #[test]
    fn batch_is_one_by_one(
        parts in proptest::collection::vec(
            (any::<[u8; 24]>(), proptest::collection::vec(any::<u8>(), 0..300)),
            0..14,
        ),
    ) {
        let whole: Vec<Vec<u8>> = parts.iter().map(|p| [&p.0[..], &p.1].concat()).collect();
        let framed: Vec<&[u8]> = whole.iter().map(|frame| &frame[..]).collect();
        let expected: Vec<u32> = parts
            .iter()
            .map(|p| {
                let mut header = p.0;
                header[20..].fill(0);
                crc32c::crc32c_append(crc32c::crc32c(&header), &p.1)
            })
            .collect();
        let mut crcs = vec![0; parts.len()];
        for kernel in kernels() {
            kernel.batch(&framed, &mut crcs);
            prop_assert_eq!(&crcs, &expected);
        }
        frame_batch(&framed, &mut crcs);
        prop_assert_eq!(&crcs, &expected);
    }
}
