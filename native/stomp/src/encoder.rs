//! Frames to bytes.

use crate::escape::{Escaping, escape};
use crate::scan::{find, find2};
use crate::{Command, Dialect};
use thiserror::Error;

/// A frame that cannot be written. If it were written anyway, the peer would read another frame, or
/// several.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    /// A header has an empty name. Carries the header's index.
    #[error("header {0} has no name")]
    EmptyHeaderName(usize),
    /// A header holds a CR, an LF or, in its name, a colon, and the dialect has no escape for it.
    /// Carries the header's index.
    #[error("header {0} has a character that this version cannot escape")]
    Unescapable(usize),
}

/// Appends a frame's command, its headers and the blank line to `out`. The caller appends the body
/// and a NUL. If there is a body and no `content-length` header, one is added, so that the body may
/// hold any byte (STOMP 1.2, "Header content-length"). With an empty one there will be none, and the body may not
/// hold a NUL.
///
/// `dialect` is `None` before negotiation, when only CONNECT and STOMP are sent. Other frames are written
/// as in 1.2 then.
///
/// # Errors
/// A header that cannot be written. The contents of `out` are unspecified then.
///
/// ```
/// use stomp::{Command, Version, encode_head};
///
/// let headers = [(&b"destination"[..], &b"/queue/a:b"[..])];
/// let mut frame = Vec::new();
/// encode_head(Command::Send, headers, 5, Some(Version::V1_2.into()), &mut frame)?;
/// frame.extend_from_slice(b"hello\0");
/// assert_eq!(frame, b"SEND\ndestination:/queue/a\\cb\ncontent-length:5\n\nhello\0");
/// # Ok::<(), stomp::EncodeError>(())
/// ```
pub fn encode_head<'a>(
    command: Command,
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    body_length: usize,
    dialect: Option<Dialect>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let escaping = Escaping::of(command, dialect);
    let mut needs_length = body_length > 0;
    out.extend_from_slice(command.as_str().as_bytes());
    out.push(b'\n');
    for (index, (name, value)) in headers.into_iter().enumerate() {
        check_header(index, name, value, escaping)?;
        if name == b"content-length" {
            needs_length = false;
            if value.is_empty() {
                continue;
            }
        }
        escape(name, escaping.of_names(), out);
        out.push(b':');
        escape(value, escaping, out);
        out.push(b'\n');
    }
    if needs_length {
        out.extend_from_slice(format!("content-length:{body_length}\n").as_bytes());
    }
    out.push(b'\n');
    Ok(())
}

fn check_header(
    index: usize,
    name: &[u8],
    value: &[u8],
    escaping: Escaping,
) -> Result<(), EncodeError> {
    if name.is_empty() {
        return Err(EncodeError::EmptyHeaderName(index));
    }
    let unescapable = match escaping {
        Escaping::All | Escaping::AllButCr => false,
        Escaping::Backslashes | Escaping::ValueBackslashes | Escaping::Nothing => {
            find(b':', name).is_some()
                || find2(b'\r', b'\n', name).is_some()
                || find2(b'\r', b'\n', value).is_some()
        }
    };
    if unescapable {
        return Err(EncodeError::Unescapable(index));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Server, Version};

    fn encoded(
        command: Command,
        headers: &[(&str, &str)],
        body_length: usize,
        version: Option<Version>,
    ) -> Result<String, EncodeError> {
        let mut out = Vec::new();
        let headers = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        let dialect = version.map(Dialect::from);
        encode_head(command, headers, body_length, dialect, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn content_length_is_added_to_a_body_unless_it_is_given() {
        let send = |headers: &[(&str, &str)], length| {
            encoded(Command::Send, headers, length, Some(Version::V1_2)).unwrap()
        };
        assert_eq!(send(&[("a", "b")], 0), "SEND\na:b\n\n");
        assert_eq!(send(&[("a", "b")], 5), "SEND\na:b\ncontent-length:5\n\n");
        let given = [("content-length", "5")];
        assert_eq!(send(&given, 5), "SEND\ncontent-length:5\n\n");
        let without = [("content-length", ""), ("a", "b")];
        assert_eq!(send(&without, 5), "SEND\na:b\n\n");
    }

    #[test]
    fn headers_are_escaped_as_the_version_says() {
        let headers = [("k:", "v\\\n")];
        let send = |version| encoded(Command::Send, &headers, 0, Some(version));
        assert_eq!(send(Version::V1_2).unwrap(), "SEND\nk\\c:v\\\\\\n\n\n");
        assert_eq!(send(Version::V1_1).unwrap(), "SEND\nk\\c:v\\\\\\n\n\n");
        assert_eq!(send(Version::V1_0), Err(EncodeError::Unescapable(0)));
        let cr = encoded(Command::Send, &[("a", "b\r")], 0, Some(Version::V1_1));
        assert_eq!(cr.unwrap(), "SEND\na:b\r\n\n");
    }

    #[test]
    fn only_backslashes_are_escaped_in_connect() {
        let connect = encoded(Command::Connect, &[("passcode", "a\\b:c")], 0, None);
        assert_eq!(connect.unwrap(), "CONNECT\npasscode:a\\\\b:c\n\n");
    }

    #[test]
    fn servers_are_written_to_as_they_read() {
        let send = |version, server, header: (&str, &str)| {
            let mut out = Vec::new();
            let server = Some(server);
            let dialect = Some(Dialect { version, server });
            let header = (header.0.as_bytes(), header.1.as_bytes());
            encode_head(Command::Send, [header], 0, dialect, &mut out)?;
            Ok(String::from_utf8(out).unwrap())
        };
        for version in [Version::V1_0, Version::V1_1, Version::V1_2] {
            let written = send(version, Server::RabbitMq, ("k\\", "C:\\new\r"));
            assert_eq!(written.as_deref(), Ok("SEND\nk\\\\:C\\c\\\\new\\r\n\n"));
        }
        let written = send(Version::V1_0, Server::ActiveMq, ("k\\", "C:\\new"));
        assert_eq!(written.as_deref(), Ok("SEND\nk\\:C:\\\\new\n\n"));
        let refused = send(Version::V1_0, Server::ActiveMq, ("k", "a\nb"));
        assert_eq!(refused, Err(EncodeError::Unescapable(0)));
    }

    #[test]
    fn a_header_that_cannot_be_escaped_or_has_no_name_is_refused() {
        let refused = |command, header, version| encoded(command, &[header], 0, version);
        let injected = ("host", "/\nlogin:root");
        assert_eq!(
            refused(Command::Connect, injected, None),
            Err(EncodeError::Unescapable(0))
        );
        assert_eq!(
            refused(Command::Send, ("", "b"), Some(Version::V1_2)),
            Err(EncodeError::EmptyHeaderName(0))
        );
    }
}
