//! Parse errors: the rule that was broken, and where.

use thiserror::Error;

/// How many bytes of the offending line an error carries. That is enough to recognise another
/// protocol (by an HTTP status line, for example), and short enough for one log line.
const EXCERPT_MAX: usize = 40;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum Rule {
    /// STOMP 1.2, "Augmented BNF": `command`.
    #[error("not one of STOMP's commands")]
    UnknownCommand,
    /// STOMP 1.2, "Augmented BNF": `EOL = [CR] LF`.
    #[error("a carriage return that no line feed follows")]
    BareCarriageReturn,
    /// STOMP 1.2, "Augmented BNF": `header = header-name ":" header-value`.
    #[error("a header line without a colon")]
    HeaderWithoutColon,
    /// STOMP 1.2, "Augmented BNF": `header-name = 1*<any OCTET except CR or LF or ":">`.
    #[error("a header without a name")]
    EmptyHeaderName,
    /// STOMP 1.2, "Value Encoding".
    #[error("an escape that the negotiated version does not define")]
    UndefinedEscape,
    /// STOMP 1.2, "Header content-length".
    #[error("a content-length that is not a number of bytes")]
    InvalidContentLength,
    /// STOMP 1.2, "Body": a NUL follows the body.
    #[error("the byte after a body of known length is not NUL")]
    BodyNotTerminated,
    /// [`Options::max_header_line`](crate::Options::max_header_line).
    #[error("a header line longer than the limit")]
    HeaderLineTooLong,
    /// [`Options::max_headers`](crate::Options::max_headers).
    #[error("more headers than the limit")]
    TooManyHeaders,
    /// [`Options::max_body`](crate::Options::max_body).
    #[error("a body larger than the limit")]
    BodyTooLarge,
    /// STOMP 1.2, "Connecting": the answer to CONNECT is CONNECTED, or ERROR.
    #[error("the first frame is neither CONNECTED nor ERROR")]
    UnexpectedFirstFrame,
}

/// A rule that was broken, and where. It ends the connection, because STOMP has no way to
/// resynchronise.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{rule} at byte {offset}: \"{}\"", excerpt.escape_ascii())]
pub struct ParseError {
    /// The rule that was broken.
    pub rule: Rule,
    /// The byte at which it was broken, counted from 0 at the start of the stream. It does not
    /// depend on how the stream was cut into pieces.
    pub offset: u64,
    /// The beginning of the offending line, as far as it had arrived. Never the value of a
    /// `login` or `passcode` header.
    pub excerpt: Box<[u8]>,
}

impl ParseError {
    pub(crate) fn new(rule: Rule, offset: u64, line: &[u8]) -> ParseError {
        let line = without_secret(line);
        let excerpt = line[..line.len().min(EXCERPT_MAX)].into();
        ParseError {
            rule,
            offset,
            excerpt,
        }
    }
}

/// Cuts the value off a `login` or `passcode` header, whatever the case of its name and the spaces
/// around it.
fn without_secret(line: &[u8]) -> &[u8] {
    let name_len = crate::scan::find(b':', line).unwrap_or(line.len());
    let name = line[..name_len].trim_ascii();
    let secret = [&b"passcode"[..], b"login"]
        .iter()
        .any(|secret| name.eq_ignore_ascii_case(secret));
    if secret { &line[..name_len] } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_the_rule_the_offset_and_the_excerpt() {
        let error = ParseError::new(Rule::UnknownCommand, 7, b"HTTP/1.1 400\x01");
        assert_eq!(
            error.to_string(),
            "not one of STOMP's commands at byte 7: \"HTTP/1.1 400\\x01\""
        );
    }

    #[test]
    fn excerpts_are_short() {
        let error = ParseError::new(Rule::HeaderLineTooLong, 0, &[b'a'; 1000]);
        assert_eq!(error.excerpt.len(), EXCERPT_MAX);
    }

    #[test]
    fn excerpts_never_hold_credentials() {
        for line in ["passcode:hunter2\\t", "login:me\\t", "PassCode :hunter2\\t"] {
            let error = ParseError::new(Rule::UndefinedEscape, 0, line.as_bytes());
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(!error.to_string().contains("me"), "{error}");
        }
    }
}
