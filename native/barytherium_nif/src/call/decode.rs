//! Bytes to frames, as far as the budget goes.

use super::{Call, Flow};
use crate::atoms;
use crate::clock::now;
use crate::next::{Failure, Next};
use crate::parse_state::is_small;
use inflate::Progress;
use std::ops::ControlFlow::{Break, Continue};
use stomp::Event;

/// Bytes of an ERROR's first line that are of use in a log.
const LONGEST_LINE: usize = 500;

impl<'a> Call<'a, '_> {
    /// Takes bytes that were read elsewhere, on a dirty thread. With none, goes on with those that were
    /// taken before, and sees whether the peer is late.
    pub fn feed_dirty(&mut self, bytes: &[u8]) -> Next<'a> {
        self.state.stats.slices.add(1);
        self.state.budget.start_dirty();
        self.unwrap(bytes, Self::take)
    }

    /// Takes bytes that were read elsewhere, on an ordinary scheduler. If they may complete a large
    /// frame, they are decoded in the next call.
    pub fn feed_inline(&mut self, bytes: &[u8]) -> Next<'a> {
        self.state.stats.slices.add(1);
        self.state.budget.start_inline();
        self.unwrap(bytes, |call, bytes| {
            if is_small(call.state.session.decoder()) {
                return call.take(bytes);
            }
            call.state.undecoded.append(bytes);
            Next::ReadDirty
        })
    }

    /// Accounts for `bytes`, and hands them, or if they are of a WebSocket the payload in them, to `take`.
    fn unwrap(
        &mut self,
        bytes: &[u8],
        take: impl FnOnce(&mut Self, &[u8]) -> Next<'a>,
    ) -> Next<'a> {
        let Some(websocket) = &self.state.layers.websocket else {
            if !bytes.is_empty() {
                self.has_read(bytes.len());
            }
            return take(self, bytes);
        };
        let mut payload = std::mem::take(&mut self.buffers.payload);
        payload.clear();
        let frames = websocket.decode(bytes, |part| payload.extend_from_slice(part));
        self.owes |= websocket.owes();
        self.state.budget.unframed(frames);
        // Without payload the peer is not silent either.
        if !bytes.is_empty() {
            self.has_read(payload.len());
        }
        let next = take(self, &payload);
        self.buffers.payload = payload;
        next
    }

    fn take(&mut self, bytes: &[u8]) -> Next<'a> {
        match self.decode_undecoded() {
            Break(next) => {
                self.state.undecoded.append(bytes);
                next
            }
            Continue(()) => self
                .decode(bytes)
                .break_value()
                .unwrap_or_else(|| self.wait()),
        }
    }

    /// Accounts for bytes that were read.
    pub(super) fn has_read(&mut self, bytes: usize) {
        let now = now();
        self.state.session.touch(now);
        self.state.budget.read(bytes);
        self.state.stats.has_read(bytes, now);
        self.state.recipients.read_at = now;
    }

    /// Decodes what an earlier call has left over.
    pub(super) fn decode_undecoded(&mut self) -> Flow<'a> {
        let mut undecoded = std::mem::take(&mut self.state.undecoded);
        let mut input = undecoded.bytes();
        let flow = self.decode_input(&mut input);
        let left = input.len();
        if left > 0 {
            undecoded.keep_last(left);
            self.state.undecoded = undecoded;
        }
        flow
    }

    /// The connection ends: decodes all that earlier calls have left over, whoever is behind.
    pub(super) fn decode_rest(&mut self) {
        self.state.stats.slices.add(1);
        self.state.budget.start_last();
        self.state.recipients.end();
        // CONNECTED ends a pass, and there may be more behind it.
        while let Break(Next::ConnectedFrame(_)) = self.decode_undecoded() {}
    }

    /// Decodes bytes that were just read. Nothing may be left over of what was read before.
    pub(super) fn decode(&mut self, mut bytes: &[u8]) -> Flow<'a> {
        let flow = self.decode_input(&mut bytes);
        self.state.undecoded.append(bytes);
        flow
    }

    fn decode_input(&mut self, input: &mut &[u8]) -> Flow<'a> {
        let started = now();
        let flow = self.decode_frames(input);
        self.state.stats.parsed(now() - started);
        flow
    }

    /// Goes on with a large body that is being inflated, and adds its frame when it is done. Ends the call if its
    /// budget is overrun before that, or if its recipient has no room for it.
    fn inflate(&mut self) -> Flow<'a> {
        while let Some(mut inflating) = self.state.inflating.take() {
            if self.state.budget.is_overrun() {
                self.state.inflating = Some(inflating);
                self.flush()?;
                return Break(self.next_turn());
            }
            if !inflating.has_room(&mut self.state.recipients) {
                self.state.inflating = Some(inflating);
                self.flush()?;
                self.state.inflating.iter_mut().for_each(|it| it.waits());
                self.leave_turn();
                return Break(self.poll_room());
            }
            let failure = match inflating.advance(&mut self.state.budget) {
                Ok(Progress::More) => {
                    self.state.inflating = Some(inflating);
                    continue;
                }
                Ok(Progress::Done) => None,
                Err(failure) => Some(failure),
            };
            let recipients = &mut self.state.recipients;
            self.delivery.push_inflated(recipients, *inflating, failure);
            self.deliver_enough()?;
        }
        Continue(())
    }

    fn decode_frames(&mut self, input: &mut &[u8]) -> Flow<'a> {
        self.inflate()?;
        loop {
            let before = input.len();
            let recipients = &mut self.state.recipients;
            match self.state.session.next(input) {
                Ok(None) => return Continue(()),
                Ok(Some(Event::Frame(frame))) => {
                    let (size, budget) = (before - input.len(), &mut self.state.budget);
                    let sizes = (size, input.len());
                    self.state.inflating = self.delivery.push(recipients, budget, frame, sizes);
                    self.inflate()?;
                    self.deliver_enough()?;
                }
                Ok(Some(Event::Connected(frame))) => {
                    let frame = self.delivery.connected(recipients, frame);
                    self.leave_turn();
                    return Break(Next::ConnectedFrame(frame));
                }
                Ok(Some(Event::Closed(frame))) => {
                    self.delivery.push_last(recipients, frame);
                    return Break(self.stop(Next::stop(atoms::closed())));
                }
                Ok(Some(Event::Refused(frame))) => {
                    let message = frame.header(b"message").unwrap_or_default().into_owned();
                    let line = first_line(frame.body.as_ref()).to_vec();
                    self.delivery.push_last(recipients, frame);
                    let refused = Next::fail(atoms::closed(), Failure::Refused(message, line));
                    return Break(self.stop(refused));
                }
                Err(error) => {
                    let failed = Next::fail(atoms::parse_error(), Failure::Parse(error));
                    return Break(self.stop(failed));
                }
            }
        }
    }
}

/// Some brokers send a stack trace.
fn first_line(body: &[u8]) -> &[u8] {
    let line = body.split(|&byte| byte == b'\n').next().unwrap_or_default();
    &line[..line.len().min(LONGEST_LINE)]
}
