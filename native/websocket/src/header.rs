//! The header of a frame (RFC 6455, 5.2).

/// The longest header that a server may send, in bytes: without a masking key.
const LONGEST: usize = 10;

/// The longest payload of a control frame (RFC 6455, 5.5).
pub const LONGEST_CONTROL: u64 = 125;

/// What a frame is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opcode {
    /// More of a message.
    #[default]
    Continuation = 0,
    /// The beginning of a message of text.
    Text = 1,
    /// The beginning of a message of bytes.
    Binary = 2,
    /// The last frame.
    Close = 8,
    /// To be answered.
    Ping = 9,
    /// The answer.
    Pong = 10,
}

impl Opcode {
    fn of(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    /// Whether the frame is about the connection, and not part of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

/// What a server must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A bit that belongs to an extension, and none was agreed on.
    #[error("a reserved bit of a frame is set, and there are no extensions")]
    ReservedBit,
    /// A reserved opcode.
    #[error("a frame has the reserved opcode {0}")]
    Opcode(u8),
    /// Only clients mask.
    #[error("a frame of the server is masked")]
    Masked,
    /// The length has its most significant bit set.
    #[error("the length of a frame is negative")]
    Length,
    /// A control frame in several frames, or with more than 125 bytes.
    #[error("a control frame is fragmented, or has more than {LONGEST_CONTROL} bytes")]
    Control,
    /// A continuation outside a message, or another message inside of one.
    #[error("a frame continues no message, or begins one inside of another")]
    Continuation,
    /// A close frame with one byte, or with a code that is not for the wire.
    #[error("a close frame has no valid code")]
    CloseCode,
    /// A close frame whose reason is not UTF-8.
    #[error("the reason of a close frame is not UTF-8")]
    CloseReason,
}

/// The header of a frame that a server sends.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    pub is_final: bool,
    pub opcode: Opcode,
    pub length: u64,
}

/// A header, of which not all bytes may have arrived.
#[derive(Default)]
pub struct Partial {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Partial {
    /// Takes what belongs to the header from the front of `input`. `None` if more is needed.
    pub fn take(&mut self, input: &mut &[u8]) -> Result<Option<Header>, Violation> {
        while self.length < self.needed()? {
            let Some((&byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            self.bytes[self.length] = byte;
            self.length += 1;
            *input = rest;
        }
        let header = self.header()?;
        self.length = 0;
        Ok(Some(header))
    }

    /// The bytes of the header, as far as those that are there tell.
    fn needed(&self) -> Result<usize, Violation> {
        if self.length < 2 {
            return Ok(2);
        }
        match self.bytes[1] {
            0x80.. => Err(Violation::Masked),
            127 => Ok(10),
            126 => Ok(4),
            _ => Ok(2),
        }
    }

    fn header(&self) -> Result<Header, Violation> {
        let [first, second, ..] = self.bytes;
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBit);
        }
        let header = Header {
            is_final: first & 0x80 != 0,
            opcode: Opcode::of(first & 0x0f).ok_or(Violation::Opcode(first & 0x0f))?,
            length: match second {
                0..126 => second.into(),
                _ => big_endian(&self.bytes[2..self.length]),
            },
        };
        if header.length > i64::MAX as u64 {
            return Err(Violation::Length);
        }
        if header.opcode.is_control() && !(header.is_final && header.length <= LONGEST_CONTROL) {
            return Err(Violation::Control);
        }
        Ok(header)
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    let append = |number, &byte| number << 8 | u64::from(byte);
    bytes.iter().fold(0, append)
}
