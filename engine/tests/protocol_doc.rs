//! The hex examples of docs/protocol.md, by a computation that uses nothing of the engine: the
//! bytes, the notes beside them and CRC-32C of the crate `crc32c` must agree. (That the engine
//! makes the same bytes is tested beside its code.)

/// One example: its bytes, and each field's length and note.
struct Example {
    bytes: Vec<u8>,
    fields: Vec<(usize, String)>,
}

/// Where the hex bytes of a line end at the latest.
const HEX_COLUMNS: usize = 25;
const V2_HEADER_BYTES: usize = 24;
const V1_HEADER_BYTES: usize = 19;

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md is there")
}

fn hex_of(line: &str) -> Option<Vec<u8>> {
    let hex = line.get(..HEX_COLUMNS).unwrap_or(line).trim_end();
    let is_byte = |word: &str| word.len() == 2;
    hex.split(' ')
        .map(|word| u8::from_str_radix(word, 16).ok().filter(|_| is_byte(word)))
        .collect()
}

fn example(block: &str) -> Option<Example> {
    let mut example = Example {
        bytes: Vec::new(),
        fields: Vec::new(),
    };
    for line in block.lines() {
        let bytes = hex_of(line)?;
        example.bytes.extend_from_slice(&bytes);
        match line.get(HEX_COLUMNS..).map(str::trim) {
            Some(note) if !note.is_empty() => example.fields.push((bytes.len(), note.to_owned())),
            // A field that goes on.
            _ => example.fields.last_mut()?.0 += bytes.len(),
        }
    }
    Some(example)
}

/// The examples of a document, in order.
fn examples(document: &str) -> Vec<Example> {
    let blocks = document.split("```text\n").skip(1);
    blocks
        .filter_map(|block| example(block.split("```").next()?))
        .collect()
}

fn number_le(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn number_be(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// CRC-32C as the document describes it.
fn crc_of(frame: &[u8]) -> u32 {
    let mut summed = frame.to_vec();
    summed[20..24].fill(0);
    crc32c::crc32c(&summed)
}

fn msg_type(name: &str) -> u64 {
    match name {
        "ERROR" => 0x0004,
        "HEARTBEAT" => 0x0005,
        "HANDSHAKE" => 0x0010,
        "ECHO" => 0x00F0,
        other => panic!("{other} has no number here"),
    }
}

/// What a note says beside the field's bytes.
fn check_note(bytes: &[u8], note: &str, number: u64) {
    let Some((name, value)) = note.split_once(": ") else {
        if let Some(text) = note
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
        {
            assert_eq!(bytes, text.as_bytes(), "{note}");
        } else if let Some(tag) = note.strip_prefix("tag ") {
            let digits = tag.split(' ').next().unwrap();
            assert_eq!(number_le(&bytes[..2]), digits.parse().unwrap(), "{note}");
            let length = note.rsplit(' ').nth(1).unwrap();
            assert_eq!(number_le(&bytes[2..]), length.parse().unwrap(), "{note}");
        } else if let Ok(value) = note.parse::<u64>() {
            assert_eq!(number, value, "{note}");
        }
        return;
    };
    match name {
        "version" | "length" | "msg_id" | "acquired" | "reused" | "uncompressed size" => {
            assert_eq!(number, value.parse().unwrap(), "{note}");
        }
        "msg_type" => assert_eq!(number, msg_type(value), "{note}"),
        "flags" => {
            let bit = |word| match word {
                "COMPRESSED" => 0x01,
                "REQUEST" => 0x10,
                "RESPONSE" => 0x20,
                other => panic!("{other} is no flag of the examples"),
            };
            let none = value.starts_with("none");
            let flags = value.split(" | ").filter(|_| !none).map(bit).sum::<u64>();
            assert_eq!(number, flags, "{note}");
        }
        "crc32" => {
            let hex = value.strip_prefix("0x").expect("a number in hex");
            assert_eq!(number, u64::from_str_radix(hex, 16).unwrap(), "{note}");
        }
        "code" => {
            let digits = value.split(',').next().unwrap();
            assert_eq!(number_le(bytes), digits.parse().unwrap(), "{note}");
        }
        // A text with a colon in it.
        _ => assert_eq!(bytes, note.trim_matches('"').as_bytes(), "{note}"),
    }
}

fn check(example: &Example) {
    let bytes = &example.bytes;
    let v2 = bytes[..4] == *b"IAPL";
    assert!(v2 || bytes[..4] == *b"LPAI", "{:02x?}", &bytes[..4]);
    if v2 {
        assert_eq!(
            bytes.len() as u64,
            V2_HEADER_BYTES as u64 + number_le(&bytes[8..12])
        );
        assert_eq!(number_le(&bytes[20..24]), u64::from(crc_of(bytes)));
    } else {
        assert_eq!(
            bytes.len() as u64,
            V1_HEADER_BYTES as u64 + number_be(&bytes[7..11])
        );
    }
    let mut rest = &bytes[..];
    for (length, note) in &example.fields {
        let (field, after) = rest.split_at(*length);
        rest = after;
        let number = if v2 { number_le } else { number_be };
        check_note(field, note, number(field));
    }
    assert!(rest.is_empty());
}

/// A length of an LZ4 sequence: 15 in the token goes on in bytes, up to one that is not 255.
fn lz4_length(block: &[u8], at: &mut usize, nibble: u8) -> usize {
    let (mut length, mut more) = (usize::from(nibble), nibble == 15);
    // Bounded by the block.
    while more {
        length += usize::from(block[*at]);
        more = block[*at] == 255;
        *at += 1;
    }
    length
}

/// An LZ4 block by its format's description, for the example only.
fn lz4_block(block: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    // Each turn takes at least the token.
    while at < block.len() {
        let token = block[at];
        at += 1;
        let literals = lz4_length(block, &mut at, token >> 4);
        out.extend_from_slice(&block[at..at + literals]);
        at += literals;
        if at == block.len() {
            break;
        }
        let offset = number_le(&block[at..at + 2]) as usize;
        at += 2;
        for _ in 0..lz4_length(block, &mut at, token & 15) + 4 {
            out.push(out[out.len() - offset]);
        }
    }
    out
}

#[test]
fn every_example_is_what_its_notes_say() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    let examples = examples(&document());
    // HEARTBEAT, ECHO and its answer, two errors, HANDSHAKE, LZ4, pool report, two of version 1.
    assert!(examples.len() >= 10, "{} examples", examples.len());
    examples.iter().for_each(check);
}

#[test]
fn every_kind_of_frame_has_an_example() {
    let examples = examples(&document());
    let has = |what: &dyn Fn(&[u8]) -> bool| examples.iter().any(|example| what(&example.bytes));
    for msg_type in [0x04, 0x05, 0x10, 0xF0] {
        assert!(
            has(&|b| b[0] == b'I' && b[6] == msg_type),
            "type {msg_type}"
        );
    }
    assert!(has(&|b| b[0] == b'I' && b[5] & 0x01 != 0), "compressed");
    assert!(has(&|b| b[0] == b'I' && b[24..].starts_with(b"LPPOOL01")));
    assert!(has(&|b| b[0] == b'L' && b[6] == 0xF0), "version 1");
}

#[test]
fn the_compressed_example_holds_what_the_text_says() {
    let examples = examples(&document());
    let compressed = examples
        .iter()
        .find(|example| example.bytes[0] == b'I' && example.bytes[5] & 0x01 != 0)
        .expect("an example");
    assert_eq!(
        lz4_block(&compressed.bytes[V2_HEADER_BYTES + 4..]),
        [b'a'; 64]
    );
}

#[test]
fn a_changed_byte_is_noticed() {
    let mut examples = examples(&document());
    let heartbeat = examples.remove(0);
    assert_eq!(
        u64::from(crc_of(&heartbeat.bytes)),
        number_le(&heartbeat.bytes[20..24])
    );
    for at in 0..20 {
        let mut damaged = heartbeat.bytes.clone();
        damaged[at] ^= 1;
        assert_ne!(u64::from(crc_of(&damaged)), number_le(&damaged[20..24]));
    }
}
