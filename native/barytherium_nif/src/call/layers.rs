//! Reading from a socket through what lies between it and STOMP: TLS, WebSocket, or one in the other.

use super::read::{Buffers, grow};
use super::{Call, Flow};
use crate::atoms;
use crate::next::{Failure, Next};
use crate::socket::{Read, Socket};
use crate::terms::BinaryBody;
use crate::tls;
use crate::websocket::WebSocket;
use rustler::Env;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow::{Break, Continue};
use stomp::Decoder;
use tls_client::{End, Session};

/// The size of a read, at most. What is read, and its payload, have to stay in the second-level
/// cache until they are decoded. The sender waits for the lock meanwhile.
const READ_MAX: usize = 128 * 1024;

/// What a read has brought.
#[derive(Default)]
struct Received<'a> {
    /// Bytes of the socket; none of them at the end of the stream.
    bytes: usize,
    /// TLS records, and WebSocket frames.
    records: usize,
    frames: usize,
    /// Bytes of payload that went to the body that is being collected. The rest is in the buffer.
    body: usize,
    /// The connection has ended after that, or had before.
    end: Option<Next<'a>>,
}

/// A read, and where its payload goes.
struct Reading<'s> {
    socket: &'s Socket,
    /// Bytes to read at most.
    size: usize,
    websocket: Option<&'s WebSocket>,
    decoder: &'s mut Decoder<BinaryBody>,
    payload: &'s mut Vec<u8>,
}

impl<'a> Reading<'_> {
    fn receive(mut self, buffer: &mut Vec<u8>) -> io::Result<Received<'a>> {
        grow(buffer, self.size);
        let mut received = Received {
            bytes: self.socket.receive_one(&mut buffer[..self.size])?,
            ..Received::default()
        };
        self.take(&buffer[..received.bytes], &mut received);
        Ok(received)
    }

    fn decrypt(
        mut self,
        env: Env<'a>,
        session: &mut Session,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Received<'a>> {
        let mut received = Received::default();
        let end = match session.reading() {
            Err(end) => Some(end),
            Ok(reading) => {
                let partial = reading.partial().len();
                grow(buffer, partial + self.size);
                buffer[..partial].copy_from_slice(reading.partial());
                let free = &mut buffer[partial..partial + self.size];
                received.bytes = self.socket.receive_one(free)?;
                reading.decrypt(&mut buffer[..partial + received.bytes], |record| {
                    received.records += 1;
                    self.take(record, &mut received);
                })
            }
        };
        received.end = end.map(|end| ended(env, end));
        Ok(received)
    }

    /// Takes what is left without TLS.
    fn take(&mut self, bytes: &[u8], received: &mut Received) {
        let (decoder, payload) = (&mut *self.decoder, &mut *self.payload);
        let mut take = |mut part: &[u8]| {
            if payload.is_empty() {
                received.body += decoder.take_body(&mut part);
            }
            payload.extend_from_slice(part);
        };
        match self.websocket {
            None => take(bytes),
            Some(websocket) => received.frames += websocket.decode(bytes, take),
        }
    }
}

impl<'a> Call<'a, '_> {
    /// Reads once, and decodes the payload of what was read. `None` if there is nothing to read.
    pub(super) fn read_layers(&mut self, size: usize) -> Flow<'a, Option<Read>> {
        let size = size.min(READ_MAX);
        let received = match self.receive(size) {
            Ok(Some(received)) => received,
            Ok(None) => {
                self.flush()?;
                return Break(Next::ReadDirty);
            }
            Err(error) => return self.fail(&error),
        };
        let read = self.decode_payload(&received, size)?;
        match received.end {
            Some(end) => Break(self.stop(end)),
            None if received.bytes == 0 => {
                let end = self.end_of_stream();
                Break(self.stop(end))
            }
            None => Continue(Some(read)),
        }
    }

    /// Reads, decrypts and unwraps. `None` if the sender has the TLS session, which is locked for no longer than
    /// that, and this thread may not wait for it.
    fn receive(&mut self, size: usize) -> io::Result<Option<Received<'a>>> {
        let state = &mut *self.state;
        let transport = state.transport.as_ref().ok_or(ErrorKind::NotConnected)?;
        let websocket = state.layers.websocket.as_deref();
        if let Some(end) = websocket.and_then(WebSocket::end) {
            let end = Some(end);
            return Ok(Some(Received {
                end,
                ..Received::default()
            }));
        }
        let Buffers { read, payload } = &mut *self.buffers;
        payload.clear();
        let reading = Reading {
            socket: &transport.socket,
            size,
            websocket,
            decoder: state.session.decoder(),
            payload,
        };
        let mut received = match &state.layers.tls {
            None => reading.receive(read)?,
            Some(tls) => {
                let Some(mut session) = tls.lock(self.may_wait) else {
                    return Ok(None);
                };
                let received = reading.decrypt(self.env, &mut session, read);
                self.owes |= session.owes();
                tls::unlock(session);
                received?
            }
        };
        if let Some(websocket) = websocket {
            self.owes |= websocket.owes();
            received.end = websocket.end().or(received.end);
        }
        Ok(Some(received))
    }

    fn decode_payload(&mut self, received: &Received, size: usize) -> Flow<'a, Read> {
        let payload = std::mem::take(&mut self.buffers.payload);
        let read = Read {
            body: received.body,
            beyond: payload.len(),
            is_full: received.bytes == size,
        };
        let mut flow = Continue(());
        if received.bytes > 0 {
            let before = self.state.budget.work();
            if received.records > 0 {
                self.state
                    .budget
                    .decrypted(received.bytes, received.records);
            }
            self.state.budget.unframed(received.frames);
            // Bytes of an incomplete record count too: the peer is not silent.
            self.has_read(read.bytes());
            flow = self.decode(&payload);
            self.state.budget.learn(before, received.bytes);
        }
        self.buffers.payload = payload;
        flow.map_continue(|()| read)
    }

    /// The socket has ended, and nothing has said so before.
    fn end_of_stream(&self) -> Next<'a> {
        match self.state.layers.tls {
            Some(_) => Next::fail(atoms::closed(), Failure::Truncated),
            None => Next::stop(atoms::closed()),
        }
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
