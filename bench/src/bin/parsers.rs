//! Compares decoders without I/O: `parsers FILE [ROUNDS]`. The file holds frames.
//!
//! In each round the decoders decode the file once, one after the other, and hand out headers and
//! bodies. Prints a line for each round: bytes/s of ours and of `async-stomp`.

use async_stomp::client::ClientCodec;
use bytes::BytesMut;
use std::hint::black_box;
use std::time::Instant;
use std::{env, fs};
use stomp::{Decoder, Options, Version};
use tokio_util::codec::Decoder as _;

/// The size of a read. The decoders that take pieces get the file in pieces of this size.
const READ: usize = 256 * 1024;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let input = fs::read(&arguments[1]).expect("a file of frames");
    let rounds = arguments
        .get(2)
        .map_or(5, |rounds| rounds.parse().expect("a number"));
    let expected = ours(&input);
    for _ in 0..rounds {
        let rates = [
            rate(&input, expected, || ours(&input)),
            rate(&input, expected, || async_stomp(&input)),
        ];
        println!("{} {}", rates[0], rates[1]);
    }
}

fn rate(input: &[u8], expected: usize, decode: impl Fn() -> usize) -> u64 {
    let started = Instant::now();
    assert_eq!(decode(), expected);
    (input.len() as f64 / started.elapsed().as_secs_f64()) as u64
}

fn ours(input: &[u8]) -> usize {
    let mut decoder: Decoder = Decoder::new(Some(Version::V1_2.into()), Options::default());
    let mut count = 0;
    for mut piece in input.chunks(READ) {
        while let Some(frame) = decoder.next(&mut piece).expect("good frames") {
            for header in frame.headers() {
                black_box((header.name(), header.value()));
            }
            black_box(frame.body.as_ref());
            count += 1;
        }
    }
    count
}

fn async_stomp(input: &[u8]) -> usize {
    let (mut codec, mut buffer, mut count) = (ClientCodec::new(), BytesMut::new(), 0);
    for piece in input.chunks(READ) {
        buffer.extend_from_slice(piece);
        while let Some(message) = codec.decode(&mut buffer).expect("a good frame") {
            if matches!(message.content, async_stomp::FromServer::Message { .. }) {
                black_box(&message);
                count += 1;
            }
        }
    }
    count
}
