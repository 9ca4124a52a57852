//! Bodies: in the input, or collected from several inputs.

use super::{Collecting, Complete, CompleteHead, Decoder, Phase, Progress};
use crate::frame::Body;
use crate::scan::find;
use crate::{ParseError, Rule};
use bytes::BytesMut;

/// How much of a declared body length is reserved before its bytes arrive. Reserving costs
/// address space and no memory, but an allocator may refuse a length that a peer invented.
const RESERVE_MAX: u64 = 128 * 1024 * 1024;

/// A buffer for a body that does not arrive in one piece.
pub trait BodyBuffer: AsRef<[u8]> {
    /// An empty buffer for `capacity` bytes. Memory must not be used before the bytes arrive.
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

impl<B: BodyBuffer> Decoder<B> {
    /// Reads a body from its first byte: in place if all of it is there.
    pub(super) fn start_body<'i>(
        &mut self,
        head: CompleteHead<'i>,
        input: &mut &'i [u8],
    ) -> Progress<'i, B> {
        let length = self.head.content_length();
        let end = match length {
            Some(length) => usize::try_from(length).ok(),
            None => find(0, input),
        };
        if let Some(end) = end.filter(|&end| end < input.len()) {
            let (body, rest) = input.split_at(end);
            self.check_body(body.len(), length, rest[0])?;
            *input = &rest[1..];
            let body = Body::Borrowed(body);
            return Ok(Some(Complete { head, body }));
        }
        if let Some(head) = head.input {
            self.carry.extend_from_slice(head);
        }
        let reserve = length.unwrap_or(0).min(RESERVE_MAX) as usize;
        let body = Collecting {
            command: head.command,
            buffer: B::with_capacity(reserve),
            length,
        };
        self.continue_body(body, input)
    }

    /// Goes on with a body that is being collected.
    pub(super) fn continue_body<'i>(
        &mut self,
        mut body: Collecting<B>,
        input: &mut &'i [u8],
    ) -> Progress<'i, B> {
        let length = body.length;
        let missing = match length {
            Some(length) => usize::try_from(length - body.buffer.as_ref().len() as u64).ok(),
            None => find(0, input),
        };
        let (part, rest) = input.split_at(missing.unwrap_or(usize::MAX).min(input.len()));
        body.buffer.extend_from_slice(part);
        let collected = body.buffer.as_ref().len();
        *input = rest;
        let Some((&end, rest)) = rest.split_first() else {
            self.check_body(collected, length, 0)?;
            self.phase = Phase::Body(body);
            return Ok(None);
        };
        self.check_body(collected, length, end)?;
        *input = rest;
        let (command, input) = (body.command, None);
        Ok(Some(Complete {
            head: CompleteHead { command, input },
            body: Body::Owned(body.buffer),
        }))
    }

    /// Checks what has arrived of a body, and the byte after it.
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

    /// The buffer of a body of known length that is being collected, and how many bytes it lacks.
    /// A caller that can put them there directly reports it with [`filled`](Self::filled).
    pub fn wanting_body(&mut self) -> Option<(&mut B, usize)> {
        let Phase::Body(Collecting {
            buffer,
            length: Some(length),
            ..
        }) = &mut self.phase
        else {
            return None;
        };
        let missing = *length - buffer.as_ref().len() as u64;
        let missing = usize::try_from(missing).unwrap_or(usize::MAX);
        (missing > 0).then_some((buffer, missing))
    }

    /// Moves bytes from the front of `input` to the body of known length that is being collected, as
    /// many as it lacks. Returns how many.
    pub fn take_body(&mut self, input: &mut &[u8]) -> usize {
        let Some((buffer, missing)) = self.wanting_body() else {
            return 0;
        };
        let (part, rest) = input.split_at(missing.min(input.len()));
        buffer.extend_from_slice(part);
        self.filled(part.len());
        *input = rest;
        part.len()
    }

    /// Accounts for `bytes` that were put into [`wanting_body`](Self::wanting_body)'s buffer.
    pub fn filled(&mut self, bytes: usize) {
        self.offset += bytes as u64;
    }
}
