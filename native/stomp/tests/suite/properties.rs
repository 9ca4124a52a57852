//! Properties of any frame and of any bytes.

use crate::support::{OwnedFrame, Start, run};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use stomp::{Command, Options, UndefinedEscapes, Version, encode_head};

const VERSIONS: &[Version] = &[Version::V1_0, Version::V1_1, Version::V1_2];

/// Any bytes, but more often those that mean something to a parser.
fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => select(b"\n\r:\\\0nrc".as_slice()),
        3 => select(b"abc xyz019-".as_slice()),
        1 => any::<u8>(),
    ];
    vec(byte, length)
}

/// Frames like those of a feed. They are made of few different headers, so that most header lines
/// repeat those of the frame before.
fn feed() -> impl Strategy<Value = Vec<OwnedFrame>> {
    let pair = |name: &str, value: &str| (name.into(), value.into());
    let header = select(vec![
        pair("a", "1"),
        pair("a", "2"),
        pair("a:", "1"),
        pair("b", "x\n"),
        pair("b", "x\\n"),
        pair("b", ""),
    ]);
    let command = select(vec![Command::Message, Command::Message, Command::Error]);
    let frame = (command, vec(header, 0..4), bytes(0..3));
    let frame = frame.prop_map(|(command, headers, body)| OwnedFrame {
        command,
        headers,
        body,
    });
    vec(frame, 1..12)
}

fn frames() -> impl Strategy<Value = OwnedFrame> {
    let headers = vec((bytes(1..12), bytes(0..24)), 0..8);
    (select(Command::ALL), headers, bytes(0..64)).prop_map(|(command, headers, body)| OwnedFrame {
        command,
        headers,
        body,
    })
}

/// `None` if the version cannot express the frame, see `version_1_2_can_write_any_frame`.
fn encode(frame: &OwnedFrame, version: Version) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let headers = frame.headers.iter().map(|(n, v)| (&n[..], &v[..]));
    encode_head(
        frame.command,
        headers,
        frame.body.len(),
        Some(version.into()),
        &mut bytes,
    )
    .ok()?;
    bytes.extend_from_slice(&frame.body);
    bytes.push(0);
    Some(bytes)
}

/// The frame with the header that the encoder adds.
fn with_content_length(mut frame: OwnedFrame) -> OwnedFrame {
    if !frame.body.is_empty() {
        let length = frame.body.len().to_string().into_bytes();
        frame.headers.push((b"content-length".into(), length));
    }
    frame
}

/// `input` cut at `cuts`, each taken modulo the length.
fn pieces<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    cuts.sort_unstable();
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(input.len()));
    starts
        .zip(ends)
        .map(|(from, to)| &input[from..to])
        .collect()
}

/// Bytes that look much like frames: parts of frames in any order.
fn nearly_frames() -> impl Strategy<Value = Vec<u8>> {
    let parts = select(vec![
        &b"MESSAGE\n"[..],
        b"CONNECTED\n",
        b"ERROR\r\n",
        b"version:1.1\n",
        b"content-length:3\n",
        b"content-length: 99999999999\n",
        b"a\\cb:\\n\\\\\n",
        b"key:value\r\n",
        b"\n",
        b"\r\n",
        b"\0",
        b"body",
        b"\r",
        b":",
    ]);
    let part = prop_oneof![4 => parts.prop_map(<[u8]>::to_vec), 1 => bytes(0..6)];
    vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_frame_that_is_written_is_read_back(
        frames in vec(frames(), 1..4),
        version in select(VERSIONS),
        cuts in vec(any::<usize>(), 0..6),
    ) {
        let written = |frame: &OwnedFrame| Some((encode(frame, version)?, frame.clone()));
        let (bytes, frames): (Vec<_>, Vec<_>) = frames.iter().filter_map(written).unzip();
        let bytes = bytes.concat();
        let expected: Vec<_> = frames.into_iter().map(with_content_length).collect();
        let start = Start::Connected(version);
        let read = run(start, Options::default(), pieces(&bytes, &cuts));
        prop_assert_eq!(read, (expected, None));
    }

    #[test]
    fn every_feed_that_is_written_is_read_back(
        frames in feed(),
        cuts in vec(any::<usize>(), 0..3),
    ) {
        let version = Version::V1_2;
        let bytes: Option<Vec<_>> = frames.iter().map(|frame| encode(frame, version)).collect();
        let bytes = bytes.unwrap().concat();
        let expected: Vec<_> = frames.into_iter().map(with_content_length).collect();
        let start = Start::Connected(version);
        let read = run(start, Options::default(), pieces(&bytes, &cuts));
        prop_assert_eq!(read, (expected, None));
    }

    #[test]
    fn version_1_2_can_write_any_frame(frame in frames()) {
        let raw = matches!(frame.command, Command::Connect | Command::Connected | Command::Stomp);
        prop_assert!(raw || encode(&frame, Version::V1_2).is_some());
    }

    #[test]
    fn any_split_gives_the_same_result(
        bytes in nearly_frames(),
        start in prop_oneof![
            Just(Start::New),
            select(VERSIONS).prop_map(Start::Connected),
        ],
        lenient in any::<bool>(),
        cuts in vec(any::<usize>(), 0..10),
    ) {
        let undefined_escapes =
            if lenient { UndefinedEscapes::Keep } else { UndefinedEscapes::Refuse };
        let options = Options { undefined_escapes, ..Options::default() };
        let whole = run(start, options, [&bytes[..]]);
        prop_assert_eq!(&run(start, options, pieces(&bytes, &cuts)), &whole);
        prop_assert_eq!(&run(start, options, bytes.chunks(1)), &whole);
    }

    #[test]
    fn any_bytes_give_frames_or_an_error_within_the_limits(
        bytes in vec(any::<u8>(), 0..512),
        version in select(VERSIONS),
    ) {
        let (frames, error) = run(Start::Connected(version), Options::default(), [&bytes[..]]);
        let taken: usize = frames.iter().map(|frame| frame.body.len()).sum();
        prop_assert!(taken <= bytes.len());
        if let Some((_, offset)) = error {
            prop_assert!(offset <= bytes.len() as u64);
        }
    }
}
