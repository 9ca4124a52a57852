//! A frame's head: the command line and the header lines, checked line by line.
//!
//! Lines are given to [`Head`] whole, wherever they were put together, so each rule is checked
//! once and at the same place of the stream however the bytes were cut.

use crate::escape::{Escapes, unescape};
use crate::scan::{find, find2};
use crate::version::allows_crlf;
use crate::{Command, Options, Rule, Version};

/// Where a header line lies in the head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub start: usize,
    /// The end, without the EOL.
    pub end: usize,
    /// The first colon, counted from `start`.
    pub colon: usize,
    /// Whether there is anything to unescape.
    pub escaped: bool,
}

/// A broken rule, and its distance from the start of the line.
pub(crate) type Fault = (Rule, usize);

/// What is known of the head that is being read.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub command: Option<Command>,
    pub lines: Vec<Line>,
    pub content_length: Option<u64>,
    /// Where the line that is being read starts, from the start of the head.
    pub line_start: usize,
}

impl Head {
    /// Ready for the next frame. Keeps what memory it has: most frames look like the one before.
    pub fn clear(&mut self) {
        self.command = None;
        self.lines.clear();
        self.content_length = None;
        self.line_start = 0;
    }

    /// Takes the line `head[self.line_start..lf]`. True when it is the blank one that ends the
    /// head.
    #[inline]
    pub fn take_line(
        &mut self,
        head: &[u8],
        lf: usize,
        version: Option<Version>,
        options: &Options,
    ) -> Result<bool, Fault> {
        let line = &head[self.line_start..lf];
        let line = match line.split_last() {
            Some((b'\r', rest)) if allows_crlf(version) => rest,
            _ => line,
        };
        let start = std::mem::replace(&mut self.line_start, lf + 1);
        match self.command {
            None => {
                let unknown = || (Rule::UnknownCommand, Command::longest_prefix(line));
                self.command = Some(Command::parse(line).ok_or_else(unknown)?);
            }
            Some(_) if line.is_empty() => return Ok(true),
            Some(command) => {
                let escapes = Escapes::of(command, version, options);
                let line = self.header(line, start, escapes, allows_crlf(version), options)?;
                self.lines.push(line);
            }
        }
        Ok(false)
    }

    #[inline]
    fn header(
        &mut self,
        line: &[u8],
        start: usize,
        escapes: Escapes,
        crlf: bool,
        options: &Options,
    ) -> Result<Line, Fault> {
        if line.len() > options.max_header_line {
            return Err((Rule::HeaderLineTooLong, options.max_header_line));
        }
        if self.lines.len() == options.max_headers {
            return Err((Rule::TooManyHeaders, 0));
        }
        let colon = find(b':', line).ok_or((Rule::HeaderWithoutColon, line.len()))?;
        if colon == 0 {
            return Err((Rule::EmptyHeaderName, 0));
        }
        let escaped = match find2(b'\\', b'\r', line) {
            None => false,
            Some(special) => check_specials(line, special, colon, escapes, crlf)?,
        };
        if &line[..colon] == b"content-length" && self.content_length.is_none() {
            self.content_length = Some(content_length(&line[colon + 1..], options.max_body)?);
        }
        Ok(Line {
            start,
            end: start + line.len(),
            colon,
            escaped,
        })
    }

    /// Checks a line whose end has not arrived yet, so that bytes which cannot become a line are
    /// refused without waiting for it.
    pub fn check_unfinished(
        &self,
        line: &[u8],
        version: Option<Version>,
        options: &Options,
    ) -> Result<(), Fault> {
        // A trailing CR may turn out to be part of the EOL.
        let line = match line.split_last() {
            Some((b'\r', rest)) if allows_crlf(version) && self.may_end(rest) => rest,
            _ => line,
        };
        let (rule, most) = match self.command {
            None => (Rule::UnknownCommand, Command::longest_prefix(line)),
            Some(_) => (Rule::HeaderLineTooLong, options.max_header_line),
        };
        if line.len() > most {
            return Err((rule, most));
        }
        Ok(())
    }

    fn may_end(&self, line: &[u8]) -> bool {
        self.command.is_some() || Command::parse(line).is_some()
    }
}

/// Checks a line with a backslash or a CR in it, the first one at `special`. True when there is
/// something to unescape.
#[cold]
fn check_specials(
    line: &[u8],
    special: usize,
    colon: usize,
    escapes: Escapes,
    crlf: bool,
) -> Result<bool, Fault> {
    if crlf && let Some(cr) = find(b'\r', &line[special..]) {
        return Err((Rule::BareCarriageReturn, special + cr));
    }
    let has_backslash = find(b'\\', &line[special..]).is_some();
    if !has_backslash || escapes == Escapes::Raw {
        return Ok(false);
    }
    let undefined = |at| (Rule::UndefinedEscape, at);
    unescape(&line[..colon], escapes).map_err(undefined)?;
    unescape(&line[colon + 1..], escapes).map_err(|at| undefined(colon + 1 + at))?;
    Ok(true)
}

/// STOMP 1.2, "Header content-length": an octet count. Blanks around it are tolerated, because
/// some servers pad it; signs, and numbers that do not fit 64 bits, are not.
fn content_length(value: &[u8], max_body: u64) -> Result<u64, Fault> {
    const NAME_AND_COLON: usize = b"content-length:".len();
    let invalid = (Rule::InvalidContentLength, NAME_AND_COLON);
    let digits = value.trim_ascii();
    if digits.is_empty() {
        return Err(invalid);
    }
    let mut length: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(invalid);
        }
        length = length
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(digit - b'0')))
            .ok_or(invalid)?;
    }
    if length > max_body {
        return Err((Rule::BodyTooLarge, NAME_AND_COLON));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_takes_digits_and_surrounding_blanks() {
        assert_eq!(content_length(b"0", 10), Ok(0));
        assert_eq!(content_length(b" 10 ", 10), Ok(10));
        assert_eq!(content_length(b"007", 10), Ok(7));
        let largest = u64::MAX.to_string();
        assert_eq!(content_length(largest.as_bytes(), u64::MAX), Ok(u64::MAX));
    }

    #[test]
    fn content_length_refuses_everything_else() {
        let overflow = "18446744073709551616";
        let long = "1".repeat(30);
        for value in [
            "", " ", "-1", "+5", "abc", "1 2", "0x10", "1.0", overflow, &long,
        ] {
            let (rule, _) = content_length(value.as_bytes(), u64::MAX).unwrap_err();
            assert_eq!(rule, Rule::InvalidContentLength, "{value:?}");
        }
    }

    #[test]
    fn content_length_over_the_limit_is_too_large() {
        assert_eq!(content_length(b"11", 10), Err((Rule::BodyTooLarge, 15)));
        assert_eq!(
            content_length(b"4294967296", 10),
            Err((Rule::BodyTooLarge, 15))
        );
    }
}
