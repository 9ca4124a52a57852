//! A call: what a connection does when its process calls it.
//!
//! Each layer of a call uses the next one: [`read`] and [`layers`] get bytes from the socket, [`decode`] makes
//! frames of them, and [`Delivery`] sends these. A function that finds out what comes next breaks the flow with
//! it.

mod decode;
mod layers;
mod read;
mod state;

pub use read::Buffers;
pub use state::State;

use crate::atoms;
use crate::batches::Batches;
use crate::clock::now;
use crate::delivery::{Address, Delivery, Flushed};
use crate::inflating::Spare;
use crate::next::{Failure, Next};
use crate::terms::Caller;
use crate::turn;
use pacing::Pace;
use rustler::{Atom, Encoder, Env, Term};
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;

/// Goes on, or ends the call with what comes next.
pub type Flow<'a, T = ()> = ControlFlow<Next<'a>, T>;

/// What calls need and connections do not keep: one for each thread.
#[derive(Default)]
pub struct Scratch {
    buffers: Buffers,
    batches: Batches,
    inflater: Spare,
}

/// One call of a connection.
pub struct Call<'a, 's> {
    env: Env<'a>,
    state: &'s mut State,
    delivery: Delivery<'a, 's>,
    buffers: &'s mut Buffers,
    started: Duration,
    /// Whether it may wait for the lock of a TLS session: it reads on a dirty thread.
    may_wait: bool,
    /// Whether reading has made TLS records, or a WebSocket frame, that the sender has to send.
    owes: bool,
}

impl<'a, 's> Call<'a, 's> {
    pub fn new(
        caller: Caller<'a>,
        state: &'s mut State,
        to: Address<'a>,
        scratch: &'s mut Scratch,
    ) -> Self {
        Call {
            env: caller.env(),
            state,
            delivery: Delivery::new(caller, to, &mut scratch.batches, &mut scratch.inflater),
            buffers: &mut scratch.buffers,
            started: now(),
            may_wait: false,
            owes: false,
        }
    }

    /// Ends the connection for a reason that was found elsewhere. What has been read is decoded and
    /// delivered first, even if a recipient is behind.
    pub fn disconnect(&mut self, reason: Atom) -> Next<'a> {
        if reason == atoms::no_listener() {
            return self.end_without_listener();
        }
        self.decode_rest();
        self.stop(Next::stop(reason))
    }

    /// Ends the reading: nobody listens.
    fn end_without_listener(&mut self) -> Next<'a> {
        self.stop(Next::no_listener())
    }

    /// Ends the connection because of a bug of ours.
    pub fn panicked(&mut self) -> Next<'a> {
        self.stop(Next::fail(atoms::parse_error(), Failure::Panic))
    }

    /// Delivers what was decoded before the end.
    fn stop(&mut self, mut end: Next<'a>) -> Next<'a> {
        self.delivery.flush(&mut self.state.recipients);
        let session = &mut self.state.session;
        let awaits_first = session.awaits_first();
        if let Some(message) = session.decoder().unfinished_error() {
            let message = message.to_vec();
            end.explain(match awaits_first {
                true => Failure::Refused(message, Vec::new()),
                false => Failure::UnfinishedError(message),
            });
        }
        end
    }

    /// There is nothing to read. If the peer is not late, waits until it would be.
    fn wait(&mut self) -> Next<'a> {
        if let Break(next) = self.flush() {
            return next;
        }
        self.rest();
        self.state.session.decoder().release_memory();
        self.state.stats.waits.add(1);
        if let Some(end) = self.websocket_end() {
            return self.stop(end);
        }
        match self.time_left() {
            Some(Duration::ZERO) => self.stop(Next::stop(atoms::timeout())),
            left => Next::AwaitInput(left),
        }
    }

    fn websocket_end(&self) -> Option<Next<'a>> {
        self.state.layers.websocket.as_ref()?.end()
    }

    /// Gives back the grants and the turn.
    fn rest(&mut self) {
        self.state.recipients.rest();
        self.state.budget.end_burst();
        self.leave_turn();
    }

    fn leave_turn(&mut self) {
        if let Some(place) = &mut self.state.place {
            place.leave(self.env);
        }
    }

    /// There may be more to read. Before CONNECTED, heart-beats do not postpone the time-out. After it,
    /// any byte does.
    fn more(&mut self) -> Next<'a> {
        if let Break(next) = self.flush() {
            return next;
        }
        if self.state.session.awaits_first() && self.time_left() == Some(Duration::ZERO) {
            return self.stop(Next::stop(atoms::timeout()));
        }
        self.next_turn()
    }

    /// A connection that has a lot to read takes turns with others.
    fn next_turn(&mut self) -> Next<'a> {
        let burst = self.state.budget.is_burst();
        let crowding = turn::is_crowded() && self.state.budget.is_crowding();
        match &mut self.state.place {
            Some(place) if burst || crowding => place.poll(self.env).into(),
            None if burst => Next::ReadDirty,
            _ => {
                self.leave_turn();
                Next::ReadInline
            }
        }
    }

    /// The time until the deadline, if there is one.
    fn time_left(&self) -> Option<Duration> {
        let deadline = self.state.session.deadline()?;
        Some(deadline.saturating_sub(now()))
    }

    /// Delivers what is enough for a message. Ends the call if its budget is overrun.
    fn deliver_enough(&mut self) -> Flow<'a> {
        if self.state.budget.is_overrun() {
            self.flush()?;
            return Break(self.next_turn());
        }
        let flushed = self.delivery.flush_enough(&mut self.state.recipients);
        self.check(flushed)
    }

    /// Delivers what was decoded.
    fn flush(&mut self) -> Flow<'a> {
        let flushed = self.delivery.flush(&mut self.state.recipients);
        self.check(flushed)
    }

    /// Ends the call if the listener is gone, or if a recipient may be behind.
    fn check(&mut self, flushed: Flushed) -> Flow<'a> {
        match flushed {
            Flushed::Done => Continue(()),
            // The rest is for others.
            Flushed::NoListener if self.state.recipients.are_last() => Continue(()),
            Flushed::NoListener => Break(self.end_without_listener()),
            Flushed::NoCaller => Break(Next::stop(atoms::closed())),
            Flushed::Full => {
                self.leave_turn();
                Break(self.poll_room())
            }
        }
    }

    /// A recipient may be too far behind: whether to look at its mailbox.
    pub fn poll_room(&mut self) -> Next<'a> {
        let pace = self.state.recipients.poll(self.env);
        self.go_on_at(pace)
    }

    /// There are `queued` messages in the mailbox of the process that it waits for.
    pub fn looked(&mut self, queued: usize) -> Next<'a> {
        let pace = self.state.recipients.looked(self.env, queued);
        self.go_on_at(pace)
    }

    fn go_on_at(&mut self, pace: Pace) -> Next<'a> {
        let state = &mut *self.state;
        match (pace, state.recipients.awaited_pid()) {
            (Pace::Look, Some(pid)) => Next::Look(pid),
            (Pace::Wait(time), _) => {
                if !std::mem::replace(&mut state.is_paused, true) {
                    state.stats.pauses.add(1);
                    state.recipients.set_paused(true);
                }
                Next::AwaitRoom(time)
            }
            (Pace::Go | Pace::Look, _) => {
                if std::mem::take(&mut state.is_paused) {
                    state.recipients.set_paused(false);
                }
                // The peer was not silent while nobody listened to it.
                state.session.touch(now());
                Next::ReadInline
            }
        }
    }

    /// The answer: `next`, `{:relay, casts, next}` or `{:owed, ...}`. No frame is left: whoever breaks the flow
    /// without delivering loses none.
    pub fn answer(mut self, next: &Next<'a>) -> Term<'a> {
        self.delivery.flush(&mut self.state.recipients);
        let answer = self.delivery.answer(next.encode(self.env));
        match self.owes {
            true => (atoms::owed(), answer).encode(self.env),
            false => answer,
        }
    }
}
