//! A connection that is set up.

use crate::machine::{End, Machine, Records, Traffic};
use rustls::unbuffered::EncryptError;

/// A connection to a server that has agreed. It never waits: it is given the bytes that have arrived, and gives
/// those that are to be sent.
///
/// What can be done is a value: [`Reading`] exists until the peer's data has ended, [`Writing`] until ours has, or
/// the connection has failed.
pub struct Session {
    machine: Machine,
    /// The beginning of a record whose rest has not arrived.
    partial: Vec<u8>,
    /// Plaintext that nobody has taken.
    plaintext: Vec<u8>,
    /// Whether [`Session::owes`] has told of the records that are owed.
    told: bool,
    end: Option<End>,
    /// Whether the `close_notify` alert has been written.
    is_closed: bool,
}

/// Nothing can be written any more. What is owed has to be sent all the same.
#[derive(Debug)]
pub struct Ended(pub Records);

/// The keys were used as often as is safe, and TLS 1.2 cannot renew them: after 2^24 records with AES-GCM.
#[derive(Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Session {
    pub(crate) fn new(
        machine: Machine,
        partial: Vec<u8>,
        plaintext: Vec<u8>,
        end: Option<End>,
    ) -> Session {
        Session {
            machine,
            partial,
            plaintext,
            told: false,
            end,
            is_closed: false,
        }
    }

    /// The peer's data, or how it ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn reading(&mut self) -> Result<Reading<'_>, &End> {
        match self.end {
            None => Ok(Reading(self)),
            Some(ref end) => Err(end),
        }
    }

    /// Our data: what is written comes after `records`, and after those that are owed.
    ///
    /// # Errors
    /// The connection has failed or was closed. `records` and those that are owed are in the error.
    pub fn writing(&mut self, mut records: Records) -> Result<Writing<'_>, Ended> {
        records.0.append(&mut self.take_owed().0);
        if self.is_closed || matches!(self.end, Some(End::Failed(_))) {
            return Err(Ended(records));
        }
        match self.machine.traffic(&mut self.partial) {
            Some(traffic) => Ok(Writing {
                traffic,
                records,
                is_closed: &mut self.is_closed,
            }),
            None => Err(Ended(records)),
        }
    }

    /// Plaintext that came before the first [`Session::reading`].
    pub fn take_plaintext(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.plaintext)
    }

    /// Takes `bytes` that have arrived, for a caller that reads without a buffer of its own. Returns
    /// `length` bytes of plaintext, or all that there are if `length` is 0. `None` if more are needed.
    ///
    /// # Errors
    /// There are not enough, and there will not be more.
    pub fn read(&mut self, bytes: &[u8], length: usize) -> Result<Option<Vec<u8>>, &End> {
        let mut plaintext = self.take_plaintext();
        if let Ok(reading) = self.reading() {
            let mut records = reading.partial().to_vec();
            records.extend_from_slice(bytes);
            reading.decrypt(&mut records, |part| plaintext.extend_from_slice(part));
        }
        if plaintext.is_empty() || plaintext.len() < length {
            self.plaintext = plaintext;
            return self.end.as_ref().map_or(Ok(None), Err);
        }
        if length > 0 {
            self.plaintext = plaintext.split_off(length);
        }
        Ok(Some(plaintext))
    }

    /// Whether there are records to send that were not asked for: alerts, for example. It says so
    /// only once.
    pub fn owes(&mut self) -> bool {
        let owes = self.machine.owes() && !self.told;
        self.told |= owes;
        owes
    }

    /// Takes the records that are to be sent before any other.
    fn take_owed(&mut self) -> Records {
        self.told = false;
        self.machine.take_owed()
    }
}

/// The peer's data.
pub struct Reading<'s>(&'s mut Session);

impl<'s> Reading<'s> {
    /// Bytes that [`Reading::decrypt`] needs in front of those that are read next.
    pub fn partial(&self) -> &[u8] {
        &self.0.partial
    }

    /// Decrypts `records`, which begin with [`Reading::partial`]'s bytes, and hands their plaintext to
    /// `take`, a record at a time. How the peer's data ended after that, if it did.
    pub fn decrypt(self, records: &mut [u8], mut take: impl FnMut(&[u8])) -> Option<&'s End> {
        let Reading(session) = self;
        let (used, end) = session.machine.process(records, &mut take);
        // An idle connection holds no buffer.
        session.partial = records[used..].to_vec();
        session.end = end;
        session.end.as_ref()
    }
}

/// Our data, as records.
pub struct Writing<'s> {
    traffic: Traffic<'s>,
    records: Records,
    is_closed: &'s mut bool,
}

impl Writing<'_> {
    /// Encrypts `data`.
    ///
    /// # Errors
    /// It cannot be encrypted. What was written before is not lost.
    pub fn encrypt(&mut self, data: &[u8]) -> Result<(), Exhausted> {
        self.append(|traffic, out| traffic.encrypt(data, out))
    }

    /// The records.
    pub fn finish(self) -> Records {
        self.records
    }

    /// The records, and the `close_notify` alert (RFC 8446, 6.1). Nothing can be written after it.
    pub fn close(mut self) -> Records {
        let closed = self.append(|traffic, out| traffic.queue_close_notify(out));
        *self.is_closed = closed.is_ok();
        self.records
    }

    fn append(
        &mut self,
        mut write: impl FnMut(&mut Traffic, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Exhausted> {
        let Records(records) = &mut self.records;
        let start = records.len();
        // The first call tells the size.
        let mut written = write(&mut self.traffic, &mut []);
        if let Err(EncryptError::InsufficientSize(size)) = written {
            records.resize(start + size.required_size, 0);
            written = write(&mut self.traffic, &mut records[start..]);
        }
        records.truncate(start + *written.as_ref().unwrap_or(&0));
        written.map(drop).map_err(|_| Exhausted)
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
