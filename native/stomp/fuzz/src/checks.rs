//! Checks that must hold for any bytes. The fuzzer's targets call them. So does a test that mutates
//! the same seeds on the stable toolchain (`tests/suite/mutation.rs`).

use std::time::Duration;
use stomp::{
    BodyBuffer, Command, Decoder, Escapes, Escaping, Event, Frame, Options, ParseError, Session,
    Timing, UndefinedEscapes, Version, escape, unescape,
};

/// The number of bytes in front of the input that say how it is read, see [`Plan::new`].
pub const PLAN: usize = 4;

/// Inputs up to this length are also fed byte by byte.
const BYTEWISE_MAX: usize = 4096;

/// A body buffer that reserves nothing before the bytes arrive.
#[derive(Debug)]
struct Body(Vec<u8>);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl BodyBuffer for Body {
    fn with_capacity(_capacity: usize) -> Self {
        Body(Vec::new())
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// How an input is read and cut.
struct Plan<'a> {
    version: Version,
    options: Options,
    cuts: u64,
    input: &'a [u8],
}

impl Plan<'_> {
    fn new(data: &[u8]) -> Option<Plan<'_>> {
        let (plan, input) = data.split_at_checked(PLAN)?;
        let small = plan[1] & 1 == 1;
        Some(Plan {
            version: [Version::V1_0, Version::V1_1, Version::V1_2][usize::from(plan[0] % 3)],
            options: Options {
                max_header_line: if small { usize::from(plan[2]) } else { 4096 },
                max_headers: if small { usize::from(plan[2] % 8) } else { 64 },
                max_body: if small { u64::from(plan[2]) } else { 65_536 },
                undefined_escapes: match plan[1] & 2 {
                    0 => UndefinedEscapes::Refuse,
                    _ => UndefinedEscapes::Keep,
                },
            },
            cuts: u64::from(plan[3]) + 1,
            input,
        })
    }

    /// The input in pieces of pseudo-random lengths.
    fn pieces(&self) -> Vec<&[u8]> {
        let (mut rest, mut state, mut pieces) = (self.input, self.cuts, Vec::new());
        while !rest.is_empty() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let length = ((state >> 33) % 24) as usize;
            let (piece, more) = rest.split_at(length.min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        pieces
    }

    /// The most bytes that may be buffered of an unfinished frame.
    fn most_buffered(&self) -> usize {
        let line = self.options.max_header_line + 2;
        line * (self.options.max_headers + 2) + self.options.max_body as usize + self.input.len()
    }
}

/// The frames and the error of a run, without borrows.
#[derive(Debug, PartialEq)]
struct Outcome {
    frames: Vec<(Command, Vec<u8>, Vec<u8>)>,
    error: Option<(stomp::Rule, u64)>,
}

fn copy<B: AsRef<[u8]>>(frame: &Frame<'_, B>) -> (Command, Vec<u8>, Vec<u8>) {
    let mut headers = Vec::new();
    for header in frame.headers() {
        headers.extend_from_slice(&header.name());
        headers.push(0);
        headers.extend_from_slice(&header.value());
        headers.push(0);
    }
    (frame.command(), headers, frame.body.as_ref().to_vec())
}

fn drive<'a>(
    pieces: &[&'a [u8]],
    mut next: impl FnMut(&mut &'a [u8]) -> Result<Option<(Command, Vec<u8>, Vec<u8>)>, ParseError>,
) -> Outcome {
    let mut frames = Vec::new();
    for &piece in pieces {
        let mut input = piece;
        loop {
            let before = input.len();
            match next(&mut input) {
                Ok(Some(frame)) => {
                    assert!(input.len() < before, "a frame that took no input");
                    frames.push(frame);
                }
                Ok(None) => {
                    assert!(input.is_empty(), "input was left");
                    break;
                }
                Err(error) => {
                    let error = Some((error.rule, error.offset));
                    return Outcome { frames, error };
                }
            }
        }
    }
    Outcome {
        frames,
        error: None,
    }
}

fn decode(plan: &Plan, pieces: &[&[u8]]) -> Outcome {
    let mut decoder: Decoder<Body> = Decoder::new(Some(plan.version.into()), plan.options);
    let most = plan.most_buffered();
    drive(pieces, |input| {
        let frame = decoder.next(input)?.as_ref().map(copy);
        assert!(
            decoder.buffered() <= most,
            "more buffered than the limits allow"
        );
        Ok(frame)
    })
}

fn receive(plan: &Plan, pieces: &[&[u8]]) -> Outcome {
    let (timing, mut now) = (Timing::default(), Duration::ZERO);
    let mut session: Session<Body> = Session::new(Decoder::new(None, plan.options), timing, now);
    session.ends_with(b"1");
    let mut first = true;
    drive(pieces, |input| {
        let (frame, connected) = match session.next(input)? {
            None => return Ok(None),
            Some(Event::Frame(frame)) => (copy(&frame), false),
            Some(Event::Refused(frame) | Event::Closed(frame)) => {
                let frame = copy(&frame);
                let expected = if first {
                    Command::Error
                } else {
                    Command::Receipt
                };
                assert_eq!(frame.0, expected);
                assert!(session.next(input)?.is_none() && input.is_empty());
                assert_eq!(session.deadline(), None);
                return Ok(Some(frame));
            }
            Some(Event::Connected(frame)) => (copy(&frame), true),
        };
        assert!(!connected || first, "connected twice");
        assert!(!first || connected, "{:?} came first", frame.0);
        first = false;
        if connected {
            assert_eq!(session.deadline(), None);
            session.agree(Duration::from_millis(plan.cuts), now);
        }
        let deadline = session.deadline().expect("a deadline after CONNECTED");
        assert!(deadline > now);
        now += Duration::from_millis(1);
        session.touch(now);
        assert!(session.deadline().expect("a deadline after touch") > deadline);
        Ok(Some(frame))
    })
}

fn same_however_cut(data: &[u8], run: impl Fn(&Plan, &[&[u8]]) -> Outcome) {
    let Some(plan) = Plan::new(data) else { return };
    let whole = run(&plan, &[plan.input]);
    assert_eq!(run(&plan, &plan.pieces()), whole, "in pieces");
    if plan.input.len() <= BYTEWISE_MAX {
        let bytes: Vec<&[u8]> = plan.input.chunks(1).collect();
        assert_eq!(run(&plan, &bytes), whole, "byte by byte");
    }
    if let Some((_, offset)) = whole.error {
        assert!(
            offset <= plan.input.len() as u64,
            "the error is beyond the input"
        );
    }
}

/// The same bytes give the same frames and the same error however they are cut. Never more is
/// buffered than the limits allow.
pub fn decoder(data: &[u8]) {
    same_however_cut(data, decode);
}

/// A session gives the same frames and the same error however its bytes are cut. In addition, its
/// first frame is CONNECTED or ERROR, and its deadline moves with each frame.
pub fn session(data: &[u8]) {
    same_however_cut(data, receive);
}

/// Unescaping reverts escaping. Unescaping anything gives either a text that is not longer than the
/// input, or the index of a backslash.
pub fn escapes(data: &[u8]) {
    for undefined in [UndefinedEscapes::Refuse, UndefinedEscapes::Keep] {
        for (escaping, escapes) in [
            (Escaping::Nothing, Escapes::Raw),
            (Escaping::AllButCr, Escapes::Decoded(undefined)),
            (Escaping::All, Escapes::Decoded(undefined)),
        ] {
            let mut escaped = Vec::new();
            escape(data, escaping, &mut escaped);
            assert_eq!(unescape(&escaped, escapes).as_deref(), Ok(data));
            match unescape(data, escapes) {
                Ok(text) => assert!(text.len() <= data.len()),
                Err(at) => {
                    assert_eq!(data[at], b'\\');
                    assert_eq!(undefined, UndefinedEscapes::Refuse);
                }
            }
        }
    }
}
