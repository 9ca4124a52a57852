//! Back-pressure: what was sent to one consumer and may still lie in its queue, and who has to wait
//! until it has taken more.
//!
//! ```text
//!  sent ──► full ──► resume ──► Look ──► looked ──► Go       (there is room)
//!                      │                   │
//!                      │ others wait       ▼
//!                      └───────────────► Wait ──► woken ──► resume ──► Go
//! ```
//!
//! Asking for the length of a queue may cost more than sending to it. So everything that was sent
//! counts as still being there, and only when that is too much does somebody look.
//!
//! All connections that feed a consumer share one backlog. They are resumed in the order in which
//! they were paused, each with its part of the room. Only the first of those who wait looks at the
//! queue.

use std::collections::VecDeque;
use std::time::Duration;

/// Octets in a queue that are too many, whatever the mark is. The mark counts messages, and a
/// message holds up to 256 frames, or one body of any size.
const MAX_OCTETS: usize = 32 * 1024 * 1024;

/// A queue does not tell when it has become shorter. It is looked at after this time, and then
/// after twice as long, up to what a consumer works off in one go. A consumer that has taken nothing
/// for a second is not expected back that soon.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);
const STUCK_AFTER: Duration = Duration::from_secs(1);
const LONGEST_STUCK_PAUSE: Duration = Duration::from_millis(128);

/// After a pause of this length one message goes through, as a trial: what is in the queue may be
/// messages of others, which stay there for good and must not stop a feed for ever. There is no next
/// trial before this one has been taken: the queue is no longer than before.
const TRIAL_AFTER: Duration = Duration::from_millis(250);

/// A queue that others fill all the time never gets so short. If there are messages of theirs in it,
/// a trial is forgotten after this time, the next one after twice as long, and so on up to a minute:
/// the consumer may as well be one that takes nothing at all.
const TRIAL_EXPIRES: Duration = Duration::from_secs(1);
const TRIAL_EXPIRES_MAX: Duration = Duration::from_secs(64);

/// What a connection that has filled the queue is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Go on.
    Go,
    /// Look at the queue, and say how long it is, along with this: how many messages had been sent
    /// before.
    Look(u64),
    /// Wait to be woken. With a time: look again then.
    Wait(Option<Duration>),
}

/// What one consumer has not taken yet, as far as is known.
#[derive(Debug)]
pub struct Backlog<W> {
    /// The octets of each message that may still be in the queue, and of all of them.
    messages: VecDeque<usize>,
    octets: usize,
    /// Messages that were sent, in all.
    sent: u64,
    /// Connections that wait, the first paused first, and the messages that are too many for each.
    waiting: VecDeque<(W, usize)>,
    /// Connections that were resumed, and do not know it yet, with what they may send.
    resumed: Vec<(W, usize)>,
    /// Messages that resumed connections may still send.
    granted: usize,
    pause: Duration,
    /// When somebody was last allowed to send.
    progress: Duration,
    /// Until the last trial has been taken: the queue's length before it, and how many of its
    /// messages counted as ours.
    trial: Option<(usize, usize)>,
    trial_expires: Duration,
}

impl<W> Default for Backlog<W> {
    fn default() -> Self {
        Backlog {
            messages: VecDeque::new(),
            octets: 0,
            sent: 0,
            waiting: VecDeque::new(),
            resumed: Vec::new(),
            granted: 0,
            pause: SHORTEST_PAUSE,
            progress: Duration::ZERO,
            trial: None,
            trial_expires: TRIAL_EXPIRES,
        }
    }
}

impl<W: Copy + PartialEq> Backlog<W> {
    /// Accounts for a message of `octets`, which takes one from the sender's `grant`. Whether the
    /// sender, for which `mark` messages are too many, may send another one.
    pub fn sent(&mut self, octets: usize, grant: &mut usize, mark: usize) -> bool {
        self.messages.push_back(octets);
        self.octets += octets;
        self.sent += 1;
        if *grant > 0 {
            *grant -= 1;
            self.granted -= 1;
        }
        let room = *grant > 0 || self.waiting.is_empty() && self.room(mark) > 0;
        room && self.octets < MAX_OCTETS
    }

    /// `who` has filled the queue, waited for its time, or was woken. With `Go`, what it may send
    /// before others who wait is in `grant`.
    pub fn resume(&mut self, who: W, grant: &mut usize, mark: usize) -> Resume {
        if let Some(at) = self.resumed.iter().position(|&(other, _)| other == who) {
            *grant += self.resumed.swap_remove(at).1;
            return Resume::Go;
        }
        match self.waiting.iter().position(|&(other, _)| other == who) {
            Some(0) => Resume::Look(self.sent),
            Some(_) => Resume::Wait(None),
            None if self.waiting.is_empty() => Resume::Look(self.sent),
            None => self.wait(who, grant, mark),
        }
    }

    fn wait(&mut self, who: W, grant: &mut usize, mark: usize) -> Resume {
        self.give_back(grant);
        self.waiting.push_back((who, mark));
        Resume::Wait(None)
    }

    /// `who` was told to look when so many messages had been `sent`, and there are `queued` messages
    /// in the queue. Everybody in `woken` has to call [`resume`](Self::resume). Never answers `Look`.
    pub fn looked(
        &mut self,
        who: W,
        grant: &mut usize,
        mark: usize,
        (sent, queued): (u64, usize),
        now: Duration,
        woken: &mut Vec<W>,
    ) -> Resume {
        // What was sent meanwhile may have come too late to be among them.
        let queued = queued + (self.sent - sent) as usize;
        while self.messages.len() > queued {
            self.take_oldest();
        }
        match self.waiting.front().copied() {
            None if self.room(mark) > 0 && self.octets < MAX_OCTETS => return Resume::Go,
            None => {
                self.wait(who, grant, mark);
                self.start_pause(now);
            }
            // Somebody else began to wait meanwhile, and looks.
            Some((first, _)) if first != who => return self.wait(who, grant, mark),
            Some(_) if self.is_low(mark) => self.resume_in_turn(mark, now, woken),
            Some(_) if self.may_try(queued, now) => {
                let ours = self.messages.len();
                self.trial.get_or_insert((queued, ours));
                self.grant_first(1, now, woken);
                woken.extend(self.first_waiting());
            }
            Some(_) => self.pause = self.longest_pause(now).min(self.pause * 2),
        }
        match woken.first() {
            // It was the first of those who waited.
            Some(_) => {
                woken.swap_remove(0);
                self.resume(who, grant, mark)
            }
            None => Resume::Wait(Some(self.pause)),
        }
    }

    /// Whether the consumer has taken half of what is too much, so that it is worth while to go on.
    fn is_low(&self, mark: usize) -> bool {
        self.messages.len() + self.granted <= mark / 2 && self.octets < MAX_OCTETS / 2
    }

    /// Whether it is time for a trial.
    fn may_try(&mut self, queued: usize, now: Duration) -> bool {
        let paused = now.saturating_sub(self.progress);
        match self.trial {
            None => {}
            // It has not been sent yet.
            Some(_) if self.granted > 0 => return false,
            Some((before, ours)) if queued <= before => {
                self.forget_trial();
                // What was taken was ours, if it was not one of others.
                while self.messages.len() > ours {
                    self.take_oldest();
                }
            }
            Some(_)
                if paused >= self.trial_expires
                    && queued > self.messages.len()
                    && self.octets < MAX_OCTETS =>
            {
                self.trial_expires = TRIAL_EXPIRES_MAX.min(self.trial_expires * 2);
            }
            Some(_) => return false,
        }
        paused >= TRIAL_AFTER
    }

    fn forget_trial(&mut self) {
        self.trial = None;
        self.trial_expires = TRIAL_EXPIRES;
    }

    fn longest_pause(&self, now: Duration) -> Duration {
        if now.saturating_sub(self.progress) < STUCK_AFTER {
            LONGEST_PAUSE
        } else {
            LONGEST_STUCK_PAUSE
        }
    }

    fn first_waiting(&self) -> Option<W> {
        self.waiting.front().map(|&(who, _)| who)
    }

    /// Divides the room among those who wait, and wakes them. If it does not do for all, the first
    /// of the others has to look from now on.
    fn resume_in_turn(&mut self, mark: usize, now: Duration, woken: &mut Vec<W>) {
        self.forget_trial();
        // With a mark of 0 or 1 there is no room, and one message is let through all the same.
        let mut room = self.room(mark).max(1);
        let share = (room / self.waiting.len()).max(1);
        while let Some(&(_, own_mark)) = self.waiting.front()
            && room > 0
        {
            let messages = share.min(room).min(self.room(own_mark).max(1));
            self.grant_first(messages, now, woken);
            room -= messages;
        }
        woken.extend(self.first_waiting());
    }

    fn grant_first(&mut self, messages: usize, now: Duration, woken: &mut Vec<W>) {
        if let Some((who, _)) = self.waiting.pop_front() {
            self.resumed.push((who, messages));
            self.granted += messages;
            woken.push(who);
            self.start_pause(now);
        }
    }

    fn start_pause(&mut self, now: Duration) {
        self.pause = SHORTEST_PAUSE;
        self.progress = now;
    }

    /// The connection has nothing to send: what it was granted is for others.
    pub fn give_back(&mut self, grant: &mut usize) {
        self.granted -= std::mem::take(grant);
    }

    /// The connection is over. If others wait for it to look, the one that has to call
    /// [`resume`](Self::resume) in its place.
    pub fn leave(&mut self, who: W, grant: &mut usize) -> Option<W> {
        let unused = self.resumed.iter().filter(|(other, _)| *other == who);
        *grant += unused.map(|(_, messages)| messages).sum::<usize>();
        self.resumed.retain(|&(other, _)| other != who);
        self.give_back(grant);
        let was_first = self.first_waiting() == Some(who);
        self.waiting.retain(|&(other, _)| other != who);
        self.first_waiting().filter(|_| was_first)
    }

    fn room(&self, mark: usize) -> usize {
        mark.saturating_sub(self.messages.len() + self.granted)
    }

    fn take_oldest(&mut self) {
        self.octets -= self.messages.pop_front().unwrap_or(0);
    }
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
