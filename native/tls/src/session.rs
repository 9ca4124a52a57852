//! One connection.

use crate::{Config, Failure, ServerName};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};

/// A connection to a server. It never waits: it is given the bytes that have arrived, and gives those
/// that are to be sent.
///
/// ```text
///   new -> handshake -> Continue ... -> Established -> decrypt, encrypt -> ended
/// ```
pub struct Session {
    connection: UnbufferedClientConnection,
    /// Plaintext that came with the end of the handshake.
    plaintext: Vec<u8>,
    /// The beginning of a record whose rest has not arrived.
    partial: Vec<u8>,
    /// Records that are to be sent before any other.
    owed: Vec<u8>,
    /// Whether [`Session::owes`] has told of them.
    told: bool,
    end: Option<End>,
    /// Whether the `close_notify` alert has been written.
    is_closed: bool,
}

/// Why nothing can be encrypted.
#[derive(Debug, PartialEq, Eq)]
pub enum Unwritable {
    /// The connection has failed or was closed.
    Ended,
    /// The keys were used as often as is safe, and TLS 1.2 cannot renew them: after 2^24 records with
    /// AES-GCM.
    Exhausted,
}

/// What a handshake needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// More bytes of the server.
    Continue,
    /// Nothing.
    Established,
}

/// How the peer's data ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has closed (`close_notify`).
    Closed,
    /// The connection has failed, or the peer has sent an alert.
    Failed(Failure),
}

impl Session {
    /// A connection to the server `name`.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn new(config: &Config, name: ServerName<'static>) -> Result<Session, Failure> {
        Ok(Session {
            connection: UnbufferedClientConnection::new(config.0.clone(), name)?,
            plaintext: Vec::new(),
            partial: Vec::new(),
            owed: Vec::new(),
            told: false,
            end: None,
            is_closed: false,
        })
    }

    /// Goes on with the handshake. `bytes` have arrived since the last call. What
    /// [`Session::take_owed`] returns afterwards has to be sent, also after an error.
    ///
    /// # Errors
    /// Why the handshake has failed.
    pub fn handshake(&mut self, bytes: &[u8]) -> Result<Handshake, Failure> {
        let mut records = std::mem::take(&mut self.partial);
        records.extend_from_slice(bytes);
        let mut plaintext = std::mem::take(&mut self.plaintext);
        let (used, end) = self.process(&mut records, &mut |part| plaintext.extend_from_slice(part));
        self.plaintext = plaintext;
        self.partial = records.split_off(used);
        self.end = end;
        match &self.end {
            Some(End::Failed(failure)) => Err(failure.clone()),
            Some(End::Closed) if self.connection.is_handshaking() => Err(Failure {
                reason: "closed",
                details: "the peer closed during the handshake".to_owned(),
            }),
            None if self.connection.is_handshaking() => Ok(Handshake::Continue),
            _ => Ok(Handshake::Established),
        }
    }

    /// How the peer's data ended, if it did.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Bytes that [`Session::decrypt`] needs in front of those that are read next.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Plaintext that came before the first call of [`Session::decrypt`].
    pub fn take_plaintext(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.plaintext)
    }

    /// Decrypts `records`, which begin with [`Session::partial`]'s bytes, and hands their plaintext to
    /// `take`, a record at a time. The end of the peer's data is in [`Session::end`] afterwards.
    pub fn decrypt(&mut self, records: &mut [u8], mut take: impl FnMut(&[u8])) {
        if self.end.is_some() {
            return;
        }
        let (used, end) = self.process(records, &mut take);
        // An idle connection holds no buffer.
        self.partial = records[used..].to_vec();
        self.end = end;
    }

    /// Takes `bytes` that have arrived, for a caller that reads without a buffer of its own. Returns
    /// `length` bytes of plaintext, or all that there are if `length` is 0. `None` if there are not
    /// enough; [`Session::end`] tells whether there will be more.
    pub fn read(&mut self, bytes: &[u8], length: usize) -> Option<Vec<u8>> {
        let mut records = self.partial.clone();
        records.extend_from_slice(bytes);
        let mut plaintext = self.take_plaintext();
        self.decrypt(&mut records, |part| plaintext.extend_from_slice(part));
        if plaintext.is_empty() || plaintext.len() < length {
            self.plaintext = plaintext;
            return None;
        }
        if length > 0 {
            self.plaintext = plaintext.split_off(length);
        }
        Some(plaintext)
    }

    /// Whether there are records to send that were not asked for: alerts, for example. It says so
    /// only once.
    pub fn owes(&mut self) -> bool {
        let owes = !self.owed.is_empty() && !self.told;
        self.told |= owes;
        owes
    }

    /// Takes the records that are to be sent before any other.
    pub fn take_owed(&mut self) -> Vec<u8> {
        self.told = false;
        std::mem::take(&mut self.owed)
    }

    /// Appends the records for `data` to `records`, after those that are owed. With no data, only
    /// those.
    ///
    /// # Errors
    /// Why it cannot be encrypted. What is owed has been appended.
    pub fn encrypt(&mut self, data: &[u8], records: &mut Vec<u8>) -> Result<(), Unwritable> {
        if self.is_closed {
            return Err(Unwritable::Ended);
        }
        self.write(records, |traffic, out| traffic.encrypt(data, out))
    }

    /// Appends the last records: those that are owed, and the `close_notify` alert (RFC 8446, 6.1).
    /// A connection that has failed has sent another alert instead, and a second call appends nothing.
    pub fn close(&mut self, records: &mut Vec<u8>) {
        let result = self.write(records, |traffic, out| traffic.queue_close_notify(out));
        self.is_closed |= result.is_ok();
    }

    fn write(
        &mut self,
        records: &mut Vec<u8>,
        mut write: impl FnMut(&mut Traffic, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Unwritable> {
        records.append(&mut self.take_owed());
        if matches!(self.end, Some(End::Failed(_))) {
            return Err(Unwritable::Ended);
        }
        // rustls still needs the bytes of a handshake message that is not complete.
        let status = self.connection.process_tls_records(&mut self.partial);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(Unwritable::Ended);
        };
        let start = records.len();
        // The first call tells the size.
        let mut written = write(&mut traffic, &mut []);
        if let Err(EncryptError::InsufficientSize(size)) = written {
            records.resize(start + size.required_size, 0);
            written = write(&mut traffic, &mut records[start..]);
        }
        records.truncate(start + *written.as_ref().unwrap_or(&0));
        written.map(drop).map_err(|_| Unwritable::Exhausted)
    }

    /// Processes the records at the front of `records`, until there is no complete one left, or up to
    /// the end of the peer's data. Returns how many bytes they have, and that end.
    fn process(
        &mut self,
        records: &mut [u8],
        take: &mut impl FnMut(&[u8]),
    ) -> (usize, Option<End>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut records[used..]);
            used += discard;
            let end = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        used += record.discard;
                        take(record.payload);
                    }
                    continue;
                }
                Ok(ConnectionState::EncodeTlsData(mut encode)) => {
                    encode_into(&mut encode, &mut self.owed);
                    continue;
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    continue;
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(End::Closed),
                Err(error) => {
                    self.take_alert(&mut records[used..]);
                    Some(End::Failed(error.into()))
                }
                // It can be written, or more has to be read.
                Ok(_) => None,
            };
            return (used, end);
        }
    }

    /// After an error: takes the alert that the peer has to get.
    fn take_alert(&mut self, records: &mut [u8]) {
        let status = self.connection.process_tls_records(records);
        if let Ok(ConnectionState::EncodeTlsData(mut encode)) = status.state {
            encode_into(&mut encode, &mut self.owed);
        }
    }
}

type Traffic<'a> = WriteTraffic<'a, ClientConnectionData>;

fn encode_into(encode: &mut EncodeTlsData<'_, ClientConnectionData>, records: &mut Vec<u8>) {
    let start = records.len();
    // The first call tells the size.
    if let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) {
        records.resize(start + size.required_size, 0);
        let written = encode.encode(&mut records[start..]);
        records.truncate(start + written.unwrap_or(0));
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
