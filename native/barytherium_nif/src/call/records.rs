//! Reading TLS records from a socket.

use super::read::grow;
use super::{Call, Flow};
use crate::atoms;
use crate::next::{Failure, Next};
use crate::socket::Read;
use crate::tls::{self, Tls};
use rustler::Env;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow::{Break, Continue};
use tls_client::End;

/// The size of a read, at most. What is read, and its plaintext, have to stay in the second-level
/// cache until they are decoded. The sender waits for the lock meanwhile.
const READ_MAX: usize = 128 * 1024;

/// What a read has brought.
enum Received<'a> {
    /// The sender has the session, and this thread may not wait for it.
    Busy,
    /// The connection had ended before.
    Ended(Next<'a>),
    /// Bytes of the socket, in so many records; none of them at the end of the stream. So many bytes of
    /// plaintext went to the body that is being collected. The rest is in the buffer, and maybe the
    /// connection has ended after it.
    Records {
        bytes: usize,
        records: usize,
        body: usize,
        end: Option<Next<'a>>,
    },
}

impl<'a> Call<'a, '_> {
    /// Reads once, decrypts the records that are complete, and decodes their plaintext. `None` if
    /// there is nothing to read.
    pub(super) fn read_records(&mut self, tls: &Tls, size: usize) -> Flow<'a, Option<Read>> {
        let size = size.min(READ_MAX);
        match self.decrypt(tls, size) {
            Ok(Received::Busy) => {
                self.flush()?;
                Break(Next::ReadDirty)
            }
            Ok(Received::Ended(end)) => Break(self.stop(end)),
            Ok(Received::Records { bytes: 0, .. }) => {
                let truncated = Next::fail(atoms::closed(), Failure::Truncated);
                Break(self.stop(truncated))
            }
            Ok(Received::Records {
                bytes,
                records,
                body,
                end,
            }) => {
                let before = self.state.budget.work();
                self.state.budget.decrypted(bytes, records);
                let plaintext = std::mem::take(&mut self.buffers.plaintext);
                // Bytes of an incomplete record count too: the peer is not silent.
                self.has_read(body + plaintext.len());
                let flow = self.decode(&plaintext);
                let read = Read {
                    body,
                    beyond: plaintext.len(),
                    is_full: bytes == size,
                };
                self.buffers.plaintext = plaintext;
                self.state.budget.learn(before, bytes);
                flow?;
                match end {
                    Some(end) => Break(self.stop(end)),
                    None => Continue(Some(read)),
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Reads and decrypts. The session is locked for no longer than that.
    fn decrypt(&mut self, tls: &Tls, size: usize) -> io::Result<Received<'a>> {
        let state = &mut *self.state;
        let transport = state.transport.as_ref().ok_or(ErrorKind::NotConnected)?;
        let Some(mut session) = tls.lock(self.may_wait) else {
            return Ok(Received::Busy);
        };
        let reading = match session.reading() {
            Ok(reading) => reading,
            Err(end) => {
                let end = ended(self.env, end);
                self.owes |= session.owes();
                return Ok(Received::Ended(end));
            }
        };
        let partial = reading.partial().len();
        let buffer = &mut self.buffers.read;
        grow(buffer, partial + size);
        buffer[..partial].copy_from_slice(reading.partial());
        let free = &mut buffer[partial..partial + size];
        let bytes = transport.socket.receive_one(free)?;
        let plaintext = &mut self.buffers.plaintext;
        plaintext.clear();
        let decoder = state.session.decoder();
        let (mut body, mut records) = (0, 0);
        let end = reading.decrypt(&mut buffer[..partial + bytes], |mut part| {
            records += 1;
            if plaintext.is_empty() {
                body += decoder.take_body(&mut part);
            }
            plaintext.extend_from_slice(part);
        });
        let end = end.map(|end| ended(self.env, end));
        self.owes |= session.owes();
        tls::unlock(session);
        Ok(Received::Records {
            bytes,
            records,
            body,
            end,
        })
    }
}

fn ended<'a>(env: Env<'a>, end: &End) -> Next<'a> {
    match end {
        End::Closed => Next::stop(atoms::closed()),
        End::Failed(failure) => {
            let details = Failure::Tls(failure.details.clone());
            Next::fail(tls::reason(env, failure), details)
        }
    }
}
