//! Mutates the fuzzer's seeds and checks what the fuzzer checks. It needs only the stable toolchain
//! and takes seconds.

use crate::{checks, support};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Mutations for each seed. With some 300 seeds this takes a few seconds in a debug build.
const MUTATIONS: usize = 40;

/// Bytes that mean something to the decoder. Mutations insert them.
const TOKENS: &[&[u8]] = &[
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b":",
    b"\\",
    b"\\c",
    b"\\r",
    b"\\t",
    b"content-length:",
    b"content-length:0\n",
    b"content-length:9\n",
    b"version:1.0\n",
    b"MESSAGE\n",
    b"ERROR\n",
    b"\xff",
];

struct Mutator(TestRng);

impl Mutator {
    fn below(&mut self, limit: usize) -> usize {
        self.0.next_u32() as usize % limit.max(1)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let from = self.below(bytes.len() + 1);
        let to = (from + self.below(8)).min(bytes.len());
        match self.below(5) {
            0 => bytes.truncate(from),
            1 => drop(bytes.drain(from..to)),
            2 if from < bytes.len() => bytes[from] ^= 1 << self.below(8),
            3 => {
                let copy = bytes[from..to].to_vec();
                bytes.splice(to..to, copy);
            }
            _ => {
                let token = TOKENS[self.below(TOKENS.len())];
                bytes.splice(from..from, token.iter().copied());
            }
        }
    }
}

fn mutate_all(check: impl Fn(&[u8])) {
    let mut mutator = Mutator(TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    for (_, seed) in support::seeds() {
        check(&seed);
        let mut bytes = seed.clone();
        for round in 0..MUTATIONS {
            // Mutations accumulate, but start again from the seed so that they stay close to
            // valid input.
            if round % 5 == 0 {
                bytes.clone_from(&seed);
            }
            mutator.mutate(&mut bytes);
            check(&bytes);
        }
    }
}

#[test]
fn decoder() {
    mutate_all(checks::decoder);
}

#[test]
fn session() {
    mutate_all(checks::session);
}

#[test]
fn escapes() {
    mutate_all(checks::escapes);
}
