//! Reading from a socket: a lot on dirty threads, little on ordinary schedulers.

use super::{Flow, Slice};
use crate::atoms;
use crate::budget::{SLICE_TIME, SMALL_READ};
use crate::parse_state::is_small;
use crate::socket::Read;
use crate::state::{Transport, now};
use crate::step::Step;
use rustler::Atom;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;
use stomp::Turn;

/// After a body that lacks this much, another large one is likely. Only its head is read along, so that
/// its body can be read directly into its binary.
const LARGE_BODY: usize = 64 * 1024;
const BEYOND_LARGE_BODY: usize = 4 * 1024;

/// A slice that finds the socket empty waits this long for more, because going to sleep and being
/// woken takes as long. Without it, a peer that sends all the time, a little slower than we read,
/// would cost that at every turn.
const LINGER: Duration = Duration::from_micros(100);

/// A slice that reads from a socket.
pub struct Reader<'r, 'a, 's> {
    pub slice: &'r mut Slice<'a, 's>,
    pub transport: &'r Transport,
    pub buffers: &'r mut Buffers,
    /// When the call began.
    pub started: Duration,
    /// Whether the thread may wait for a lock.
    pub may_wait: bool,
}

/// A thread's buffers. They grow to the largest read.
#[derive(Default)]
pub struct Buffers {
    pub read: Vec<u8>,
    /// What was read from a TLS connection, decrypted.
    pub plaintext: Vec<u8>,
}

/// Why reading stopped.
enum Pause {
    /// The budget of this turn is spent.
    Spent,
    /// There is nothing to read at the moment.
    Empty,
}

impl<'a> Reader<'_, 'a, '_> {
    /// Reads and delivers on a dirty thread.
    pub fn receive(&mut self) -> Step<'a> {
        self.may_wait = true;
        self.slice.budget.start_slice();
        self.read_and_linger()
            .break_value()
            .unwrap_or_else(|| self.slice.more())
    }

    fn read_and_linger(&mut self) -> Flow<'a> {
        self.slice.decode_undecoded()?;
        while let Pause::Empty = self.read_all()? {
            self.slice.flush()?;
            if self.is_over() {
                break;
            }
            let burst = self.slice.budget.is_burst();
            self.slice.budget.end_burst();
            if !burst || !self.transport.socket.await_readable(LINGER) {
                return Break(self.slice.wait());
            }
        }
        Continue(())
    }

    /// Reads and delivers on an ordinary scheduler: as much as it may be held for, if many
    /// connections have a lot to read, otherwise little.
    pub fn receive_inline(&mut self) -> Step<'a> {
        if let Some(place) = &mut self.slice.place
            && place.is_queued(self.slice.env)
        {
            return Step::Turn(Turn::Queued);
        }
        // A large partial frame is completed on a dirty thread in a single slice, so it needs no turn.
        if !is_small(self.slice.session.decoder()) {
            return Step::Turn(Turn::Alone);
        }
        let before = self.slice.budget.work();
        self.slice.budget.start_inline();
        let flow = match &self.slice.place {
            Some(place) if place.is_holding() => self.read_much(),
            _ => self.read_little(),
        };
        let timeslice = self.slice.budget.timeslice(before);
        rustler::schedule::consume_timeslice(self.slice.env, timeslice);
        flow.break_value().unwrap_or_else(|| self.slice.more())
    }

    fn read_much(&mut self) -> Flow<'a> {
        self.slice.decode_undecoded()?;
        match self.read_all()? {
            Pause::Spent => Continue(()),
            Pause::Empty => Break(self.slice.wait()),
        }
    }

    fn read_little(&mut self) -> Flow<'a> {
        self.slice.decode_undecoded()?;
        match self.read(SMALL_READ)? {
            Some(Read { is_full: true, .. }) => return Continue(()),
            Some(_) if self.slice.delivery.has_frames() => self.slice.budget.expect_more(),
            _ => {}
        }
        if !self.slice.budget.look() {
            return Break(self.slice.wait());
        }
        self.slice.flush()?;
        self.slice.budget.end_burst();
        Break(Step::Look)
    }

    /// Whether the call has taken too long for one turn.
    fn is_over(&self) -> bool {
        now() - self.started >= SLICE_TIME
    }

    /// Reads until the budget is spent or the socket is empty.
    fn read_all(&mut self) -> Flow<'a, Pause> {
        while !self.slice.budget.is_spent() && !self.is_over() {
            match self.read(self.slice.budget.read_size())? {
                Some(Read { is_full: true, .. }) => {}
                _ => return Continue(Pause::Empty),
            }
        }
        Continue(Pause::Spent)
    }

    /// Reads once, into a buffer of `size` bytes, and decodes what was read. `None` if there is
    /// nothing to read.
    fn read(&mut self, size: usize) -> Flow<'a, Option<Read>> {
        if let Some(tls) = &self.transport.tls {
            return self.read_records(tls, size);
        }
        match self.receive_once(size) {
            Ok(read) if read.bytes() == 0 => Break(self.slice.stop(Step::stop(atoms::closed()))),
            Ok(read) => {
                let before = self.slice.budget.work();
                self.slice.has_read(read.bytes());
                let flow = self.slice.decode(&self.buffers.read[..read.beyond]);
                // Learn even if the turn ends here: dense frames are what ends a turn early.
                self.slice.budget.learn(before, read.bytes());
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
            _ => Break(self.slice.stop(Step::stop(self.reason(error)))),
        }
    }

    /// Reads into the body that is being collected, and then into the buffer.
    fn receive_once(&mut self, size: usize) -> io::Result<Read> {
        grow(&mut self.buffers.read, size);
        let most = self.slice.budget.left().max(size);
        let decoder = self.slice.session.decoder();
        let body = decoder.wanting_body();
        let beyond = match &body {
            Some((_, missing)) if *missing >= LARGE_BODY => BEYOND_LARGE_BODY,
            _ => size,
        };
        let read = self
            .transport
            .socket
            .receive(body, most, &mut self.buffers.read[..beyond])?;
        decoder.filled(read.body);
        Ok(read)
    }

    /// The reason that `gen_tcp` would give for `error`.
    fn reason(&self, error: &io::Error) -> Atom {
        match error.kind() {
            ErrorKind::ConnectionReset if self.slice.show_econnreset => atoms::econnreset(),
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
