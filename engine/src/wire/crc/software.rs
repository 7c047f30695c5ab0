//! Eight bytes at a time by table, for processors without a CRC-32C instruction.

use super::gf;

static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = gf::times_x(byte as u32, 8);
        let mut n = 0;
        while n < 8 {
            tables[n][byte] = value;
            value = gf::times_x(value, 8);
            n += 1;
        }
        byte += 1;
    }
    tables
};

/// Runs `len` bytes through the register `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// `src` is readable and, with `COPY`, `dst` is writable for `len` bytes; they do not overlap.
pub(super) unsafe fn run<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    mut state: u32,
) -> u32 {
    let mut at = 0;
    while len - at >= 8 {
        // SAFETY: 8 bytes from `at` are within `len`, which the caller vouches for. Volatile, since
        // another process may be writing there: what is summed must be what is copied.
        let word = unsafe {
            let bytes = src.add(at).cast::<[u8; 8]>().read_volatile();
            if COPY {
                dst.add(at).cast::<[u8; 8]>().write_volatile(bytes);
            }
            u64::from_le_bytes(bytes)
        } ^ u64::from(state);
        state = 0;
        for (n, byte) in word.to_be_bytes().into_iter().enumerate() {
            state ^= TABLES[n][usize::from(byte)];
        }
        at += 8;
    }
    while at < len {
        // SAFETY: as above.
        let byte = unsafe {
            let byte = src.add(at).read_volatile();
            if COPY {
                dst.add(at).write_volatile(byte);
            }
            byte
        };
        state = (state >> 8) ^ TABLES[0][usize::from(state as u8 ^ byte)];
        at += 1;
    }
    state
}
