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
    /// (STOMP 1.1, "Protocol Negotiation"). Blanks around it are ignored, because some servers pad
    /// their headers. A version that we do not know is read as 1.2, the newest one that we do.
    pub fn of_connected(header: Option<&[u8]>) -> Version {
        match header {
            None => Version::V1_0,
            Some(text) => Version::parse(text.trim_ascii()).unwrap_or(Version::V1_2),
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

/// A server whose escapes are not those of the negotiated version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// RabbitMQ escapes and unescapes in every version as in 1.2.
    RabbitMq,
    /// ActiveMQ Classic unescapes values in 1.0 too, but does not escape them there.
    ActiveMq,
}

impl Server {
    /// The names that begin the `server` header of CONNECTED. Artemis calls itself
    /// `ActiveMQ-Artemis/`.
    const NAMES: [(Server, &'static str); 2] = [
        (Server::RabbitMq, "RabbitMQ"),
        (Server::ActiveMq, "ActiveMQ/"),
    ];

    /// The server that calls itself `name`, if it is one of these.
    pub fn of_name(name: &[u8]) -> Option<Server> {
        let name = name.trim_ascii_start();
        let known = |(_, start): &&(Server, &str)| name.starts_with(start.as_bytes());
        Self::NAMES.iter().find(known).map(|&(server, _)| server)
    }

    /// A name that [`of_name`](Self::of_name) recognises.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

/// How the two sides of a connection write their headers: the version, as the server speaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dialect {
    /// The negotiated version.
    pub version: Version,
    /// `None`: a server that escapes as the version says, as far as we know.
    pub server: Option<Server>,
}

impl Dialect {
    /// The dialect of the connection that this CONNECTED frame opens.
    pub fn of_connected<B>(frame: &crate::Frame<'_, B>) -> Dialect {
        let server = frame.header(b"server").unwrap_or_default();
        Dialect {
            version: Version::of_connected(frame.header(b"version").as_deref()),
            server: Server::of_name(&server),
        }
    }
}

impl From<Version> for Dialect {
    fn from(version: Version) -> Dialect {
        let server = None;
        Dialect { version, server }
    }
}

/// Whether any line may end in CR LF; then a bare CR is an error. This is so before negotiation
/// too, because the peer may already speak 1.2.
pub(crate) fn allows_crlf(dialect: Option<Dialect>) -> bool {
    dialect.is_none_or(|dialect| dialect.version == Version::V1_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_without_a_version_is_1_0_and_an_unknown_one_is_read_as_the_newest() {
        assert_eq!(Version::of_connected(None), Version::V1_0);
        assert_eq!(Version::of_connected(Some(b"1.1")), Version::V1_1);
        assert_eq!(Version::of_connected(Some(b" 1.1 ")), Version::V1_1);
        assert_eq!(Version::of_connected(Some(b"1.2")), Version::V1_2);
        assert_eq!(Version::of_connected(Some(b"1.3")), Version::V1_2);
    }

    #[test]
    fn names_round_trip() {
        for version in [Version::V1_0, Version::V1_1, Version::V1_2] {
            assert_eq!(Version::parse(version.as_str().as_bytes()), Some(version));
        }
        assert_eq!(Version::parse(b"1.3"), None);
        for server in [Server::RabbitMq, Server::ActiveMq] {
            assert_eq!(Server::of_name(server.name().as_bytes()), Some(server));
        }
    }

    #[test]
    fn servers_are_known_by_the_beginning_of_their_names() {
        assert_eq!(Server::of_name(b"RabbitMQ/3.10.8"), Some(Server::RabbitMq));
        assert_eq!(Server::of_name(b" ActiveMQ/5.17.2"), Some(Server::ActiveMq));
        assert_eq!(Server::of_name(b"ActiveMQ-Artemis/2.31.2"), None);
        assert_eq!(Server::of_name(b""), None);
    }
}
