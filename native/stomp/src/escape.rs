//! Value encoding: the escapes in header names and values (STOMP 1.2, "Value Encoding").

use crate::scan::find;
use crate::{Command, Dialect, Options, Server, UndefinedEscapes, Version};
use std::borrow::Cow;

/// How a frame's headers are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escapes {
    /// As they are: STOMP 1.0, and CONNECTED.
    #[default]
    Raw,
    /// With the escapes `\r`, `\n`, `\c` and `\\`. 1.1 does not define `\r`, but RabbitMQ writes it
    /// there too, and nothing else can be meant by it.
    Decoded(UndefinedEscapes),
}

impl Escapes {
    /// How a `command` frame is read. Before negotiation, the only frame with escapes is an ERROR
    /// that explains a refusal. It is read as 1.2. Undefined escapes in it are kept, so that it is
    /// never refused for its escapes.
    pub(crate) fn of(command: Command, dialect: Option<Dialect>, options: &Options) -> Escapes {
        let Dialect { version, server } = match (command, dialect) {
            (Command::Connected, _) => return Escapes::Raw,
            (Command::Connect | Command::Stomp, _) | (_, None) => {
                return Escapes::Decoded(UndefinedEscapes::Keep);
            }
            (_, Some(dialect)) => dialect,
        };
        match version {
            Version::V1_0 if server != Some(Server::RabbitMq) => Escapes::Raw,
            _ => Escapes::Decoded(options.undefined_escapes),
        }
    }
}

fn decode(escaped: u8) -> Option<u8> {
    match escaped {
        b'r' => Some(b'\r'),
        b'n' => Some(b'\n'),
        b'c' => Some(b':'),
        b'\\' => Some(b'\\'),
        _ => None,
    }
}

/// Decodes the escapes in a header name or value.
///
/// # Errors
/// The index of the backslash of an undefined escape, if undefined escapes are refused.
///
/// ```
/// use stomp::{Escapes, UndefinedEscapes, unescape};
///
/// let refuse = Escapes::Decoded(UndefinedEscapes::Refuse);
/// assert_eq!(*unescape(br"a\cb", refuse).unwrap(), *b"a:b");
/// assert_eq!(unescape(br"a\tb", refuse), Err(1));
/// ```
pub fn unescape(text: &[u8], escapes: Escapes) -> Result<Cow<'_, [u8]>, usize> {
    let (Escapes::Decoded(undefined), Some(first)) = (escapes, find(b'\\', text)) else {
        return Ok(Cow::Borrowed(text));
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
        match text.get(at + 1).and_then(|&next| decode(next)) {
            Some(byte) => {
                decoded.push(byte);
                at += 2;
            }
            None if undefined == UndefinedEscapes::Keep => {
                decoded.push(b'\\');
                at += 1;
            }
            None => return Err(at),
        }
    }
    Ok(Cow::Owned(decoded))
}

/// Which bytes of a header are written as escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escaping {
    /// CR, LF, colon and backslash: STOMP 1.2, and RabbitMQ in every version.
    All,
    /// LF, colon and backslash: STOMP 1.1. A CR is data there.
    AllButCr,
    /// Backslash: CONNECT and STOMP. The specification exempts them from escaping CR, LF and colon only,
    /// and RabbitMQ and ActiveMQ unescape them.
    Backslashes,
    /// Backslash in values: ActiveMQ Classic in 1.0.
    ValueBackslashes,
    /// None: STOMP 1.0, and CONNECTED.
    Nothing,
}

impl Escaping {
    /// How a `command` frame is written. `None`: before negotiation, as in 1.2.
    pub(crate) fn of(command: Command, dialect: Option<Dialect>) -> Escaping {
        let dialect = dialect.unwrap_or(Version::V1_2.into());
        match (command, dialect.version, dialect.server) {
            (Command::Connected, _, _) => Escaping::Nothing,
            (Command::Connect | Command::Stomp, _, _) => Escaping::Backslashes,
            (_, Version::V1_2, _) | (_, _, Some(Server::RabbitMq)) => Escaping::All,
            (_, Version::V1_1, _) => Escaping::AllButCr,
            (_, Version::V1_0, Some(Server::ActiveMq)) => Escaping::ValueBackslashes,
            (_, Version::V1_0, None) => Escaping::Nothing,
        }
    }

    /// How header names are written in such a frame.
    pub(crate) fn of_names(self) -> Escaping {
        match self {
            Escaping::ValueBackslashes => Escaping::Nothing,
            other => other,
        }
    }

    fn encode(self, byte: u8) -> Option<u8> {
        match (byte, self) {
            (_, Escaping::Nothing) => None,
            (b'\\', _) => Some(b'\\'),
            (b'\n', Escaping::All | Escaping::AllButCr) => Some(b'n'),
            (b':', Escaping::All | Escaping::AllButCr) => Some(b'c'),
            (b'\r', Escaping::All) => Some(b'r'),
            _ => None,
        }
    }
}

/// Appends `text` to `out`, escaped.
///
/// ```
/// let mut escaped = Vec::new();
/// stomp::escape(b"a:b", stomp::Escaping::All, &mut escaped);
/// assert_eq!(escaped, br"a\cb");
/// ```
pub fn escape(text: &[u8], escaping: Escaping, out: &mut Vec<u8>) {
    if escaping == Escaping::Nothing {
        out.extend_from_slice(text);
        return;
    }
    for &byte in text {
        match escaping.encode(byte) {
            Some(code) => out.extend_from_slice(&[b'\\', code]),
            None => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use UndefinedEscapes::{Keep, Refuse};

    fn decoded(text: &str, escapes: Escapes) -> Result<String, usize> {
        unescape(text.as_bytes(), escapes).map(|t| String::from_utf8(t.into_owned()).unwrap())
    }

    fn escaped(text: &str, escaping: Escaping) -> String {
        let mut out = Vec::new();
        escape(text.as_bytes(), escaping, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn value_encoding() {
        let strict = Escapes::Decoded(Refuse);
        assert_eq!(decoded(r"a\r\n\c\\b", strict), Ok("a\r\n:\\b".into()));
        assert_eq!(decoded(r"\\n", strict), Ok(r"\n".into()));
        assert_eq!(decoded(r"ab\t", strict), Err(2));
        assert_eq!(decoded(r"ab\", strict), Err(2));
    }

    #[test]
    fn raw_and_kept_escapes_stay() {
        assert_eq!(decoded(r"C:\new", Escapes::Raw), Ok(r"C:\new".into()));
        let lenient = Escapes::Decoded(Keep);
        assert_eq!(decoded(r"\t\n\", lenient), Ok("\\t\n\\".into()));
    }

    #[test]
    fn text_without_escapes_is_borrowed() {
        let borrowed = unescape(b"plain", Escapes::Decoded(Refuse));
        assert!(matches!(borrowed, Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn each_way_of_writing_escapes_its_bytes() {
        let text = "a:\r\n\\";
        assert_eq!(escaped(text, Escaping::All), r"a\c\r\n\\");
        assert_eq!(escaped(text, Escaping::AllButCr), "a\\c\r\\n\\\\");
        assert_eq!(escaped(text, Escaping::Backslashes), "a:\r\n\\\\");
        assert_eq!(escaped(text, Escaping::Nothing), text);
    }
}
