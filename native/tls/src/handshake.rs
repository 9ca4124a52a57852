//! A connection that is being set up.

use crate::machine::{End, Machine, Records};
use crate::session::Session;
use crate::{Config, Failure, ServerName};

/// A connection to a server, until both sides have agreed.
///
/// ```
/// use tls_client::{Config, Handshake, Progress, Settings, Trust, Version};
///
/// let settings = Settings {
///     trust: Trust::Anyone,
///     is_named: true,
///     identity: None,
///     versions: vec![Version::Tls12, Version::Tls13],
///     ciphers: None,
/// };
/// let config = Config::of(settings).unwrap();
/// let handshake = Handshake::new(&config, "broker.example".try_into().unwrap()).unwrap();
/// // It begins, with nothing of the server yet.
/// let (records, progress) = handshake.advance(&[]);
/// assert_eq!(records.into_bytes()[0], 22, "a record of a handshake");
/// let Progress::Continue(handshake) = progress else { panic!() };
/// // This server does not speak TLS.
/// let (_alert, progress) = handshake.advance(b"ERROR\nmessage:hello\n\n\0");
/// let Progress::Failed(failure) = progress else { panic!() };
/// assert_eq!(failure.reason, "unexpected_message");
/// ```
pub struct Handshake {
    machine: Machine,
    /// The beginning of a record whose rest has not arrived.
    partial: Vec<u8>,
    /// Plaintext that came with the end of the handshake.
    plaintext: Vec<u8>,
}

/// How a handshake goes on.
#[must_use]
pub enum Progress {
    /// It needs more bytes of the server.
    Continue(Handshake),
    /// Both sides have agreed.
    Established(Session),
    /// It has failed.
    Failed(Failure),
}

impl Handshake {
    /// A connection to the server `name`.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn new(config: &Config, name: ServerName<'static>) -> Result<Handshake, Failure> {
        Ok(Handshake {
            machine: Machine::new(config, name)?,
            partial: Vec::new(),
            plaintext: Vec::new(),
        })
    }

    /// Goes on. `bytes` have arrived since the last call: none before the first. The records have to be sent,
    /// also after a failure.
    pub fn advance(mut self, bytes: &[u8]) -> (Records, Progress) {
        let mut records = std::mem::take(&mut self.partial);
        records.extend_from_slice(bytes);
        let plaintext = &mut self.plaintext;
        let take = &mut |part: &[u8]| plaintext.extend_from_slice(part);
        let (used, end) = self.machine.process(&mut records, take);
        self.partial = records.split_off(used);
        let owed = self.machine.take_owed();
        (owed, self.progress(end))
    }

    fn progress(self, end: Option<End>) -> Progress {
        match end {
            Some(End::Failed(failure)) => Progress::Failed(failure),
            Some(End::Closed) if self.machine.is_handshaking() => Progress::Failed(Failure {
                reason: "closed",
                details: "the peer closed during the handshake".to_owned(),
            }),
            None if self.machine.is_handshaking() => Progress::Continue(self),
            _ => {
                let (partial, plaintext) = (self.partial, self.plaintext);
                Progress::Established(Session::new(self.machine, partial, plaintext, end))
            }
        }
    }
}
