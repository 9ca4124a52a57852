//! Value encoding: the escapes in header names and values (STOMP 1.2, "Value Encoding").

use crate::scan::find;
use crate::{Command, Options, UndefinedEscapes, Version};
use std::borrow::Cow;

/// Which escapes apply to a frame's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escapes {
    /// None: STOMP 1.0, and the frames that negotiate the version.
    #[default]
    Raw,
    /// STOMP 1.1: `\n`, `\c`, `\\`.
    V1_1(UndefinedEscapes),
    /// STOMP 1.2: those of 1.1, and `\r`.
    V1_2(UndefinedEscapes),
}

impl Escapes {
    /// The escapes of a `command` frame. Before negotiation, the only frame with escapes is an ERROR
    /// that explains a refusal. It is read as 1.2. Undefined escapes in it are kept, so that it is
    /// never refused for its escapes.
    pub(crate) fn of(command: Command, version: Option<Version>, options: &Options) -> Escapes {
        match version {
            _ if command.precedes_negotiation() => Escapes::Raw,
            None => Escapes::V1_2(UndefinedEscapes::Keep),
            Some(Version::V1_0) => Escapes::Raw,
            Some(Version::V1_1) => Escapes::V1_1(options.undefined_escapes),
            Some(Version::V1_2) => Escapes::V1_2(options.undefined_escapes),
        }
    }

    fn undefined(self) -> UndefinedEscapes {
        match self {
            Escapes::Raw => UndefinedEscapes::Keep,
            Escapes::V1_1(undefined) | Escapes::V1_2(undefined) => undefined,
        }
    }

    fn decode(self, escaped: u8) -> Option<u8> {
        match escaped {
            b'n' => Some(b'\n'),
            b'c' => Some(b':'),
            b'\\' => Some(b'\\'),
            b'r' if matches!(self, Escapes::V1_2(_)) => Some(b'\r'),
            _ => None,
        }
    }

    fn encode(self, byte: u8) -> Option<u8> {
        match byte {
            b'\n' => Some(b'n'),
            b':' => Some(b'c'),
            b'\\' => Some(b'\\'),
            b'\r' if matches!(self, Escapes::V1_2(_)) => Some(b'r'),
            _ => None,
        }
    }
}

/// Decodes the escapes in a header name or value.
///
/// # Errors
/// The index of the backslash of an undefined escape, if undefined escapes are refused.
pub fn unescape(text: &[u8], escapes: Escapes) -> Result<Cow<'_, [u8]>, usize> {
    let first = match find(b'\\', text) {
        Some(first) if escapes != Escapes::Raw => first,
        _ => return Ok(Cow::Borrowed(text)),
    };
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend_from_slice(&text[..first]);
    let mut at = first;
    while at < text.len() {
        if text[at] != b'\\' {
            decoded.push(text[at]);
            at += 1;
            continue;
        }
        match text.get(at + 1).and_then(|&next| escapes.decode(next)) {
            Some(byte) => {
                decoded.push(byte);
                at += 2;
            }
            None if escapes.undefined() == UndefinedEscapes::Keep => {
                decoded.push(b'\\');
                at += 1;
            }
            None => return Err(at),
        }
    }
    Ok(Cow::Owned(decoded))
}

/// Appends `text` to `out`, escaped.
pub fn escape(text: &[u8], escapes: Escapes, out: &mut Vec<u8>) {
    if escapes == Escapes::Raw {
        out.extend_from_slice(text);
        return;
    }
    for &byte in text {
        match escapes.encode(byte) {
            Some(code) => out.extend_from_slice(&[b'\\', code]),
            None => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use UndefinedEscapes::{Keep, Refuse};

    const V1_2: Escapes = Escapes::V1_2(Refuse);
    const V1_1: Escapes = Escapes::V1_1(Refuse);

    fn decoded(text: &str, escapes: Escapes) -> Result<String, usize> {
        unescape(text.as_bytes(), escapes).map(|t| String::from_utf8(t.into_owned()).unwrap())
    }

    #[test]
    fn value_encoding_1_2() {
        assert_eq!(decoded(r"a\r\n\c\\b", V1_2), Ok("a\r\n:\\b".into()));
        assert_eq!(decoded(r"\\n", V1_2), Ok(r"\n".into()));
        assert_eq!(decoded(r"ab\t", V1_2), Err(2));
        assert_eq!(decoded(r"ab\", V1_2), Err(2));
    }

    #[test]
    fn value_encoding_1_1_has_no_carriage_return() {
        assert_eq!(decoded(r"\n\c\\", V1_1), Ok("\n:\\".into()));
        assert_eq!(decoded(r"\r", V1_1), Err(0));
    }

    #[test]
    fn raw_and_kept_escapes_stay() {
        assert_eq!(decoded(r"C:\new", Escapes::Raw), Ok(r"C:\new".into()));
        assert_eq!(decoded(r"\t\n\", Escapes::V1_2(Keep)), Ok("\\t\n\\".into()));
    }

    #[test]
    fn text_without_escapes_is_borrowed() {
        assert!(matches!(unescape(b"plain", V1_2), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn unescape_reverts_escape() {
        let mut out = Vec::new();
        escape(b"a:\r\n\\", V1_2, &mut out);
        assert_eq!(out, br"a\c\r\n\\");
        assert_eq!(unescape(&out, V1_2).unwrap(), &b"a:\r\n\\"[..]);
    }
}
