//! A slice: what a connection does in one call. Bytes are decoded and delivered, as far as the
//! budget goes. [`reader`] reads them from the socket.
//!
//! A function that finds out what the connection's process has to do next breaks the flow with that
//! [`Step`].

pub mod reader;
mod records;

use crate::atoms;
use crate::budget::Budget;
use crate::delivery::{Delivery, Flushed};
use crate::parse_state::is_small;
use crate::state::{Undecoded, now};
use crate::stats::Stats;
use crate::step::{Failure, Step};
use crate::terms::BinaryBody;
use crate::turn::{self, Place};
use rustler::{Atom, Env};

/// Bytes of an ERROR's first line that are of use in a log.
const LONGEST_LINE: usize = 500;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;
use stomp::{Event, Session, Turn};

/// Goes on, or ends the slice with a step.
pub type Flow<'a, T = ()> = ControlFlow<Step<'a>, T>;

/// One call's view of a connection.
pub struct Slice<'a, 's> {
    pub env: Env<'a>,
    pub session: &'s mut Session<BinaryBody>,
    pub undecoded: &'s mut Undecoded,
    pub budget: &'s mut Budget,
    pub place: Option<&'s mut Place>,
    pub stats: &'s Stats,
    pub delivery: Delivery<'a, 's>,
    pub show_econnreset: bool,
    /// Whether reading has made TLS records that the sender has to send.
    pub owes: bool,
}

impl<'a> Slice<'a, '_> {
    /// Takes bytes that were read elsewhere, on a dirty thread. With none, goes on with those that were
    /// taken before, and sees whether the peer is late.
    pub fn feed(&mut self, bytes: &[u8]) -> Step<'a> {
        self.budget.start_slice();
        self.take(bytes)
    }

    /// Takes bytes that were read elsewhere, on an ordinary scheduler. If they may complete a large
    /// frame, they are decoded in the next call.
    pub fn feed_inline(&mut self, bytes: &[u8]) -> Step<'a> {
        self.budget.start_inline();
        if is_small(self.session.decoder()) {
            return self.take(bytes);
        }
        self.has_read_elsewhere(bytes);
        self.undecoded.append(bytes);
        Step::Turn(Turn::Alone)
    }

    fn take(&mut self, bytes: &[u8]) -> Step<'a> {
        self.has_read_elsewhere(bytes);
        match self.decode_undecoded() {
            Break(step) => {
                self.undecoded.append(bytes);
                step
            }
            Continue(()) => self
                .decode(bytes)
                .break_value()
                .unwrap_or_else(|| self.wait()),
        }
    }

    /// Ends the connection for a reason that was found elsewhere. What has been read is decoded and
    /// delivered first, even if the listener is behind.
    pub fn disconnect(&mut self, reason: Atom) -> Step<'a> {
        let undecoded = std::mem::take(self.undecoded);
        let mut input = undecoded.bytes();
        loop {
            match self.session.next(&mut input) {
                Ok(Some(Event::Frame(frame) | Event::Refused(frame) | Event::Closed(frame))) => {
                    self.delivery.push(frame, 0, 0);
                    self.delivery.flush_enough();
                }
                Ok(Some(Event::Connected(frame))) => _ = self.delivery.connected(frame),
                Ok(None) | Err(_) => return self.stop(Step::stop(reason)),
            }
        }
    }

    /// Ends the reading: nobody listens.
    pub fn end_without_listener(&mut self) -> Step<'a> {
        self.stop(Step::no_listener())
    }

    /// Delivers what was decoded before the end.
    pub fn stop(&mut self, mut end: Step<'a>) -> Step<'a> {
        self.delivery.flush();
        if let Some(message) = self.session.decoder().unfinished_error() {
            let message = message.to_vec();
            end.explain(match self.session.awaits_first() {
                true => Failure::Refused(message, Vec::new()),
                false => Failure::UnfinishedError(message),
            });
        }
        end
    }

    fn has_read_elsewhere(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.has_read(bytes.len());
        }
    }

    /// Accounts for bytes that were read.
    fn has_read(&mut self, bytes: usize) {
        let now = now();
        self.session.touch(now);
        self.budget.read(bytes);
        self.stats.read(bytes, now);
    }

    /// There is nothing to read. If the peer is not late, waits until it would be.
    fn wait(&mut self) -> Step<'a> {
        if let Break(step) = self.flush() {
            return step;
        }
        self.rest();
        self.session.decoder().release_memory();
        self.stats.waits.add(1);
        let left = match self.time_left() {
            None => return Step::Wait(None),
            Some(Duration::ZERO) => return self.stop(Step::stop(atoms::timeout())),
            Some(left) => left,
        };
        // Rounded up: a process that wakes too early would only wait again.
        let millis = left.as_nanos().div_ceil(1_000_000);
        Step::Wait(Some(millis.try_into().unwrap_or(u64::MAX)))
    }

    /// Gives back the grants and the turn.
    fn rest(&mut self) {
        self.delivery.rest();
        self.budget.end_burst();
        self.leave_turn();
    }

    fn leave_turn(&mut self) {
        if let Some(place) = &mut self.place {
            place.leave(self.env);
        }
    }

    /// There may be more to read. Before CONNECTED, heart-beats do not postpone the time-out. After it,
    /// any byte does.
    fn more(&mut self) -> Step<'a> {
        if let Break(step) = self.flush() {
            return step;
        }
        if self.session.awaits_first() && self.time_left() == Some(Duration::ZERO) {
            return self.stop(Step::stop(atoms::timeout()));
        }
        self.next_turn()
    }

    /// A connection that has a lot to read takes turns with others.
    fn next_turn(&mut self) -> Step<'a> {
        let burst = self.budget.is_burst();
        let crowding = turn::is_crowded() && self.budget.is_crowding();
        match &mut self.place {
            Some(place) if burst || crowding => Step::Turn(place.next(self.env)),
            None if burst => Step::Turn(Turn::Alone),
            _ => {
                self.leave_turn();
                Step::Look
            }
        }
    }

    /// The time until the deadline, if there is one.
    fn time_left(&self) -> Option<Duration> {
        let deadline = self.session.deadline()?;
        Some(deadline.saturating_sub(now()))
    }

    /// Decodes what an earlier slice has left over.
    fn decode_undecoded(&mut self) -> Flow<'a> {
        let mut undecoded = std::mem::take(self.undecoded);
        let mut input = undecoded.bytes();
        let flow = self.decode_input(&mut input);
        let left = input.len();
        if left > 0 {
            undecoded.keep_last(left);
            *self.undecoded = undecoded;
        }
        flow
    }

    /// Decodes bytes that were just read. Nothing may be left over of what was read before.
    fn decode(&mut self, mut bytes: &[u8]) -> Flow<'a> {
        let flow = self.decode_input(&mut bytes);
        self.undecoded.append(bytes);
        flow
    }

    fn decode_input(&mut self, input: &mut &[u8]) -> Flow<'a> {
        let started = now();
        let flow = self.decode_frames(input);
        self.stats.parsed(now() - started);
        flow
    }

    fn decode_frames(&mut self, input: &mut &[u8]) -> Flow<'a> {
        loop {
            let before = input.len();
            match self.session.next(input) {
                Ok(None) => return Continue(()),
                Ok(Some(Event::Frame(frame))) => {
                    let size = before - input.len();
                    let headers = frame.headers().len();
                    let bytes = self.delivery.push(frame, size, input.len());
                    self.budget.frame(headers, bytes);
                    self.deliver_enough()?;
                }
                Ok(Some(Event::Connected(frame))) => {
                    let frame = self.delivery.connected(frame);
                    self.leave_turn();
                    return Break(Step::Connected(frame));
                }
                Ok(Some(Event::Closed(frame))) => {
                    self.delivery.push(frame, 0, 0);
                    return Break(self.stop(Step::stop(atoms::closed())));
                }
                Ok(Some(Event::Refused(frame))) => {
                    let message = frame.header(b"message").unwrap_or_default().into_owned();
                    let line = first_line(frame.body.as_ref()).to_vec();
                    self.delivery.push(frame, 0, 0);
                    let refused = Step::fail(atoms::closed(), Failure::Refused(message, line));
                    return Break(self.stop(refused));
                }
                Err(error) => {
                    let failed = Step::fail(atoms::parse_error(), Failure::Parse(error));
                    return Break(self.stop(failed));
                }
            }
        }
    }

    /// Delivers what is enough for a message. Ends the slice if its budget is overrun.
    fn deliver_enough(&mut self) -> Flow<'a> {
        let overrun = self.budget.is_overrun();
        if overrun {
            self.flush()?;
            return Break(self.next_turn());
        }
        let flushed = self.delivery.flush_enough();
        self.check(flushed)
    }

    /// Delivers what was decoded.
    fn flush(&mut self) -> Flow<'a> {
        let flushed = self.delivery.flush();
        self.check(flushed)
    }

    /// Ends the slice if the listener is gone, or if a recipient may be behind.
    fn check(&mut self, flushed: Flushed) -> Flow<'a> {
        match flushed {
            Flushed::Done => Continue(()),
            Flushed::NoListener => Break(self.end_without_listener()),
            Flushed::NoCaller => Break(Step::stop(atoms::closed())),
            Flushed::Full => {
                self.leave_turn();
                Break(Step::Full)
            }
        }
    }
}

/// Some brokers send a stack trace.
fn first_line(body: &[u8]) -> &[u8] {
    let line = body.split(|&byte| byte == b'\n').next().unwrap_or_default();
    &line[..line.len().min(LONGEST_LINE)]
}
