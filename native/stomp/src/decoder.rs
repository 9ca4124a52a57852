//! The incremental decoder: bytes to frames.
//!
//! ```text
//!            EOL, NUL                    blank line
//!           ┌───────┐   any other       ┌───────────┐  body, NUL
//!  start ──►│Between│──────────────►[Head]──────────►[Body]───────► frame, back to Between
//!           └───────┘
//! ```
//!
//! A frame that lies in the input as a whole is decoded there. If a frame straddles two inputs, its
//! head is carried over and its body is collected into a [`BodyBuffer`]. Scanning goes on where it
//! stopped: no search looks at a byte twice, and feeding N bytes costs O(N) however they are cut.

mod body;

pub use body::BodyBuffer;

use crate::frame::{Body, Frame};
use crate::head::{Fault, Head};
use crate::scan::{find, find3};
use crate::{Command, Dialect, Escapes, Options, ParseError, Rule};
use bytes::BytesMut;

#[derive(Debug)]
enum Phase<B> {
    /// Between frames. `cr`: the input ended after a CR that needs its LF.
    Between { cr: bool },
    /// In a head. What has arrived of it is in `carry`, unless that is empty.
    Head,
    /// In the body of a frame whose head is in `carry`.
    Body(Collecting<B>),
    /// After an error nothing can be trusted.
    Failed(ParseError),
}

/// A body that is being collected.
#[derive(Debug)]
struct Collecting<B> {
    command: Command,
    buffer: B,
    length: Option<u64>,
}

/// A complete head.
struct CompleteHead<'i> {
    command: Command,
    /// The head's bytes, if they are in the input; otherwise they are in `carry`.
    input: Option<&'i [u8]>,
}

/// A complete frame.
struct Complete<'i, B> {
    head: CompleteHead<'i>,
    body: Body<'i, B>,
}

type Progress<'i, B> = Result<Option<Complete<'i, B>>, ParseError>;

/// An incremental STOMP decoder. A frame that is cut is completed by the next input.
///
/// ```
/// use stomp::{Command, Decoder, Options, Version};
///
/// let mut decoder: Decoder = Decoder::new(Some(Version::V1_2.into()), Options::default());
/// let mut input: &[u8] = b"MESSAGE\ndestination:a\n\nfirst\0MESSAGE\ndestina";
///
/// let frame = decoder.next(&mut input)?.unwrap();
/// assert_eq!(frame.command(), Command::Message);
/// assert_eq!(*frame.header(b"destination").unwrap(), *b"a");
/// assert_eq!(frame.body.as_ref(), b"first");
/// // The rest is taken, and kept until there is more.
/// assert!(decoder.next(&mut input)?.is_none());
/// assert!(input.is_empty());
///
/// input = b"tion:b\n\nsecond\0";
/// let frame = decoder.next(&mut input)?.unwrap();
/// assert_eq!(frame.body.as_ref(), b"second");
/// # Ok::<(), stomp::ParseError>(())
/// ```
#[derive(Debug)]
pub struct Decoder<B = BytesMut> {
    options: Options,
    dialect: Option<Dialect>,
    phase: Phase<B>,
    head: Head,
    /// The head that straddles inputs, as far as it has arrived.
    carry: BytesMut,
    /// Stream position of the head that is being read.
    head_offset: u64,
    /// Bytes taken so far.
    offset: u64,
}

impl<B: BodyBuffer> Decoder<B> {
    /// A decoder at the start of a stream. `dialect` is `None` until a version is negotiated.
    pub fn new(dialect: Option<Dialect>, options: Options) -> Self {
        Decoder {
            options,
            dialect,
            phase: Phase::Between { cr: false },
            head: Head::default(),
            carry: BytesMut::new(),
            head_offset: 0,
            offset: 0,
        }
    }

    /// The same decoder, `offset` bytes into its stream: errors count from there.
    pub fn starting_at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// The bytes of the stream that have been taken.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The dialect that frames follow; `None` until a version is negotiated.
    pub fn dialect(&self) -> Option<Dialect> {
        self.dialect
    }

    /// Sets the dialect that frames from here on follow.
    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = Some(dialect);
        self.head.forget();
    }

    /// Whether part of a frame has arrived, or of an EOL.
    pub fn in_frame(&self) -> bool {
        !matches!(self.phase, Phase::Between { cr: false })
    }

    /// Bytes that are held of a frame that is not complete.
    pub fn buffered(&self) -> usize {
        match &self.phase {
            Phase::Body(body) => self.carry.len() + body.buffer.as_ref().len(),
            Phase::Head => self.carry.len(),
            Phase::Between { .. } | Phase::Failed(_) => 0,
        }
    }

    /// Bytes that are held of a head whose frame is not complete.
    pub fn buffered_head(&self) -> usize {
        if self.in_frame() { self.carry.len() } else { 0 }
    }

    /// Bytes that are held of a body whose length is not known.
    pub fn buffered_without_length(&self) -> usize {
        match &self.phase {
            Phase::Body(Collecting {
                buffer,
                length: None,
                ..
            }) => buffer.as_ref().len(),
            _ => 0,
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

    /// What an ERROR frame says whose head is not complete. Some servers forget the blank line that ends
    /// it, and close the connection then. The value of its `message` header, or all that there is.
    pub fn unfinished_error(&self) -> Option<&[u8]> {
        if !matches!(self.phase, Phase::Head) || self.head.command() != Some(Command::Error) {
            return None;
        }
        let head = &self.carry[..find(0, &self.carry).unwrap_or(self.carry.len())];
        let mut lines = head.split(|&byte| byte == b'\n').skip(1);
        let all = &head[find(b'\n', head)? + 1..];
        let message = lines.find_map(|line| line.strip_prefix(b"message:"));
        Some(message.unwrap_or(all).trim_ascii())
    }

    /// Gives memory back while there is no partial frame to keep in it.
    pub fn release_memory(&mut self) {
        if !self.in_frame() {
            self.head.release();
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
            Ok(Some(complete)) => Ok(Some(self.frame(complete))),
            Err(error) => {
                self.phase = Phase::Failed(error.clone());
                Err(error)
            }
        }
    }

    fn frame<'a>(&'a self, complete: Complete<'a, B>) -> Frame<'a, B> {
        let CompleteHead { command, input } = complete.head;
        Frame {
            command,
            escapes: Escapes::of(command, self.dialect, &self.options),
            head: input.unwrap_or(&self.carry),
            lines: self.head.lines(),
            number: self.head.number(),
            offset: self.head_offset,
            body: complete.body,
        }
    }

    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Progress<'i, B> {
        let between = Phase::Between { cr: false };
        let head = match std::mem::replace(&mut self.phase, between) {
            Phase::Failed(error) => return Err(error),
            Phase::Body(body) => return self.continue_body(body, input),
            Phase::Head => self.continue_head(input)?,
            Phase::Between { cr } => {
                if !self.skip_between(cr, input)? {
                    return Ok(None);
                }
                self.start_head(input)?
            }
        };
        match head {
            Some(head) => self.start_body(head, input),
            None => {
                self.phase = Phase::Head;
                Ok(None)
            }
        }
    }

    /// Skips what may stand between frames: EOLs, which are heart-beats, and NULs, which some
    /// servers add. An EOL may be CR LF in every version, because some servers end all their lines so.
    /// `pending`: the input before ended after a CR. True when a frame begins.
    fn skip_between(&mut self, mut pending: bool, input: &mut &[u8]) -> Result<bool, ParseError> {
        let mut rest = *input;
        while let Some((&byte, after)) = rest.split_first() {
            match byte {
                b'\n' => pending = false,
                _ if pending => {
                    let cr = self.offset + (input.len() - rest.len()) as u64 - 1;
                    return Err(ParseError::new(Rule::BareCarriageReturn, cr, b"\r"));
                }
                0 => {}
                b'\r' => pending = true,
                _ => break,
            }
            rest = after;
        }
        self.head_offset = self.offset + (input.len() - rest.len()) as u64;
        *input = rest;
        if pending {
            self.phase = Phase::Between { cr: true };
        }
        Ok(!input.is_empty())
    }

    /// Reads a head from its first byte, in place. `Some` when it is complete.
    fn start_head<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<CompleteHead<'i>>, ParseError> {
        self.head.clear();
        self.carry.clear();
        let head = *input;
        let command = loop {
            if let Some(command) = self.head.take_repeated(head) {
                break command;
            }
            let Some((length, plain)) = line_length(&head[self.head.line_start..]) else {
                return self.carry_head(input);
            };
            let lf = self.head.line_start + length;
            if let Some(command) = self.take_line(head, lf, plain)? {
                break command;
            }
        };
        let (head, rest) = head.split_at(self.head.line_start);
        self.head.keep(head);
        *input = rest;
        let input = Some(head);
        Ok(Some(CompleteHead { command, input }))
    }

    /// Keeps what has arrived of a head that is not complete.
    fn carry_head<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<CompleteHead<'i>>, ParseError> {
        let head = *input;
        self.check_unfinished(&head[self.head.line_start..])?;
        self.carry.extend_from_slice(head);
        *input = &[];
        Ok(None)
    }

    /// Goes on with a head that is in `carry`, a line at a time. `Some` when it is complete.
    fn continue_head<'i>(
        &mut self,
        input: &mut &[u8],
    ) -> Result<Option<CompleteHead<'i>>, ParseError> {
        let mut carry = std::mem::take(&mut self.carry);
        let command = self.extend_head(&mut carry, input);
        self.carry = carry;
        let input = None;
        Ok(command?.map(|command| CompleteHead { command, input }))
    }

    fn extend_head(
        &mut self,
        carry: &mut BytesMut,
        input: &mut &[u8],
    ) -> Result<Option<Command>, ParseError> {
        while let Some(length) = find(b'\n', input) {
            carry.extend_from_slice(&input[..=length]);
            *input = &input[length + 1..];
            if let Some(command) = self.take_line(carry, carry.len() - 1, false)? {
                self.head.keep(carry);
                return Ok(Some(command));
            }
        }
        carry.extend_from_slice(input);
        *input = &[];
        self.check_unfinished(&carry[self.head.line_start..])?;
        Ok(None)
    }

    #[inline]
    fn take_line(
        &mut self,
        head: &[u8],
        lf: usize,
        plain: bool,
    ) -> Result<Option<Command>, ParseError> {
        let start = self.head.line_start;
        self.head
            .take_line(head, lf, plain, self.dialect, &self.options)
            .map_err(|fault| self.fault(fault, start, &head[start..lf]))
    }

    fn check_unfinished(&self, line: &[u8]) -> Result<(), ParseError> {
        self.head
            .check_unfinished(line, self.dialect, &self.options)
            .map_err(|fault| self.fault(fault, self.head.line_start, line))
    }

    #[cold]
    fn fault(&self, (rule, at): Fault, line_start: usize, line: &[u8]) -> ParseError {
        ParseError::new(rule, self.head_offset + (line_start + at) as u64, line)
    }
}

/// The length of the line that `rest` starts with, and whether it has neither CR nor backslash.
#[inline]
fn line_length(rest: &[u8]) -> Option<(usize, bool)> {
    let found = find3(b'\n', b'\r', b'\\', rest)?;
    if rest[found] == b'\n' {
        return Some((found, true));
    }
    let length = find(b'\n', &rest[found..])?;
    Some((found + length, false))
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
