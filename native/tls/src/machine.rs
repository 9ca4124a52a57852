//! What rustls knows of a connection, and what it wants to send.

use crate::{Config, Failure, ServerName};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus, WriteTraffic,
};

pub(crate) type Traffic<'a> = WriteTraffic<'a, ClientConnectionData>;

/// Records that have to be sent, before any that are made later.
#[derive(Debug, Default)]
#[must_use = "the peer waits for these records"]
pub struct Records(pub(crate) Vec<u8>);

impl Records {
    /// Their bytes.
    #[must_use = "the peer waits for these records"]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// How the peer's data ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has closed (`close_notify`).
    Closed,
    /// The connection has failed, or the peer has sent an alert.
    Failed(Failure),
}

pub(crate) struct Machine {
    connection: UnbufferedClientConnection,
    /// Records that are to be sent before any other.
    owed: Records,
}

impl Machine {
    pub fn new(config: &Config, name: ServerName<'static>) -> Result<Machine, Failure> {
        Ok(Machine {
            connection: UnbufferedClientConnection::new(config.0.clone(), name)?,
            owed: Records::default(),
        })
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    pub fn owes(&self) -> bool {
        !self.owed.0.is_empty()
    }

    pub fn take_owed(&mut self) -> Records {
        std::mem::take(&mut self.owed)
    }

    /// What can be written, if anything can. rustls needs the bytes of a handshake message that is not complete.
    pub fn traffic<'s>(&'s mut self, partial: &'s mut [u8]) -> Option<Traffic<'s>> {
        match self.connection.process_tls_records(partial).state {
            Ok(ConnectionState::WriteTraffic(traffic)) => Some(traffic),
            _ => None,
        }
    }

    /// Processes the records at the front of `records`, until there is no complete one left, or up to
    /// the end of the peer's data. Returns how many bytes they have, and that end.
    pub fn process(
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

fn encode_into(encode: &mut EncodeTlsData<'_, ClientConnectionData>, records: &mut Records) {
    let Records(records) = records;
    let start = records.len();
    // The first call tells the size.
    if let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) {
        records.resize(start + size.required_size, 0);
        let written = encode.encode(&mut records[start..]);
        records.truncate(start + written.unwrap_or(0));
    }
}
