//! Reading TLS records from a socket.

use super::Flow;
use super::reader::{Reader, grow};
use crate::atoms;
use crate::socket::Read;
use crate::step::{Failure, Step};
use crate::tls::{self, Tls};
use rustler::Env;
use std::ops::ControlFlow::{Break, Continue};
use stomp::Turn;
use tls_session::End;

/// The size of a read, at most. What is read, and its plaintext, have to stay in the second-level
/// cache until they are decoded. The sender waits for the lock meanwhile.
const READ_MAX: usize = 128 * 1024;

impl<'a> Reader<'_, 'a, '_> {
    /// Reads once, decrypts the records that are complete, and decodes their plaintext. `None` if
    /// there is nothing to read.
    pub(super) fn read_records(&mut self, tls: &Tls, size: usize) -> Flow<'a, Option<Read>> {
        let Some(mut session) = tls.lock(self.may_wait) else {
            // The sender has it. A dirty thread may wait.
            self.slice.flush()?;
            return Break(Step::Turn(Turn::Alone));
        };
        if let Some(end) = session.end().map(|end| ended(self.slice.env, end)) {
            self.slice.owes |= session.owes();
            return Break(self.slice.stop(end));
        }
        let size = size.min(READ_MAX);
        let partial = session.partial().len();
        let buffer = &mut self.buffers.read;
        grow(buffer, partial + size);
        buffer[..partial].copy_from_slice(session.partial());
        let free = &mut buffer[partial..partial + size];
        let received = match self.transport.socket.receive_one(free) {
            Ok(0) => {
                let truncated = Step::fail(atoms::closed(), Failure::Truncated);
                return Break(self.slice.stop(truncated));
            }
            Ok(received) => received,
            Err(error) => return self.fail(&error),
        };
        let plaintext = &mut self.buffers.plaintext;
        plaintext.clear();
        let decoder = self.slice.session.decoder();
        let (mut body, mut records) = (0, 0);
        session.decrypt(&mut buffer[..partial + received], |mut part| {
            records += 1;
            if plaintext.is_empty() {
                body += decoder.take_body(&mut part);
            }
            plaintext.extend_from_slice(part);
        });
        let end = session.end().map(|end| ended(self.slice.env, end));
        self.slice.owes |= session.owes();
        tls::unlock(session);
        let before = self.slice.budget.work();
        self.slice.budget.decrypted(received, records);
        // Bytes of an incomplete record count too: the peer is not silent.
        self.slice.has_read(body + plaintext.len());
        let flow = self.slice.decode(plaintext);
        self.slice.budget.learn(before, received);
        flow?;
        if let Some(end) = end {
            return Break(self.slice.stop(end));
        }
        Continue(Some(Read {
            body,
            beyond: plaintext.len(),
            is_full: received == size,
        }))
    }
}

fn ended<'a>(env: Env<'a>, end: &End) -> Step<'a> {
    match end {
        End::Closed => Step::stop(atoms::closed()),
        End::Failed(failure) => {
            let details = Failure::Tls(failure.details.clone());
            Step::fail(tls::reason(env, failure), details)
        }
    }
}
