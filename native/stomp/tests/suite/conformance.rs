//! Runs the conformance cases: whole, byte by byte, and cut at every point. Short ones are also cut
//! at every pair of points.

use crate::support::{Case, Outcome, OwnedFrame, Start, cases, recordings, run};
use std::collections::HashSet;
use stomp::{Command, EncodeError, Options, Version, encode_head};

/// Inputs up to this length are cut at every pair of points. The time grows with the square.
const PAIRS_MAX: usize = 64;

/// All the ways in which an input is cut.
pub fn ways(input: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut ways = vec![vec![input], input.chunks(1).collect()];
    for cut in 0..=input.len() {
        let (left, right) = input.split_at(cut);
        ways.push(vec![left, right]);
        if input.len() <= PAIRS_MAX {
            for second in 0..=right.len() {
                let (middle, rest) = right.split_at(second);
                ways.push(vec![left, middle, rest]);
            }
        }
    }
    ways
}

fn decoding() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| case.encodes.is_none())
}

#[test]
fn every_case_is_decoded_as_it_says_however_it_is_cut() {
    for case in decoding() {
        let expected: Outcome = (case.frames.clone(), case.error.clone());
        for &start in &case.starts {
            for pieces in ways(&case.input) {
                let outcome = run(start, case.options, pieces.iter().copied());
                assert_eq!(outcome, expected, "{} {start:?} {pieces:?}", case.name);
            }
        }
    }
}

#[test]
fn every_case_about_encoding_is_encoded_as_it_says() {
    for case in cases() {
        let Some(frame) = &case.encodes else { continue };
        for &start in &case.starts {
            let Start::Connected(version) = start else {
                panic!("{}: encoding needs a version", case.name)
            };
            let expected = match &case.error {
                None => Ok(case.input.clone()),
                Some((reason, _)) => Err(reason.clone()),
            };
            assert_eq!(
                encode(frame, version),
                expected,
                "{} {version:?}",
                case.name
            );
        }
    }
}

fn encode(frame: &OwnedFrame, version: Version) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let headers = frame.headers.iter().map(|(n, v)| (&n[..], &v[..]));
    let length = frame.body.len();
    encode_head(
        frame.command,
        headers,
        length,
        Some(version.into()),
        &mut bytes,
    )
    .map_err(|error| match error {
        EncodeError::EmptyHeaderName(_) => "empty_header_name".to_string(),
        EncodeError::Unescapable(_) => "unescapable".to_string(),
    })?;
    bytes.extend_from_slice(&frame.body);
    bytes.push(0);
    Ok(bytes)
}

#[test]
fn names_of_cases_are_unique() {
    let mut seen = HashSet::new();
    for case in cases() {
        assert!(
            seen.insert(case.name.clone()),
            "there are two cases called {}",
            case.name
        );
    }
}

#[test]
fn recordings_of_brokers_are_decoded() {
    for (name, bytes) in recordings() {
        let (frames, error) = run(Start::New, Options::default(), [&bytes[..]]);
        let messages = frames
            .iter()
            .filter(|frame| frame.command == Command::Message);
        assert_eq!((messages.count(), error), (7, None), "{name}");
        assert_eq!(frames[0].command, Command::Connected);
        assert_eq!(
            frames.last().map(|frame| frame.command),
            Some(Command::Error)
        );
        for pieces in ways(&bytes) {
            let outcome = run(Start::New, Options::default(), pieces);
            assert_eq!(outcome, (frames.clone(), None), "{name}");
        }
    }
}
