//! A compressed body, piece by piece.

use crate::coding::{Coding, Format};
use crate::gzip;
use zlib_rs::{Inflate, InflateFlush, Status};

/// The most that comes out at once, and the most that is read for it. Most bodies of feeds are less. Text takes 0.06 ms;
/// tables that nothing comes out of take 0.2 ms.
const PIECE: usize = 64 * 1024;
const INPUT: usize = 8 * 1024;

/// Deflate cannot make more of a byte than this (a match of 258 bytes takes two bits).
const MOST_OF_A_BYTE: usize = 1032;

/// Inflates one body after the other. It has 110 KiB of memory, so it is worth keeping.
pub struct Inflater {
    inflate: Inflate,
    buffer: Box<[u8]>,
    /// How much of the buffer the last piece takes.
    length: usize,
    coding: Coding,
    max: u64,
    /// Where the compressed data begins in the body.
    start: usize,
    checksum: u32,
}

/// What there is of a body after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    More,
    /// The piece was the last one, and the body is undamaged.
    Done,
}

/// Why a body cannot be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There is more in it than allowed, or its end says so.
    #[error("there is more in it than allowed")]
    TooLarge,
    /// It is cut off, or is not what its format demands: check sums and lengths included.
    #[error("it is damaged")]
    Damaged,
    /// It is gzip, and has several members.
    #[error("it has several members")]
    SeveralMembers,
    /// Something follows that does not belong to it.
    #[error("something follows it")]
    TrailingBytes,
    /// It only began as a compressed body does.
    #[error("it is not compressed")]
    NotCompressed,
}

impl Inflater {
    /// One that has not begun.
    pub fn new() -> Inflater {
        Inflater {
            inflate: Inflate::new(false, 15),
            buffer: vec![0; PIECE].into(),
            length: 0,
            coding: Coding {
                format: Format::Deflate,
                is_guess: false,
            },
            max: 0,
            start: 0,
            checksum: 0,
        }
    }

    /// Begins `body`, in which may be `max` bytes.
    ///
    /// # Errors
    /// If its beginning or its end show already that it cannot be inflated.
    pub fn start(&mut self, body: &[u8], coding: Coding, max: u64) -> Result<(), Failure> {
        (self.coding, self.max) = (coding, max);
        (self.start, self.checksum, self.length) = (0, 0, 0);
        self.inflate.reset(coding.format == Format::Zlib);
        if coding.format == Format::Gzip {
            self.start = gzip::header(body).ok_or(Failure::Damaged)?;
            if self.size_hint(body) as u64 > max {
                return Err(Failure::TooLarge);
            }
        }
        Ok(())
    }

    /// How many bytes there are in `body`, which was begun, if it says so: 0 if it does not, or if so much is not
    /// possible. A length that lies is found out at the end.
    pub fn size_hint(&self, body: &[u8]) -> usize {
        let said = match self.coding.format {
            Format::Gzip => said_length(body).unwrap_or_default() as usize,
            Format::Zlib | Format::Deflate => 0,
        };
        let is_possible = said / MOST_OF_A_BYTE <= body.len();
        if is_possible { said } else { 0 }
    }

    /// More bytes than this cannot come out of `body`, which was begun.
    pub fn size_limit(&self, body: &[u8]) -> usize {
        let possible = body.len().saturating_mul(MOST_OF_A_BYTE);
        possible.min(usize::try_from(self.max).unwrap_or(usize::MAX))
    }

    /// Inflates the next [`piece`](Self::piece) of `body`, which was begun.
    ///
    /// # Errors
    /// If the body cannot be inflated. What has come out of it before is worth nothing.
    pub fn next(&mut self, body: &[u8]) -> Result<Progress, Failure> {
        self.inflate(body).map_err(|failure| match failure {
            Failure::TooLarge => failure,
            _ if self.coding.is_guess => Failure::NotCompressed,
            _ => failure,
        })
    }

    /// What has come out last. It may be empty.
    pub fn piece(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    fn inflate(&mut self, body: &[u8]) -> Result<Progress, Failure> {
        let before = self.inflate.total_out();
        let rest = &body[self.at()..];
        let input = &rest[..rest.len().min(INPUT)];
        let status = self
            .inflate
            .decompress(input, &mut self.buffer, InflateFlush::Finish);
        self.length = (self.inflate.total_out() - before) as usize;
        let status = status.map_err(|_| Failure::Damaged)?;
        if self.inflate.total_out() > self.max {
            return Err(Failure::TooLarge);
        }
        if self.coding.format == Format::Gzip {
            self.checksum = zlib_rs::crc32::crc32(self.checksum, self.piece());
        }
        match status {
            Status::StreamEnd => self.check_end(body).map(|()| Progress::Done),
            // There was no room for more, or there is more to read.
            _ if self.length == self.buffer.len() || input.len() < rest.len() => Ok(Progress::More),
            _ => Err(Failure::Damaged),
        }
    }

    /// How far the body is read.
    fn at(&self) -> usize {
        self.start + self.inflate.total_in() as usize
    }

    /// The compressed data is over.
    fn check_end(&self, body: &[u8]) -> Result<(), Failure> {
        let mut rest = &body[self.at()..];
        if self.coding.format == Format::Gzip {
            let (trailer, behind) = rest
                .split_at_checked(gzip::TRAILER)
                .ok_or(Failure::Damaged)?;
            let length = self.inflate.total_out() as u32;
            if gzip::trailer(trailer) != Some((self.checksum, length)) {
                return Err(Failure::Damaged);
            }
            if behind.starts_with(&gzip::MAGIC) {
                return Err(Failure::SeveralMembers);
            }
            rest = behind;
        }
        match rest {
            [] => Ok(()),
            _ => Err(Failure::TrailingBytes),
        }
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Inflater::new()
    }
}

/// The length that the end of a gzip body claims.
fn said_length(body: &[u8]) -> Option<u32> {
    let trailer = gzip::trailer(body.last_chunk::<{ gzip::TRAILER }>()?)?;
    Some(trailer.1)
}

#[cfg(test)]
#[path = "inflater_tests.rs"]
mod tests;
