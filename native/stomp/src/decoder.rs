//! The incremental decoder: bytes to frames.
//!
//! ```text
//!            EOL, NUL                    blank line
//!           ┌───────┐   any other       ┌───────────┐  body, NUL
//!  start ──►│Between│──────────────►[Head]──────────►[Body]───────► frame, back to Between
//!           └───────┘
//! ```
//!
//! Everything is decoded where it lies in the input, as long as a frame lies there whole. Of a
//! frame that straddles two inputs the head is carried over, and its body is collected into a
//! [`BodyBuffer`]; scanning goes on where it stopped, so no byte is looked at twice by any one
//! search and feeding N bytes costs O(N) however they are cut.

use crate::frame::{Body, Frame};
use crate::head::{Fault, Head};
use crate::scan::{find, find3};
use crate::version::allows_crlf;
use crate::{Command, Escapes, Options, ParseError, Rule, Version};
use bytes::BytesMut;

/// How much of a declared body length is reserved before its bytes arrive. Reserving costs
/// address space and no memory, but an allocator may refuse a length that a peer made up.
const RESERVE_MAX: u64 = 128 * 1024 * 1024;

/// What a body is collected into when it does not arrive in one piece.
pub trait BodyBuffer: AsRef<[u8]> {
    /// An empty buffer that will take `capacity` octets, if that many come. The memory must not
    /// be touched before they do.
    fn with_capacity(capacity: usize) -> Self;

    /// Appends `bytes`.
    fn extend_from_slice(&mut self, bytes: &[u8]);
}

impl BodyBuffer for BytesMut {
    fn with_capacity(capacity: usize) -> Self {
        BytesMut::with_capacity(capacity)
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        BytesMut::extend_from_slice(self, bytes);
    }
}

#[derive(Debug)]
enum Phase<B> {
    /// Between frames. `cr`: the input ended after a CR that needs its LF.
    Between { cr: bool },
    /// In a head. What has arrived of it is in `carry`, unless that is empty.
    Head,
    /// In the body of a frame whose head is in `carry`.
    Body { buffer: B, length: Option<u64> },
    /// After an error nothing can be trusted.
    Failed(ParseError),
}

/// Where a completed head lies.
enum HeadAt<'a> {
    Carry,
    Input(&'a [u8]),
}

/// An incremental STOMP decoder. See the [module documentation](self).
#[derive(Debug)]
pub struct Decoder<B = BytesMut> {
    options: Options,
    version: Option<Version>,
    phase: Phase<B>,
    head: Head,
    /// The head that straddles inputs, as far as it has arrived.
    carry: BytesMut,
    /// Stream position of the head that is being read.
    head_offset: u64,
    /// Octets taken so far.
    offset: u64,
}

impl<B: BodyBuffer> Decoder<B> {
    /// A decoder at the start of a stream. `version` is `None` until one is negotiated.
    pub fn new(version: Option<Version>, options: Options) -> Self {
        Decoder {
            options,
            version,
            phase: Phase::Between { cr: false },
            head: Head::default(),
            carry: BytesMut::new(),
            head_offset: 0,
            offset: 0,
        }
    }

    /// The same decoder, `offset` octets into its stream: errors count from there.
    pub fn starting_at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// The octets of the stream that have been taken.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The version that frames follow; `None` until one is negotiated.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Sets the version that frames from here on follow.
    pub fn set_version(&mut self, version: Version) {
        self.version = Some(version);
        self.head.forget();
    }

    /// Whether part of a frame has arrived, or of an EOL.
    pub fn in_frame(&self) -> bool {
        !matches!(self.phase, Phase::Between { cr: false })
    }

    /// Octets that are held of a frame that is not complete.
    pub fn buffered(&self) -> usize {
        match &self.phase {
            Phase::Body { buffer, .. } => self.carry.len() + buffer.as_ref().len(),
            Phase::Head => self.carry.len(),
            Phase::Between { .. } | Phase::Failed(_) => 0,
        }
    }

    /// Header lines that are held of a frame that is not complete.
    pub fn buffered_headers(&self) -> usize {
        if self.in_frame() {
            self.head.lines().len()
        } else {
            0
        }
    }

    /// Gives memory back while there is no partial frame to keep in it.
    pub fn release_memory(&mut self) {
        if !self.in_frame() {
            self.head = Head::default();
            self.carry = BytesMut::new();
        }
    }

    /// Decodes the next frame from the front of `input` and moves `input` past it. `None` means
    /// that the whole input was taken and more is needed.
    ///
    /// # Errors
    /// The rule that was broken. The decoder is finished then and repeats its error.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Frame<'a, B>>, ParseError> {
        let before = input.len();
        let result = self.advance(input);
        self.offset += (before - input.len()) as u64;
        match result {
            Ok(None) => Ok(None),
            Ok(Some((head, body))) => Ok(Some(self.frame(head, body))),
            Err(error) => {
                self.phase = Phase::Failed(error.clone());
                Err(error)
            }
        }
    }

    fn frame<'a>(&'a self, head: HeadAt<'a>, body: Body<'a, B>) -> Frame<'a, B> {
        // A head is complete only with a command.
        let command = self.head.command.unwrap_or(Command::Error);
        Frame {
            command,
            escapes: Escapes::of(command, self.version, &self.options),
            head: match head {
                HeadAt::Carry => &self.carry,
                HeadAt::Input(head) => head,
            },
            lines: self.head.lines(),
            offset: self.head_offset,
            body,
        }
    }

    #[allow(clippy::type_complexity)]
    fn advance<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(HeadAt<'i>, Body<'i, B>)>, ParseError> {
        let head = match &mut self.phase {
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Body { .. } => return self.continue_body(input),
            Phase::Head => self.continue_head(input)?.then_some(HeadAt::Carry),
            Phase::Between { .. } => {
                if !self.skip_between(input)? {
                    return Ok(None);
                }
                self.start_head(input)?.map(HeadAt::Input)
            }
        };
        match head {
            None => Ok(None),
            Some(head) => self.start_body(head, input),
        }
    }

    /// Skips what may stand between frames: EOLs, which are heart-beats, and NULs, which some
    /// servers add. True when a frame begins.
    fn skip_between(&mut self, input: &mut &[u8]) -> Result<bool, ParseError> {
        let Phase::Between { cr: mut pending } = self.phase else {
            return Ok(true);
        };
        let crlf = allows_crlf(self.version);
        let mut skipped = 0;
        for &octet in *input {
            match octet {
                b'\n' => pending = false,
                _ if pending => {
                    let cr = self.offset + skipped as u64 - 1;
                    return Err(ParseError::new(Rule::BareCarriageReturn, cr, b"\r"));
                }
                0 => {}
                b'\r' if crlf => pending = true,
                _ => break,
            }
            skipped += 1;
        }
        *input = &input[skipped..];
        self.head_offset = self.offset + skipped as u64;
        self.phase = Phase::Between { cr: pending };
        Ok(!input.is_empty())
    }

    /// Reads a head from its first byte, in place. `Some` when it is complete.
    fn start_head<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<&'i [u8]>, ParseError> {
        self.head.clear();
        self.carry.clear();
        let head = *input;
        loop {
            if self.head.take_repeated(head) {
                break;
            }
            let rest = &head[self.head.line_start..];
            let Some(found) = find3(b'\n', b'\r', b'\\', rest) else {
                return self.carry_head(input);
            };
            // Nothing before the LF that would have to be looked at again.
            let plain = rest[found] == b'\n';
            let length = if plain {
                Some(0)
            } else {
                find(b'\n', &rest[found..])
            };
            let Some(length) = length else {
                return self.carry_head(input);
            };
            let lf = self.head.line_start + found + length;
            if self.take_line(head, lf, plain)? {
                break;
            }
        }
        let (head, rest) = head.split_at(self.head.line_start);
        self.head.keep(head);
        *input = rest;
        Ok(Some(head))
    }

    /// Keeps what has arrived of a head that is not complete.
    fn carry_head<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<&'i [u8]>, ParseError> {
        let head = *input;
        self.check_unfinished(&head[self.head.line_start..])?;
        self.carry.extend_from_slice(head);
        self.phase = Phase::Head;
        *input = &[];
        Ok(None)
    }

    /// Goes on with a head that is in `carry`, a line at a time. True when it is complete.
    fn continue_head(&mut self, input: &mut &[u8]) -> Result<bool, ParseError> {
        let carry = std::mem::take(&mut self.carry);
        let (carry, result) = self.extend_head(carry, input);
        self.carry = carry;
        result
    }

    fn extend_head(
        &mut self,
        mut carry: BytesMut,
        input: &mut &[u8],
    ) -> (BytesMut, Result<bool, ParseError>) {
        while let Some(length) = find(b'\n', input) {
            carry.extend_from_slice(&input[..=length]);
            *input = &input[length + 1..];
            match self.take_line(&carry, carry.len() - 1, false) {
                Ok(false) => {}
                ended => {
                    self.head.keep(&carry);
                    return (carry, ended);
                }
            }
        }
        carry.extend_from_slice(input);
        *input = &[];
        let unfinished = self.check_unfinished(&carry[self.head.line_start..]);
        (carry, unfinished.map(|()| false))
    }

    #[inline]
    fn take_line(&mut self, head: &[u8], lf: usize, plain: bool) -> Result<bool, ParseError> {
        let start = self.head.line_start;
        self.head
            .take_line(head, lf, plain, self.version, &self.options)
            .map_err(|fault| self.fault(fault, start, &head[start..lf]))
    }

    fn check_unfinished(&self, line: &[u8]) -> Result<(), ParseError> {
        self.head
            .check_unfinished(line, self.version, &self.options)
            .map_err(|fault| self.fault(fault, self.head.line_start, line))
    }

    #[cold]
    fn fault(&self, (rule, at): Fault, line_start: usize, line: &[u8]) -> ParseError {
        ParseError::new(rule, self.head_offset + (line_start + at) as u64, line)
    }

    /// Reads a body from its first byte: in place if it is all there.
    #[allow(clippy::type_complexity)]
    fn start_body<'i>(
        &mut self,
        head: HeadAt<'i>,
        input: &mut &'i [u8],
    ) -> Result<Option<(HeadAt<'i>, Body<'i, B>)>, ParseError> {
        let length = self.head.content_length();
        let end = match length {
            Some(length) => usize::try_from(length)
                .ok()
                .filter(|&end| end < input.len()),
            None => find(0, input),
        };
        if let Some(end) = end {
            let (body, rest) = input.split_at(end);
            self.check_body(body.len(), length, rest[0])?;
            *input = &rest[1..];
            self.phase = Phase::Between { cr: false };
            return Ok(Some((head, Body::Borrowed(body))));
        }
        if let HeadAt::Input(head) = head {
            self.carry.extend_from_slice(head);
        }
        let reserve = length.unwrap_or(0).min(RESERVE_MAX) as usize;
        let buffer = B::with_capacity(reserve);
        self.phase = Phase::Body { buffer, length };
        self.continue_body(input)
    }

    /// Goes on with a body that is being collected.
    #[allow(clippy::type_complexity)]
    fn continue_body<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(HeadAt<'i>, Body<'i, B>)>, ParseError> {
        let Phase::Body { buffer, length } = &mut self.phase else {
            return Ok(None);
        };
        let length = *length;
        let missing = match length {
            Some(length) => usize::try_from(length - buffer.as_ref().len() as u64).ok(),
            None => find(0, input),
        };
        let (part, rest) = input.split_at(missing.unwrap_or(usize::MAX).min(input.len()));
        buffer.extend_from_slice(part);
        let collected = buffer.as_ref().len();
        *input = rest;
        let Some((&end, rest)) = rest.split_first() else {
            self.check_body(collected, length, 0)?;
            return Ok(None);
        };
        self.check_body(collected, length, end)?;
        *input = rest;
        match std::mem::replace(&mut self.phase, Phase::Between { cr: false }) {
            Phase::Body { buffer, .. } => Ok(Some((HeadAt::Carry, Body::Owned(buffer)))),
            _ => Ok(None),
        }
    }

    /// Checks what has arrived of a body, and the octet behind it.
    fn check_body(&self, arrived: usize, length: Option<u64>, end: u8) -> Result<(), ParseError> {
        let body_offset = self.head_offset + self.head.line_start as u64;
        if length.is_none() && arrived as u64 > self.options.max_body {
            let at = body_offset + self.options.max_body;
            return Err(ParseError::new(Rule::BodyTooLarge, at, b""));
        }
        if end != 0 {
            let at = body_offset + arrived as u64;
            return Err(ParseError::new(Rule::BodyNotTerminated, at, &[end]));
        }
        Ok(())
    }

    /// The buffer of a body of known length that is being collected, and how many octets it
    /// lacks: who has the means can put them there directly, and then says so with
    /// [`filled`](Self::filled).
    pub fn wanting_body(&mut self) -> Option<(&mut B, usize)> {
        let Phase::Body {
            buffer,
            length: Some(length),
        } = &mut self.phase
        else {
            return None;
        };
        let missing = *length - buffer.as_ref().len() as u64;
        let missing = usize::try_from(missing).unwrap_or(usize::MAX);
        (missing > 0).then_some((buffer, missing))
    }

    /// Accounts for `octets` that were put into [`wanting_body`](Self::wanting_body)'s buffer.
    pub fn filled(&mut self, octets: usize) {
        self.offset += octets as u64;
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
