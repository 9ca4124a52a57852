//! A frame's head: the command line and the header lines, checked line by line.
//!
//! [`Head`] gets whole lines, wherever they were put together. So each rule is checked once, and at
//! the same place of the stream however the bytes were cut.
//!
//! A line that has the same bytes as the line at the same place of the head before is not checked again, see
//! [`before`].

mod before;
mod line;

use before::Before;
pub use line::Same;
pub(crate) use line::{Line, Since};

use crate::escape::{Escapes, unescape};
use crate::scan::{find, find2};
use crate::version::allows_crlf;
use crate::{Command, Dialect, Options, Rule, UndefinedEscapes};

/// A broken rule, and its distance from the start of the line.
pub(crate) type Fault = (Rule, usize);

/// A content-length, and the index of the header that it is from.
type ContentLength = Option<(usize, u64)>;

/// The head that is being read.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// The number of the frame that is being read. The first one is 1.
    number: u64,
    command: Option<Command>,
    /// Whether the command line ends in CR LF. Then the other lines may end so too, in every version.
    crlf: bool,
    lines: Vec<Line>,
    content_length: ContentLength,
    /// Where the line that is being read starts, from the start of the head.
    pub line_start: usize,
    /// How many of its first bytes are known to be those of the line at its place in the head
    /// before.
    alike: usize,
    before: Before,
}

impl Head {
    /// Prepares for the next frame. The memory is kept: most frames look like the one before.
    pub fn clear(&mut self) {
        self.number += 1;
        std::mem::swap(&mut self.lines, &mut self.before.lines);
        self.lines.clear();
        self.before.command = self.command.take();
        self.before.crlf = std::mem::take(&mut self.crlf);
        self.before.content_length = self.content_length.take();
        self.line_start = 0;
        self.alike = 0;
    }

    /// Gives back all memory. Frames are counted on.
    pub fn release(&mut self) {
        *self = Head {
            number: self.number,
            ..Head::default()
        };
    }

    /// Keeps a complete head for comparison with the next one.
    pub fn keep(&mut self, head: &[u8]) {
        self.before.keep(head);
    }

    /// Does not compare the next head with the one before: lines may have another meaning now.
    pub fn forget(&mut self) {
        self.before.forget();
    }

    /// The command, if its line is complete.
    pub fn command(&self) -> Option<Command> {
        self.command
    }

    /// The number of the frame.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The header lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// How many header lines there is memory for.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.lines.capacity() + self.before.lines.capacity()
    }

    pub fn content_length(&self) -> Option<u64> {
        self.content_length.map(|(_, length)| length)
    }

    /// Takes the lines from `line_start` on that are the same as in the head before. The command if
    /// the head ends there.
    #[inline]
    pub fn take_repeated(&mut self, head: &[u8]) -> Option<Command> {
        if let Some(&Line { start, .. }) = self.before.lines.get(self.lines.len())
            && !self.lacks_length()
        {
            let from = if self.command.is_none() { 0 } else { start };
            let alike = self.before.alike(from, &head[self.line_start..]);
            if self.command.is_none() && !self.take_repeated_command(start, alike) {
                return None;
            }
            self.take_repeated_lines(start, alike);
        }
        let command = self.command?;
        let ends = head.get(self.line_start) == Some(&b'\n');
        self.line_start += usize::from(ends);
        ends.then_some(command)
    }

    /// Whether a content-length that did not count in the head before would count here.
    fn lacks_length(&self) -> bool {
        self.content_length.is_none() && self.before.has_length_before(self.lines.len())
    }

    /// Takes the command line, which ends at `end`, if the heads are alike up to there. Lines under
    /// another command are not compared: their escapes may have another meaning.
    fn take_repeated_command(&mut self, end: usize, alike: usize) -> bool {
        if alike < end {
            self.forget();
            return false;
        }
        self.command = self.before.command;
        self.crlf = self.before.crlf;
        self.line_start = end;
        true
    }

    /// Takes the lines that start at `start` or later in the head before, and end before `alike`.
    fn take_repeated_lines(&mut self, start: usize, alike: usize) {
        let shift = self.line_start.wrapping_sub(start);
        let mut end = start;
        for line in &self.before.lines[self.lines.len()..] {
            if line.next > alike {
                break;
            }
            end = line.next;
            if let Some((at, length)) = self.before.content_length
                && at == self.lines.len()
            {
                self.content_length.get_or_insert((at, length));
            }
            self.lines.push(line.shifted(shift));
        }
        self.line_start = end.wrapping_add(shift);
        self.alike = alike - end;
    }

    /// Takes the line `head[self.line_start..lf]`. The command if it is the blank line that ends
    /// the head. `plain` if it is known to have no CR and no backslash.
    #[inline]
    pub fn take_line(
        &mut self,
        head: &[u8],
        lf: usize,
        plain: bool,
        dialect: Option<Dialect>,
        options: &Options,
    ) -> Result<Option<Command>, Fault> {
        let (line, crlf) = self.without_cr(&head[self.line_start..lf], dialect);
        let start = std::mem::replace(&mut self.line_start, lf + 1);
        match self.command {
            None => {
                let unknown = || (Rule::UnknownCommand, Command::longest_prefix(line));
                self.command = Some(Command::parse(line).ok_or_else(unknown)?);
                self.crlf = crlf;
                Ok(None)
            }
            Some(command) if line.is_empty() => Ok(Some(command)),
            Some(command) => {
                let escapes = Escapes::of(command, dialect, options);
                let lenient = options.undefined_escapes == UndefinedEscapes::Keep;
                let bare_cr = lenient || !allows_crlf(dialect);
                let check = |colon| Ok(!plain && check_specials(line, colon, escapes, bare_cr)?);
                self.take_header(line, start, options, check)?;
                Ok(None)
            }
        }
    }

    /// The line without the CR of its EOL, and whether there was one.
    #[inline]
    fn without_cr<'a>(&self, line: &'a [u8], dialect: Option<Dialect>) -> (&'a [u8], bool) {
        match line.split_last() {
            Some((b'\r', rest)) if self.allows_crlf(dialect) => (rest, true),
            _ => (line, false),
        }
    }

    /// Whether this line may end in CR LF. A command line always may.
    fn allows_crlf(&self, dialect: Option<Dialect>) -> bool {
        self.command.is_none() || self.crlf || allows_crlf(dialect)
    }

    /// Takes a header line. `check` checks what comes before and after the colon, and tells whether
    /// there is anything to unescape.
    #[inline]
    fn take_header(
        &mut self,
        line: &[u8],
        start: usize,
        options: &Options,
        check: impl FnOnce(usize) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let (colon, since) = self.colon(line, options)?;
        let escaped = check(colon)?;
        self.take_content_length(line, colon, options)?;
        self.lines.push(Line {
            start,
            end: start + line.len(),
            next: self.line_start,
            colon,
            escaped,
            since,
        });
        self.alike = 0;
        Ok(())
    }

    /// Checks the limits of a header line, and finds its colon.
    #[inline]
    fn colon(&self, line: &[u8], options: &Options) -> Result<(usize, Since), Fault> {
        if line.len() > options.max_header_line {
            return Err((Rule::HeaderLineTooLong, options.max_header_line));
        }
        if self.lines.len() == options.max_headers {
            return Err((Rule::TooManyHeaders, 0));
        }
        if let Some(known) = self.before.lines.get(self.lines.len())
            && self.alike > known.colon
        {
            let since = Since {
                line: self.number,
                ..known.since
            };
            return Ok((known.colon, since));
        }
        let colon = find(b':', line).ok_or((Rule::HeaderWithoutColon, line.len()))?;
        if colon == 0 {
            return Err((Rule::EmptyHeaderName, 0));
        }
        Ok((colon, Since::new(self.number)))
    }

    /// Takes a content-length. Of repeated headers the first one counts.
    #[inline]
    fn take_content_length(
        &mut self,
        line: &[u8],
        colon: usize,
        options: &Options,
    ) -> Result<(), Fault> {
        if &line[..colon] == b"content-length" && self.content_length.is_none() {
            let length = content_length(&line[colon + 1..], options.max_body)?;
            self.content_length = Some((self.lines.len(), length));
        }
        Ok(())
    }

    /// Checks a line whose end has not arrived yet. Bytes that cannot become a line are refused
    /// without waiting for the end.
    pub fn check_unfinished(
        &self,
        line: &[u8],
        dialect: Option<Dialect>,
        options: &Options,
    ) -> Result<(), Fault> {
        // A trailing CR may turn out to be part of the EOL.
        let line = match self.without_cr(line, dialect) {
            (rest, true) if self.may_end(rest) => rest,
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

/// Checks the CRs and backslashes of a line. True if there is something to unescape. `bare_cr`: a CR is
/// data.
fn check_specials(
    line: &[u8],
    colon: usize,
    escapes: Escapes,
    bare_cr: bool,
) -> Result<bool, Fault> {
    let Some(special) = find2(b'\\', b'\r', line) else {
        return Ok(false);
    };
    if !bare_cr && let Some(cr) = find(b'\r', &line[special..]) {
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

/// STOMP 1.2, "Header content-length": a number of bytes. Blanks around it are accepted, because
/// some servers pad it. Signs and numbers of more than 64 bits are refused.
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
