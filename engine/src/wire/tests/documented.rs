//! The worked examples of docs/protocol.md are what the code makes.

use std::fmt::Write;

use crate::wire::{
    ErrorCode, Flags, HEADER_BYTES, Header, Hello, PoolReport, Refusal, capability, compress,
    decompress, encode_error_payload, encode_to, legacy, msg_type, verify,
};

/// Bytes of a field that go on one line.
const LINE_BYTES: usize = 8;

/// One example as it stands in the document: each field's bytes in hex and what they are.
fn example(bytes: &[u8], fields: &[(usize, &str)]) -> String {
    let (mut text, mut rest) = (String::from("```text\n"), bytes);
    for (length, note) in fields {
        let (field, after) = rest.split_at(*length);
        rest = after;
        for (line, part) in field.chunks(LINE_BYTES).enumerate() {
            let hex: Vec<String> = part.iter().map(|byte| format!("{byte:02x}")).collect();
            let note = if line == 0 { note } else { "" };
            let line = format!("{:<25} {note}", hex.join(" "));
            writeln!(text, "{}", line.trim_end()).unwrap();
        }
    }
    assert!(rest.is_empty(), "{} bytes are not described", rest.len());
    text + "```\n"
}

/// A version 2 frame: the header's fields, then those of the payload.
fn v2_example(
    (flags, flags_note): (Flags, &str),
    (msg_type, type_note): (u16, &str),
    msg_id: u64,
    payload: &[u8],
    fields: &[(usize, &str)],
) -> String {
    let mut frame = Vec::new();
    encode_to(&mut frame, flags, msg_type, msg_id, payload);
    let header = Header::parse(&frame, 1 << 20).unwrap().unwrap();
    verify(&header, &frame[HEADER_BYTES..]).unwrap();
    let (flags, msg_type, length, id, crc) = (
        format!("flags: {flags_note}"),
        format!("msg_type: {type_note}"),
        format!("length: {}", payload.len()),
        format!("msg_id: {msg_id}"),
        format!("crc32: 0x{:08X}", header.crc32),
    );
    let mut all = vec![
        (4, "magic"),
        (1, "version: 2"),
        (1, &flags),
        (2, &msg_type),
        (4, &length),
        (8, &id),
        (4, &crc),
    ];
    all.extend_from_slice(fields);
    example(&frame, &all)
}

fn v1_example(frame: &[u8], type_note: &str, fields: &[(usize, &str)]) -> String {
    let header = legacy::parse(frame, 1 << 20).unwrap().unwrap();
    let (length, id) = (
        format!("length: {}", header.length),
        format!("msg_id: {}", header.msg_id),
    );
    let mut all = vec![
        (4, "magic"),
        (1, "version: 1"),
        (2, type_note),
        (4, &length),
        (8, &id),
    ];
    all.extend_from_slice(fields);
    example(frame, &all)
}

const REQUEST: (Flags, &str) = (Flags::REQUEST, "REQUEST");
const RESPONSE: (Flags, &str) = (Flags::RESPONSE, "RESPONSE");
const ECHO: (u16, &str) = (msg_type::ECHO, "ECHO");
const ERROR: (u16, &str) = (msg_type::ERROR, "ERROR");

fn plain_frames() -> Vec<String> {
    let heartbeat = (msg_type::HEARTBEAT, "HEARTBEAT");
    let mut overloaded = Vec::new();
    encode_error_payload(&mut overloaded, ErrorCode::Overloaded, "try again");
    let mut mismatch = Vec::new();
    let refusal = Refusal::VersionMismatch { got: 1 };
    encode_error_payload(&mut mismatch, refusal.code(), &refusal.to_string());
    let report = PoolReport {
        pool_id: 0xA1B2,
        acquired: 1000,
        reused: 990,
    };
    vec![
        v2_example(REQUEST, heartbeat, 1, b"", &[]),
        v2_example(REQUEST, ECHO, 2, b"hello", &[(5, "\"hello\"")]),
        v2_example(RESPONSE, ECHO, 2, b"hello", &[(5, "\"hello\"")]),
        v2_example(
            RESPONSE,
            ERROR,
            2,
            &overloaded,
            &[(2, "code: 8, OVERLOADED"), (9, "\"try again\"")],
        ),
        v2_example(
            (Flags::NONE, "none, it is about the connection"),
            ERROR,
            0,
            &mismatch,
            &[
                (2, "code: 2, VERSION_MISMATCH"),
                (44, "\"Protocol version mismatch: expected 2, got 1\""),
            ],
        ),
        v2_example(
            REQUEST,
            heartbeat,
            9,
            &report.encode(),
            &[
                (8, "\"LPPOOL01\""),
                (8, "pool id"),
                (8, "acquired: 1000"),
                (8, "reused: 990"),
            ],
        ),
    ]
}

fn handshake() -> String {
    let hello = Hello {
        versions: &[2],
        capabilities: capability::COMPRESSION | capability::SHM,
        identity: Some("editor"),
        credentials: Some(b"secret"),
        max_message_bytes: Some(1 << 20),
        ..Hello::default()
    };
    let mut payload = Vec::new();
    hello.encode(&mut payload);
    let fields = [
        (4, "tag 1 (versions), 1 byte"),
        (1, "version 2"),
        (4, "tag 2 (capabilities), 4 bytes"),
        (4, "compression | shared memory"),
        (4, "tag 3 (identity), 6 bytes"),
        (6, "\"editor\""),
        (4, "tag 4 (credentials), 6 bytes"),
        (6, "\"secret\""),
        (4, "tag 7 (max_message_bytes), 4 bytes"),
        (4, "1048576"),
    ];
    let handshake = (msg_type::HANDSHAKE, "HANDSHAKE");
    v2_example(REQUEST, handshake, 1, &payload, &fields)
}

fn compressed() -> String {
    let (mut payload, mut back) = (Vec::new(), Vec::new());
    assert!(compress(&[b'a'; 64], &mut payload));
    decompress(&payload, 64, &mut back).unwrap();
    assert_eq!(back, [b'a'; 64]);
    let flags = (Flags::REQUEST | Flags::COMPRESSED, "REQUEST | COMPRESSED");
    let fields = [
        (4, "uncompressed size: 64"),
        (payload.len() - 4, "one LZ4 block"),
    ];
    v2_example(flags, ECHO, 3, &payload, &fields)
}

fn version_1() -> Vec<String> {
    let frame = |msg_type, payload: &[u8]| {
        let mut frame = Vec::new();
        legacy::encode_to(&mut frame, msg_type, 7, payload);
        frame
    };
    let echo = frame(msg_type::ECHO, b"hi");
    let refusal = Refusal::VersionMismatch { got: 1 };
    let mut payload = Vec::new();
    encode_error_payload(&mut payload, refusal.code(), &refusal.to_string());
    vec![
        v1_example(&echo, "msg_type: ECHO", &[(2, "\"hi\"")]),
        v1_example(
            &frame(msg_type::ERROR, &payload),
            "msg_type: ERROR",
            &[
                (2, "code: 2, VERSION_MISMATCH, little-endian"),
                (44, "\"Protocol version mismatch: expected 2, got 1\""),
            ],
        ),
    ]
}

fn is_hex_line(line: &str) -> bool {
    let mut words = line.split(' ');
    words.next().is_some_and(|word| {
        word.len() == 2
            && word
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    })
}

#[test]
fn the_examples_in_the_document_are_what_the_code_makes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    let document = std::fs::read_to_string(path).unwrap();
    let mut examples = plain_frames();
    examples.push(handshake());
    examples.push(compressed());
    examples.extend(version_1());
    for example in &examples {
        assert!(
            document.contains(example.as_str()),
            "docs/protocol.md lacks this example:\n\n{example}"
        );
    }
    let hex_lines = |text: &str| text.lines().filter(|line| is_hex_line(line)).count();
    let made: usize = examples.iter().map(|example| hex_lines(example)).sum();
    assert_eq!(hex_lines(&document), made, "each hex line is checked");
}
