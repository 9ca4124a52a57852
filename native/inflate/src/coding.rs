//! What a body is.

use crate::gzip;
use std::borrow::Cow;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    pub(crate) format: Format,
    /// Whether only two bytes say so, which text may begin with as well ("x^2").
    pub(crate) is_guess: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// RFC 1952.
    Gzip,
    /// RFC 1950.
    Zlib,
    /// RFC 1951, without a frame around it.
    Deflate,
}

impl Coding {
    /// The coding of `body`: by its first bytes, or by what the header `content-encoding` says, which is asked for
    /// only if it matters. `None` if it is not compressed, or in a way that is not known here.
    pub fn of<'h>(
        body: &[u8],
        content_encoding: impl FnOnce() -> Option<Cow<'h, [u8]>>,
    ) -> Option<Coding> {
        if body.is_empty() {
            return None;
        }
        if body.starts_with(&gzip::MAGIC) {
            return Some(Coding::certain(Format::Gzip));
        }
        let said = content_encoding();
        let said = said.as_deref().unwrap_or_default().trim_ascii();
        let is = |name| said.eq_ignore_ascii_case(name);
        if is(b"gzip") || is(b"x-gzip") {
            return Some(Coding::certain(Format::Gzip));
        }
        match (begins_as_zlib(body), is(b"deflate")) {
            // Which of the two "deflate" stands for is not agreed on everywhere (RFC 9110, section 8.4.1.2).
            (true, true) => Some(Coding::certain(Format::Zlib)),
            (false, true) => Some(Coding::certain(Format::Deflate)),
            (true, false) => Some(Coding {
                format: Format::Zlib,
                is_guess: true,
            }),
            (false, false) => None,
        }
    }

    fn certain(format: Format) -> Coding {
        Coding {
            format,
            is_guess: false,
        }
    }
}

/// Method 8 with a window of 32 KiB, as everybody writes it, and the check bits (RFC 1950, section 2.2).
fn begins_as_zlib(body: &[u8]) -> bool {
    matches!(body, [0x78, flags, ..] if u16::from_be_bytes([0x78, *flags]).is_multiple_of(31))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &[u8], said: Option<&str>) -> Option<(Format, bool)> {
        let said = said.map(|value| value.as_bytes().into());
        Coding::of(body, || said).map(|coding| (coding.format, coding.is_guess))
    }

    #[test]
    fn the_first_bytes_tell() {
        assert_eq!(of(b"\x1f\x8b\x08 ...", None), Some((Format::Gzip, false)));
        assert_eq!(of(b"\x78\x9c...", None), Some((Format::Zlib, true)));
        assert_eq!(of(b"x^2 + 1", None), Some((Format::Zlib, true)));
        for text in [
            &b""[..],
            b"\x1f",
            b"\x1f\x8b",
            b"x",
            b"xx",
            b"<xml/>",
            b"\x1f\x8b\x09",
        ] {
            assert_eq!(of(text, None), None, "{text:?}");
        }
    }

    #[test]
    fn the_header_tells() {
        for said in ["gzip", "x-gzip", " GZIP "] {
            assert_eq!(of(b"text", Some(said)), Some((Format::Gzip, false)));
        }
        let said = Some("Deflate");
        assert_eq!(of(b"\x78\x9c...", said), Some((Format::Zlib, false)));
        assert_eq!(of(b"\x03\x00", said), Some((Format::Deflate, false)));
        for said in ["identity", "br", "gzip, gzip", ""] {
            assert_eq!(of(b"text", Some(said)), None);
        }
        assert_eq!(of(b"", Some("gzip")), None);
    }

    #[test]
    fn the_header_is_not_asked_for_where_the_bytes_are_enough() {
        let ask = || panic!("asked");
        assert!(Coding::of(b"\x1f\x8b\x08", ask).is_some());
    }
}
