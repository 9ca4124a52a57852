//! What a server sends.

use crate::close::Close;
use crate::header::{Header, Opcode, Partial, Violation};

/// The server's side of a connection: it is given the bytes that have arrived, and hands on the payload of messages.
#[derive(Default)]
pub struct Decoder {
    header: Partial,
    /// The frame whose payload arrives, and how much of it is missing.
    opcode: Opcode,
    missing: u64,
    /// The payload of a control frame, as far as it has arrived.
    control: Vec<u8>,
    /// Whether a message has begun whose last frame has not.
    in_message: bool,
    reply: Option<Reply>,
    end: Option<End>,
    /// Payload that [`Decoder::read`] has left.
    unread: Vec<u8>,
}

/// How the server's data ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The server has closed.
    Closed(Close),
    /// It has broken the protocol.
    Failed(Violation),
}

/// What the server has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer to the last ping: those before need none (RFC 6455, 5.5.3).
    Pong(Vec<u8>),
    /// The answer to a close frame, or what ends a connection that has failed.
    Close(Option<u16>),
}

/// Codes of our close frame (RFC 6455, 7.4.1).
const PROTOCOL_ERROR: u16 = 1002;
const INVALID_DATA: u16 = 1007;

impl Decoder {
    /// Takes bytes that have arrived, and hands their payload to `take`, in as many parts as they are in. Returns how
    /// many frames began in them. After the end of the server's data, bytes are ignored.
    pub fn decode(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> usize {
        let mut frames = 0;
        while self.end.is_none() {
            if self.missing > 0 {
                let available = bytes
                    .len()
                    .min(usize::try_from(self.missing).unwrap_or(usize::MAX));
                if available == 0 {
                    break;
                }
                let (part, rest) = bytes.split_at(available);
                (bytes, self.missing) = (rest, self.missing - available as u64);
                match self.opcode.is_control() {
                    true => self.control.extend_from_slice(part),
                    false => take(part),
                }
                self.end_frame();
                continue;
            }
            match self.header.take(&mut bytes) {
                Ok(None) => break,
                Ok(Some(header)) => {
                    frames += 1;
                    self.begin(&header);
                }
                Err(violation) => self.fail(violation),
            }
        }
        frames
    }

    /// How the server's data ended, if it has.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// What the server has to be told, once.
    pub fn take_reply(&mut self) -> Option<Reply> {
        self.reply.take()
    }

    /// Takes `bytes` that have arrived, for a caller that reads without a buffer of its own. Returns `length` bytes of
    /// payload, or all that there are if `length` is 0. `None` if more are needed.
    ///
    /// # Errors
    /// There are not enough, and there will not be more.
    pub fn read(&mut self, bytes: &[u8], length: usize) -> Result<Option<Vec<u8>>, &End> {
        let mut payload = std::mem::take(&mut self.unread);
        self.decode(bytes, |part| payload.extend_from_slice(part));
        if payload.is_empty() || payload.len() < length {
            self.unread = payload;
            return self.end.as_ref().map_or(Ok(None), Err);
        }
        if length > 0 {
            self.unread = payload.split_off(length);
        }
        Ok(Some(payload))
    }

    /// Payload that [`Decoder::read`] has left.
    pub fn take_unread(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.unread)
    }

    fn begin(&mut self, header: &Header) {
        if !header.opcode.is_control() {
            let continues = header.opcode == Opcode::Continuation;
            if continues != self.in_message {
                return self.fail(Violation::Continuation);
            }
            self.in_message = !header.is_final;
        }
        (self.opcode, self.missing) = (header.opcode, header.length);
        self.end_frame();
    }

    /// Acts on a control frame that is complete.
    fn end_frame(&mut self) {
        if self.missing > 0 || !self.opcode.is_control() {
            return;
        }
        let payload = std::mem::take(&mut self.control);
        match self.opcode {
            Opcode::Ping => self.reply = Some(Reply::Pong(payload)),
            Opcode::Close => match Close::of(&payload) {
                Ok(close) => {
                    self.reply = Some(Reply::Close(close.code));
                    self.end = Some(End::Closed(close));
                }
                Err(violation) => self.fail(violation),
            },
            _ => {}
        }
    }

    fn fail(&mut self, violation: Violation) {
        let code = match violation {
            Violation::CloseReason => INVALID_DATA,
            _ => PROTOCOL_ERROR,
        };
        self.reply = Some(Reply::Close(Some(code)));
        self.end = Some(End::Failed(violation));
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
