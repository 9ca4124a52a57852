//! Protocol versions, and how they differ on the wire.

/// A STOMP version, as negotiated by CONNECTED's `version` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// STOMP 1.0: no escapes, lines end in LF.
    V1_0,
    /// STOMP 1.1: escapes `\n`, `\c` and `\\`, lines end in LF.
    V1_1,
    /// STOMP 1.2: the escapes of 1.1 and `\r`, and lines may end in CR LF.
    V1_2,
}

impl Version {
    /// The version that a CONNECTED frame announces. A 1.0 server sends no `version` header
    /// (STOMP 1.1, "Protocol Negotiation"). An unknown version can only be newer, so it is treated
    /// as 1.2, the newest one that we know.
    pub fn of_connected(header: Option<&[u8]>) -> Version {
        match header {
            None | Some(b"1.0") => Version::V1_0,
            Some(b"1.1") => Version::V1_1,
            Some(_) => Version::V1_2,
        }
    }

    /// The version called `text`, if there is one.
    pub fn parse(text: &[u8]) -> Option<Version> {
        match text {
            b"1.0" => Some(Version::V1_0),
            b"1.1" => Some(Version::V1_1),
            b"1.2" => Some(Version::V1_2),
            _ => None,
        }
    }

    /// The version's name: `1.0`, `1.1` or `1.2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V1_0 => "1.0",
            Version::V1_1 => "1.1",
            Version::V1_2 => "1.2",
        }
    }
}

/// Whether lines may end in CR LF; then a bare CR is an error. Lines may also end in CR LF before
/// negotiation, because the peer may already speak 1.2.
pub(crate) fn allows_crlf(version: Option<Version>) -> bool {
    !matches!(version, Some(Version::V1_0 | Version::V1_1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_without_a_version_is_1_0_and_an_unknown_one_is_the_newest() {
        assert_eq!(Version::of_connected(None), Version::V1_0);
        assert_eq!(Version::of_connected(Some(b"1.1")), Version::V1_1);
        assert_eq!(Version::of_connected(Some(b"1.2")), Version::V1_2);
        assert_eq!(Version::of_connected(Some(b"1.3")), Version::V1_2);
    }

    #[test]
    fn names_round_trip() {
        for version in [Version::V1_0, Version::V1_1, Version::V1_2] {
            assert_eq!(Version::parse(version.as_str().as_bytes()), Some(version));
        }
        assert_eq!(Version::parse(b"1.3"), None);
    }
}
