//! Compressed payloads: u32 little-endian uncompressed size, then one LZ4 block.

use super::Refusal;

const SIZE_BYTES: usize = 4;

/// The size that a compressed payload names, if it may have it.
pub(crate) fn uncompressed_bytes(payload: &[u8], max: u32) -> Option<u32> {
    let size = u32::from_le_bytes(*payload.first_chunk()?);
    (size <= max).then_some(size)
}

/// Replaces `out` by the uncompressed payload, of at most `max` bytes.
pub fn decompress(payload: &[u8], max: u32, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let (size, block) = payload
        .split_first_chunk::<SIZE_BYTES>()
        .ok_or(Refusal::BadPayload(
            "a compressed payload begins with 4 bytes of size",
        ))?;
    let size = u32::from_le_bytes(*size);
    if size > max {
        return Err(Refusal::InflatesTooFar { size, max });
    }
    // A block yields at most 255 bytes for each of its own: what names more is lying, and is
    // refused before memory is taken for it.
    if u64::from(size) > 255 * block.len() as u64 {
        return Err(Refusal::BadPayload(
            "a compressed payload names a size that it cannot have",
        ));
    }
    out.clear();
    out.resize(size as usize, 0);
    match lz4_flex::block::decompress_into(block, out) {
        Ok(length) if length == size as usize => Ok(()),
        Ok(_) => Err(Refusal::BadPayload(
            "a compressed payload is shorter than the size it names",
        )),
        Err(_) => Err(Refusal::BadPayload(
            "a compressed payload is not an LZ4 block",
        )),
    }
}

/// Replaces `out` by the compressed form of `payload`. False if that would not be smaller; then
/// the payload is to be sent as it is.
#[cfg(test)]
pub fn compress(payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(size) = u32::try_from(payload.len()) else {
        return false;
    };
    out.clear();
    out.extend_from_slice(&size.to_le_bytes());
    out.resize(
        SIZE_BYTES + lz4_flex::block::get_maximum_output_size(payload.len()),
        0,
    );
    match lz4_flex::block::compress_into(payload, &mut out[SIZE_BYTES..]) {
        Ok(length) if SIZE_BYTES + length < payload.len() => {
            out.truncate(SIZE_BYTES + length);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shrinks_comes_back() {
        let payload = b"abcabcabc".repeat(100);
        let (mut small, mut back) = (Vec::new(), Vec::new());
        assert!(compress(&payload, &mut small));
        assert!(small.len() < payload.len());
        assert_eq!(small[..4], 900u32.to_le_bytes());
        decompress(&small, 900, &mut back).unwrap();
        assert_eq!(back, payload);
        assert_eq!(
            decompress(&small, 899, &mut back),
            Err(Refusal::InflatesTooFar {
                size: 900,
                max: 899
            })
        );
    }

    #[test]
    fn what_does_not_shrink_stays() {
        assert!(!compress(b"x", &mut Vec::new()));
        assert!(!compress(b"", &mut Vec::new()));
    }

    #[test]
    fn damage_is_refused() {
        let mut out = Vec::new();
        let mut good = Vec::new();
        assert!(compress(&[7; 500], &mut good));
        for bad in [
            &good[..3],
            &good[..good.len() - 1],
            &[0xFF; 40],
            &[100, 0, 0, 0],
        ] {
            assert!(decompress(bad, 1 << 20, &mut out).is_err(), "{bad:?}");
        }
        let mut short = good.clone();
        short[0] ^= 1;
        assert!(decompress(&short, 1 << 20, &mut out).is_err());
        // An empty payload may come compressed.
        decompress(&[0, 0, 0, 0, 0], 0, &mut out).unwrap();
        assert!(out.is_empty());
    }
}
