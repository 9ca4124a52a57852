//! Decodes a fixed input once. `script/instructions` counts the instructions of that.
//!
//! Usage: `instructions CASE`. Without a case it prints the names of all cases.

use std::env;
use std::hint::black_box;
use stomp::{Decoder, Options, Version, encode_head};

/// The size of the pieces in which the decoder gets its input, as from a socket.
const READ: usize = 256 * 1024;

/// The name of a case, and the function that makes its input.
type Case = (&'static str, fn() -> Vec<u8>);

const CASES: &[Case] = &[
    ("feed-32", || feed(32, false)),
    ("feed-256", || feed(256, false)),
    ("feed-256-without-length", || without_length(256)),
    ("feed-1500", || feed(1500, false)),
    ("feed-16384", || feed(16_384, false)),
    ("escapes-256", || feed(256, true)),
    ("heart-beats", || vec![b'\n'; 1_000_000]),
];

fn main() {
    let Some(wanted) = env::args().nth(1) else {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, input) = CASES
        .iter()
        .find(|(name, _)| *name == wanted)
        .expect("a case");
    black_box(decode_all(&input()));
}

/// `script/instructions` counts the instructions of this function, which it finds by its name.
#[inline(never)]
#[unsafe(no_mangle)]
fn decode_all(input: &[u8]) -> usize {
    let mut decoder: Decoder = Decoder::new(Some(Version::V1_2.into()), Options::default());
    let mut bytes = 0;
    for mut piece in input.chunks(READ) {
        while let Some(frame) = decoder.next(&mut piece).expect("good frames") {
            for header in frame.headers() {
                bytes += header.name().len() + header.value().len();
            }
            bytes += frame.body.as_ref().len();
        }
    }
    bytes
}

fn feed(body: usize, escapes: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..2000 {
        let id = if escapes {
            format!("ID:amq-1:{n}")
        } else {
            format!("T_0@@session@@{n}")
        };
        let headers = [
            ("subscription", "0"),
            ("destination", "/topic/darwin.pushport-v16"),
            ("message-id", &id),
            ("ack", &id),
            ("redelivered", "false"),
            ("content-type", "application/octet-stream"),
            ("FilterHeaderLevel", "TS"),
            ("MessageType", "TS"),
        ];
        let headers = headers.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let version = Some(Version::V1_2.into());
        encode_head(stomp::Command::Message, headers, body, version, &mut bytes).expect("a frame");
        bytes.resize(bytes.len() + body, b'x');
        bytes.extend_from_slice(b"\0\n");
    }
    bytes
}

fn without_length(body: usize) -> Vec<u8> {
    let bytes = feed(body, false);
    let line = format!("content-length:{body}\n");
    let mut text = String::from_utf8(bytes).expect("all of it is ASCII");
    text = text.replace(&line, "");
    text.into_bytes()
}
