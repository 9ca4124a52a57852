//! Reading from a socket: a lot on dirty threads, little on ordinary schedulers.

use super::{Call, Flow};
use crate::atoms;
use crate::budget::{DIRTY_TIME, SMALL_READ};
use crate::clock::now;
use crate::next::Next;
use crate::parse_state::is_small;
use crate::socket::Read;
use rustler::{Atom, Error, NifResult, Reference};
use std::io::{self, ErrorKind};
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

/// After a body that lacks this much, another large one is likely. Only its head is read along, so that
/// its body can be read directly into its binary.
const LARGE_BODY: usize = 64 * 1024;
const BEYOND_LARGE_BODY: usize = 4 * 1024;

/// A call that finds the socket empty waits this long for more, because going to sleep and being
/// woken takes as long. Without it, a peer that sends all the time, a little slower than we read,
/// would cost that at every turn.
const LINGER: Duration = Duration::from_micros(100);

/// A thread's buffers. They grow to the largest read.
#[derive(Default)]
pub struct Buffers {
    pub(super) read: Vec<u8>,
    /// What was in it, for a connection with TLS or WebSocket.
    pub(super) payload: Vec<u8>,
}

/// Why reading stopped.
enum Pause {
    /// The budget of this turn is spent.
    Spent,
    /// There is nothing to read at the moment.
    Empty,
}

impl<'a> Call<'a, '_> {
    /// Reads and delivers on a dirty thread. `reference` is what the message names that comes when there is
    /// something to read.
    pub fn read_dirty(&mut self, reference: Reference) -> NifResult<Next<'a>> {
        self.may_wait = true;
        self.with_socket(reference, |call| {
            call.state.budget.start_dirty();
            call.read_and_linger()
                .break_value()
                .unwrap_or_else(|| call.more())
        })
    }

    /// Reads and delivers on an ordinary scheduler: as much as it may be held for, if many
    /// connections have a lot to read, otherwise little.
    pub fn read_inline(&mut self, reference: Reference) -> NifResult<Next<'a>> {
        self.with_socket(reference, Self::read_in_turn)
    }

    fn with_socket(
        &mut self,
        reference: Reference,
        read: impl FnOnce(&mut Self) -> Next<'a>,
    ) -> NifResult<Next<'a>> {
        let transport = self.state.transport.as_ref().ok_or(Error::BadArg)?;
        self.state.stats.slices.add(1);
        transport.socket.settle(self.env);
        let next = read(self);
        if let (Next::AwaitInput(_), Some(transport)) = (&next, &self.state.transport)
            && transport.socket.notify(self.env, reference).is_err()
        {
            // The descriptor is above what the VM can poll.
            return Ok(self.stop(Next::stop(atoms::emfile())));
        }
        Ok(next)
    }

    fn read_and_linger(&mut self) -> Flow<'a> {
        self.decode_undecoded()?;
        while let Pause::Empty = self.read_all()? {
            self.flush()?;
            if self.is_over() {
                break;
            }
            let burst = self.state.budget.is_burst();
            self.state.budget.end_burst();
            if !burst || !self.linger() {
                return Break(self.wait());
            }
        }
        Continue(())
    }

    /// Waits for a moment. Whether there is something to read.
    fn linger(&self) -> bool {
        let transport = self.state.transport.as_ref();
        transport.is_some_and(|transport| transport.socket.await_readable(LINGER))
    }

    fn read_in_turn(&mut self) -> Next<'a> {
        if let Some(place) = &mut self.state.place
            && place.is_queued(self.env)
        {
            return Next::AwaitTurn;
        }
        // A large partial frame is completed on a dirty thread in a single call, so it needs no turn.
        if !is_small(self.state.session.decoder()) {
            return Next::ReadDirty;
        }
        let before = self.state.budget.work();
        self.state.budget.start_inline();
        let flow = match &self.state.place {
            Some(place) if place.is_holding() => self.read_much(),
            _ => self.read_little(),
        };
        let timeslice = self.state.budget.timeslice(before);
        rustler::schedule::consume_timeslice(self.env, timeslice);
        flow.break_value().unwrap_or_else(|| self.more())
    }

    fn read_much(&mut self) -> Flow<'a> {
        self.decode_undecoded()?;
        match self.read_all()? {
            Pause::Spent => Continue(()),
            Pause::Empty => Break(self.wait()),
        }
    }

    fn read_little(&mut self) -> Flow<'a> {
        self.decode_undecoded()?;
        match self.read(SMALL_READ)? {
            Some(Read { is_full: true, .. }) => return Continue(()),
            Some(_) if self.delivery.has_frames() => self.state.budget.expect_more(),
            _ => {}
        }
        if !self.state.budget.look() {
            return Break(self.wait());
        }
        self.flush()?;
        self.state.budget.end_burst();
        Break(Next::ReadInline)
    }

    /// Whether the call has taken too long for one turn.
    fn is_over(&self) -> bool {
        now() - self.started >= DIRTY_TIME
    }

    /// Reads until the budget is spent or the socket is empty.
    fn read_all(&mut self) -> Flow<'a, Pause> {
        while !self.state.budget.is_spent() && !self.is_over() {
            match self.read(self.state.budget.read_size())? {
                Some(Read { is_full: true, .. }) => {}
                _ => return Continue(Pause::Empty),
            }
        }
        Continue(Pause::Spent)
    }

    /// Reads once, into a buffer of `size` bytes, and decodes what was read. `None` if there is
    /// nothing to read.
    fn read(&mut self, size: usize) -> Flow<'a, Option<Read>> {
        if !self.state.layers.is_empty() {
            return self.read_layers(size);
        }
        match self.receive_once(size) {
            Ok(read) if read.bytes() == 0 => Break(self.stop(Next::stop(atoms::closed()))),
            Ok(read) => {
                let before = self.state.budget.work();
                self.has_read(read.bytes());
                let buffer = std::mem::take(&mut self.buffers.read);
                let flow = self.decode(&buffer[..read.beyond]);
                self.buffers.read = buffer;
                // Learn even if the turn ends here: dense frames are what ends a turn early.
                self.state.budget.learn(before, read.bytes());
                flow?;
                Continue(Some(read))
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Ends the connection, unless there is only nothing to read.
    pub(super) fn fail(&mut self, error: &io::Error) -> Flow<'a, Option<Read>> {
        match error.kind() {
            // After an interruption there may be more. The VM will say so at once.
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Continue(None),
            _ => Break(self.stop(Next::stop(self.reason(error)))),
        }
    }

    /// Reads into the body that is being collected, and then into the buffer.
    fn receive_once(&mut self, size: usize) -> io::Result<Read> {
        let state = &mut *self.state;
        let transport = state.transport.as_ref().ok_or(ErrorKind::NotConnected)?;
        grow(&mut self.buffers.read, size);
        let most = state.budget.left().max(size);
        let decoder = state.session.decoder();
        let body = decoder.wanting_body();
        let beyond = match &body {
            Some((_, missing)) if *missing >= LARGE_BODY => BEYOND_LARGE_BODY,
            _ => size,
        };
        let buffer = &mut self.buffers.read[..beyond];
        let read = transport.socket.receive(body, most, buffer)?;
        decoder.filled(read.body);
        Ok(read)
    }

    fn shows_econnreset(&self) -> bool {
        let transport = self.state.transport.as_ref();
        transport.is_some_and(|transport| transport.show_econnreset)
    }

    /// The reason that `gen_tcp` would give for `error`.
    fn reason(&self, error: &io::Error) -> Atom {
        match error.kind() {
            ErrorKind::ConnectionReset if self.shows_econnreset() => atoms::econnreset(),
            ErrorKind::TimedOut => atoms::etimedout(),
            ErrorKind::HostUnreachable => atoms::ehostunreach(),
            ErrorKind::NetworkUnreachable => atoms::enetunreach(),
            ErrorKind::NetworkDown => atoms::enetdown(),
            _ => atoms::closed(),
        }
    }
}

pub(super) fn grow(buffer: &mut Vec<u8>, size: usize) {
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
}
