//! Reading from a socket: in slices on dirty threads, or once and little on an ordinary scheduler.

use super::{BURST, INLINE_WORK, State, now};
use crate::atoms;
use crate::busy::Busy;
use crate::delivery::{Delivery, Step};
use crate::parse_state::is_small;
use crate::socket::Socket;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// What a thread reads into. A read wakes the peer when it has made room, so fewer and larger ones
/// leave more of the processor to both. Much more than this would not stay in the second-level
/// cache until it is decoded.
const RECEIVE_BUFFER: usize = 512 * 1024;

/// Less than this is not read at once, because the system call would cost more than the reading.
const RECEIVE_BUFFER_MIN: usize = 32 * 1024;

/// A body that lacks this much is likely to be followed by another of its kind, which is to be read
/// into its own place as well. So no more is read along with it than the next frame's head.
const LARGE_BODY: usize = 64 * 1024;
const BEYOND_LARGE_BODY: usize = 4 * 1024;

/// A slice that finds the socket empty waits this long for more, because going to sleep and being
/// woken takes as long. A peer that sends all the time, and is a little slower than the reading,
/// then does not cost that at every turn.
const LINGER: Duration = Duration::from_micros(100);

/// How much is read at once on an ordinary scheduler.
const INLINE_OCTETS: usize = 16 * 1024;

/// How often a connection that has just delivered a frame or two is looked at again before it is
/// waited for, each time after everybody else had a turn. What a frame brings about often brings
/// the next one, and on a busy VM the thread that would tell of it has to get a processor first.
/// More often gains next to nothing; each time takes about a microsecond.
const LOOKS: u8 = 8;

/// A slice ends after this time, however little it has done: a peer that sends as fast as single
/// octets are read must not keep a thread either.
const SLICE_TIME: Duration = Duration::from_millis(5);

/// The first `size` octets of a thread's buffer, which has grown to what its thread reads at once.
fn room(buffer: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    &mut buffer[..size]
}

impl State {
    /// Reads and delivers: a slice.
    pub fn receive<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Step<'a>> {
        self.enough = self.work + Busy::share();
        let step = self.slice(socket, delivery, buffer);
        if matches!(step, Ok(Step::Again)) {
            self.busy.get_or_insert_with(Busy::new);
        }
        step
    }

    fn slice<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Step<'a>> {
        if let Some(step) = self.decode_pending(delivery) {
            return Ok(step);
        }
        let started = now();
        while self.work < self.enough && now() - started < SLICE_TIME {
            let before = self.work;
            let buffer = room(buffer, self.affordable());
            match self.read(socket, buffer, usize::MAX) {
                Ok((0, _)) => return Ok(self.end(delivery, atoms::closed())),
                Ok((received, beyond)) => {
                    self.account(received);
                    if let Some(step) = self.decode(&buffer[..beyond], delivery) {
                        return Ok(step);
                    }
                    self.density = (self.work - before) / received;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Some(step) = self.dry(socket, delivery) {
                        return Ok(step);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.more(delivery))
    }

    /// How much to read, so that the budget does for it: small frames are several times their
    /// octets' work, and what is left over would have to be copied.
    fn affordable(&self) -> usize {
        let octets = (self.enough - self.work) / self.density.max(1);
        octets.clamp(RECEIVE_BUFFER_MIN, RECEIVE_BUFFER)
    }

    /// There is nothing to read at the moment. None if there is again.
    fn dry<'a>(&mut self, socket: &Socket, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        if let Some(step) = self.flush(delivery) {
            return Some(step);
        }
        let streak = std::mem::take(&mut self.streak);
        if streak >= BURST && socket.await_readable(LINGER) {
            return None;
        }
        Some(self.wait(delivery))
    }

    /// Reads once and little, on an ordinary scheduler.
    pub fn receive_inline<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Step<'a>> {
        if !is_small(self.session.decoder()) {
            return Ok(Step::Again);
        }
        self.enough = self.work + INLINE_WORK;
        if let Some(step) = self.decode_pending(delivery) {
            return Ok(step);
        }
        let buffer = room(buffer, INLINE_OCTETS);
        match self.read(socket, buffer, INLINE_OCTETS) {
            Ok((0, _)) => Ok(self.end(delivery, atoms::closed())),
            Ok((received, beyond)) => {
                self.account(received);
                if let Some(step) = self.decode(&buffer[..beyond], delivery) {
                    return Ok(step);
                }
                if received >= INLINE_OCTETS {
                    return Ok(self.more(delivery));
                }
                self.streak = 0;
                if delivery.pushed() > 0 {
                    self.looks = LOOKS;
                }
                Ok(self.look_or_wait(delivery))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Step::Yield),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(self.look_or_wait(delivery)),
            Err(error) => Err(error),
        }
    }

    fn look_or_wait<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        if self.looks == 0 {
            return self.wait(delivery);
        }
        self.looks -= 1;
        self.flush(delivery).unwrap_or(Step::Yield)
    }

    /// Reads once: into the body that is being collected, `most` octets of it, and if that is all it
    /// lacks into `buffer`. How many octets in all, and how many of them are in `buffer`.
    fn read(
        &mut self,
        socket: &Socket,
        buffer: &mut [u8],
        most: usize,
    ) -> io::Result<(usize, usize)> {
        let decoder = self.session.decoder();
        let body = decoder.wanting_body();
        let beyond = match &body {
            Some((_, missing)) if *missing >= LARGE_BODY => BEYOND_LARGE_BODY.min(buffer.len()),
            _ => buffer.len(),
        };
        let (filled, beyond) = socket.receive(body, most, &mut buffer[..beyond])?;
        decoder.filled(filled);
        Ok((filled + beyond, beyond))
    }
}
