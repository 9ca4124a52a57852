//! A decoded frame, borrowed from the input and the decoder.

use crate::escape::{Escapes, unescape};
use crate::head::{Line, Same, Since};
use crate::{Command, UndefinedEscapes};
use std::borrow::Cow;

/// One frame. It borrows its bytes, and copies only where a header has to be unescaped.
#[derive(Debug)]
pub struct Frame<'a, B> {
    pub(crate) command: Command,
    pub(crate) escapes: Escapes,
    pub(crate) head: &'a [u8],
    pub(crate) lines: &'a [Line],
    pub(crate) number: u64,
    /// Stream position of the frame's first byte.
    pub(crate) offset: u64,
    /// The body, without the NUL that ends it.
    pub body: Body<'a, B>,
}

/// The body of a frame.
#[derive(Debug)]
pub enum Body<'a, B> {
    /// It arrived in one piece, and is borrowed from the input.
    Borrowed(&'a [u8]),
    /// It was collected from several inputs.
    Owned(B),
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Body<'_, B> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Body::Borrowed(bytes) => bytes,
            Body::Owned(buffer) => buffer.as_ref(),
        }
    }
}

impl<'a, B> Frame<'a, B> {
    /// The frame's command.
    pub fn command(&self) -> Command {
        self.command
    }

    /// The number of the frame in its stream, for [`Header::same`]. The first one is 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The headers in wire order, repeated ones included.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = Header<'a>> + use<'a, B> {
        let (head, escapes) = (self.head, self.escapes);
        self.lines.iter().map(move |line| Header {
            bytes: &head[line.start..line.end],
            colon: line.colon,
            escapes: if line.escaped { escapes } else { Escapes::Raw },
            since: line.since,
        })
    }

    /// The value of the first header called `name`. If a header is repeated, only the first one
    /// counts (STOMP 1.2, "Repeated Header Entries").
    pub fn header(&self, name: &[u8]) -> Option<Cow<'a, [u8]>> {
        self.headers()
            .find(|header| *header.name() == *name)
            .map(|header| header.value())
    }
}

/// One header line.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    bytes: &'a [u8],
    colon: usize,
    escapes: Escapes,
    since: Since,
}

impl<'a> Header<'a> {
    /// What it has in common with the header at the same place of the decoder's frame `number`, an
    /// earlier one. A caller can use again what it made from that header. [`Same::Nothing`] for 0, which
    /// no frame has.
    pub fn same(&self, number: u64) -> Same {
        self.since.same(number)
    }

    /// The name, unescaped.
    pub fn name(&self) -> Cow<'a, [u8]> {
        decode(&self.bytes[..self.colon], self.escapes)
    }

    /// The value, unescaped.
    pub fn value(&self) -> Cow<'a, [u8]> {
        decode(&self.bytes[self.colon + 1..], self.escapes)
    }
}

/// Cannot fail: the decoder has refused undefined escapes, unless they are to be kept.
fn decode(text: &[u8], escapes: Escapes) -> Cow<'_, [u8]> {
    let lenient = match escapes {
        Escapes::Raw => return Cow::Borrowed(text),
        Escapes::Decoded(_) => Escapes::Decoded(UndefinedEscapes::Keep),
    };
    unescape(text, lenient).unwrap_or(Cow::Borrowed(text))
}
