//! Back-pressure: counts the messages that may still be in a listener's mailbox, and decides which
//! connections have to pause until the listener has taken more.
//!
//! ```text
//!  sent ──► full ──► resume ──► Look ──► looked ──► Go       (there is room)
//!                      │                   │
//!                      │ others wait       ▼
//!                      └───────────────► Wait ──► woken ──► resume ──► Go
//! ```
//!
//! Asking for the length of a mailbox may cost more than sending to it. So every message that was
//! sent counts as still being there. The length is asked for only when that count is too high.
//!
//! All connections that feed a listener share one backlog. They are resumed in the order in which
//! they were paused, and each gets a share of the room. Only the first connection that waits looks
//! at the mailbox.
//!
//! A connection can be held up for any time: its process is suspended, or it was killed in a call, and
//! then nobody is woken in its place. So no connection waits for another without a bound, see
//! [`HELD_UP`].

use std::collections::VecDeque;
use std::time::Duration;

/// The limit in bytes, whatever the mark is. The mark counts messages only, and one message holds up
/// to 256 frames, or one body of any size.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// A connection that somebody waits for reads on until the mailbox holds this many times the limits. What he
/// waits for may come behind messages.
const RESERVE: usize = 8;

/// Nothing announces that a mailbox has become shorter, so it is polled. The first pause is the
/// shortest, and each pause is twice as long as the one before, up to the time that a listener
/// needs for one batch of work. When nobody has been allowed to send for a second, the listener is
/// probably stuck, and the pauses may grow longer.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);
const STUCK_AFTER: Duration = Duration::from_secs(1);
const LONGEST_STUCK_PAUSE: Duration = Duration::from_millis(128);

/// When nobody has been allowed to send for this long, one message goes through as a trial. The
/// mailbox may be full of other processes' messages that the listener never takes, and these must
/// not stop a feed for ever. The next trial has to wait until this one was taken, which means that
/// the mailbox is no longer than before it.
const TRIAL_AFTER: Duration = Duration::from_millis(250);

/// A mailbox that other processes keep filling never gets that short again. If it holds messages of
/// others, the next trial waits no longer than this. The time doubles with each such trial up to the
/// maximum, because the listener may also be one that takes nothing at all.
const TRIAL_EXPIRES: Duration = Duration::from_secs(1);
const TRIAL_EXPIRES_MAX: Duration = Duration::from_secs(64);

/// A connection that was allowed to send and has not done so for this long is held up, and its grant goes
/// back. If the first connection that waits has not looked for this long, the one that notices looks in its
/// place. It is as long as a listener that works may keep its connections waiting.
const HELD_UP: Duration = Duration::from_secs(1);

/// What a connection that has filled the mailbox has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Continue to send.
    Go,
    /// Call [`looked`](Backlog::looked) with the length of the mailbox and with this number, which
    /// is how many messages had been sent before the look.
    Look(u64),
    /// Wait to be woken, for this long at most. Then call [`resume`](Backlog::resume) again.
    Wait(Duration),
}

/// What a backlog notes at each connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Member {
    /// How many messages the connection may send ahead of those that wait.
    grant: usize,
    /// The backlog's `round` in which it got them.
    round: u64,
    /// Whether it was told to wait, and not to go on since.
    waits: bool,
}

impl Member {
    /// Whether the connection has a grant to give back.
    pub fn has_grant(&self) -> bool {
        self.grant > 0
    }
}

/// The messages that one listener has not taken yet, as far as is known.
#[derive(Debug)]
pub struct Backlog<W> {
    /// The size of each message that may still be in the mailbox, oldest first.
    messages: VecDeque<usize>,
    /// The sum of `messages`.
    bytes: usize,
    /// Messages sent since the start.
    sent: u64,
    /// Connections that wait, in the order in which they were paused, each with its mark.
    waiting: VecDeque<(W, usize)>,
    /// Connections that were resumed but do not know it yet, each with its mark and the number of
    /// messages that it may send.
    resumed: Vec<(W, usize, usize)>,
    /// Messages that resumed connections may still send.
    granted: usize,
    /// Grants of earlier rounds are void.
    round: u64,
    pause: Duration,
    /// When somebody was last allowed to send.
    progress: Duration,
    /// When the first connection that waits was last there.
    polled: Duration,
    /// While a trial has not been taken: the length of the mailbox before it, and how many of the
    /// messages in it counted as ours.
    trial: Option<(usize, usize)>,
    trial_expires: Duration,
}

impl<W> Default for Backlog<W> {
    fn default() -> Self {
        Backlog {
            messages: VecDeque::new(),
            bytes: 0,
            sent: 0,
            waiting: VecDeque::new(),
            resumed: Vec::new(),
            granted: 0,
            round: 0,
            pause: SHORTEST_PAUSE,
            progress: Duration::ZERO,
            polled: Duration::ZERO,
            trial: None,
            trial_expires: TRIAL_EXPIRES,
        }
    }
}

impl<W: Copy + PartialEq> Backlog<W> {
    /// Counts a message of `bytes` bytes as sent, and takes one from the sender's grant if there
    /// is any. Returns whether the sender may send another message. `mark` is the number of messages
    /// in the mailbox at which the sender has to pause.
    pub fn sent(&mut self, bytes: usize, member: &mut Member, mark: usize) -> bool {
        self.messages.push_back(bytes);
        self.bytes += bytes;
        self.sent += 1;
        let grant = self.grant_of(member);
        if *grant > 0 {
            *grant -= 1;
            self.granted -= 1;
        }
        let room = *grant > 0 || self.waiting.is_empty() && self.room(mark) > 0;
        room && self.bytes < MAX_BYTES
    }

    /// The member's grant, which is void if the round in which it got it is over.
    fn grant_of<'m>(&self, member: &'m mut Member) -> &'m mut usize {
        if member.round != self.round {
            member.round = self.round;
            member.grant = 0;
        }
        &mut member.grant
    }

    /// `who` calls this when it has filled the mailbox, after a pause, and when it was woken. With
    /// `Go`, it may send what it was granted ahead of those that still wait.
    pub fn resume(&mut self, who: W, member: &mut Member, mark: usize, now: Duration) -> Resume {
        if let Some(at) = self.resumed.iter().position(|&(other, ..)| other == who) {
            *self.grant_of(member) += self.resumed.swap_remove(at).2;
            member.waits = false;
            return Resume::Go;
        }
        let held_up = now.saturating_sub(self.polled) >= HELD_UP;
        match self.first_waiting() {
            Some(first) if first == who => {}
            Some(_) if !member.waits => return self.wait(who, member, mark),
            Some(_) if !held_up => return Resume::Wait(HELD_UP),
            Some(_) => {
                self.waiting.retain(|&(other, _)| other != who);
                self.waiting.push_front((who, mark));
            }
            None => {}
        }
        self.polled = now;
        Resume::Look(self.sent)
    }

    fn wait(&mut self, who: W, member: &mut Member, mark: usize) -> Resume {
        self.give_back(member);
        member.waits = true;
        self.waiting.push_back((who, mark));
        Resume::Wait(HELD_UP)
    }

    /// The answer to `Look(sent)`: there are `queued` messages in the mailbox. Every connection that
    /// is put into `woken` has to call [`resume`](Self::resume). Never returns `Look`.
    pub fn looked(
        &mut self,
        who: W,
        member: &mut Member,
        mark: usize,
        (sent, queued): (u64, usize),
        now: Duration,
        woken: &mut Vec<W>,
    ) -> Resume {
        // Messages that were sent during the look may not be counted in `queued`.
        let queued = queued + (self.sent - sent) as usize;
        while self.messages.len() > queued {
            self.take_oldest();
        }
        // It was held up for so long that another one has looked, and has let it go on.
        if self.resumed.iter().any(|&(other, ..)| other == who) {
            return self.resume(who, member, mark, now);
        }
        self.polled = now;
        self.reclaim_grants(now);
        match self.waiting.front().copied() {
            None if self.room(mark) > 0 && self.bytes < MAX_BYTES => return Resume::Go,
            None => {
                self.wait(who, member, mark);
                self.start_pause(now);
            }
            // Another connection began to wait during the look. It is the one that looks now.
            Some((first, _)) if first != who && member.waits => return Resume::Wait(HELD_UP),
            Some((first, _)) if first != who => return self.wait(who, member, mark),
            Some(_) if self.is_low(mark) => self.resume_in_turn(mark, now, woken),
            Some(_) if self.may_try(queued, now) => self.start_trial(queued, now, woken),
            Some(_) => self.pause = self.longest_pause(now).min(self.pause * 2),
        }
        if woken.is_empty() {
            return Resume::Wait(self.pause);
        }
        // `who` was the first that waited, so it is the first in `woken`.
        woken.swap_remove(0);
        self.resume(who, member, mark, now)
    }

    /// Takes the grants of connections that are held up. Those that do not know of theirs wait again.
    fn reclaim_grants(&mut self, now: Duration) {
        if self.granted > 0 && now.saturating_sub(self.progress) >= HELD_UP {
            self.granted = 0;
            self.round += 1;
            self.waiting
                .extend(self.resumed.drain(..).map(|(who, mark, _)| (who, mark)));
        }
    }

    fn start_trial(&mut self, queued: usize, now: Duration, woken: &mut Vec<W>) {
        self.trial.get_or_insert((queued, self.messages.len()));
        self.grant_first(1, now, woken);
        woken.extend(self.first_waiting());
    }

    /// Whether the mailbox is down to half of the limits. To resume with less room is not worth its
    /// cost.
    fn is_low(&self, mark: usize) -> bool {
        self.messages.len() + self.granted <= mark / 2 && self.bytes < MAX_BYTES / 2
    }

    /// Whether it is time for a trial.
    fn may_try(&mut self, queued: usize, now: Duration) -> bool {
        let paused = now.saturating_sub(self.progress);
        match self.trial {
            None => {}
            // The trial has not been sent yet.
            Some(_) if self.granted > 0 => return false,
            Some((before, ours)) if queued <= before => {
                self.forget_trial();
                // The listener has taken a message since the trial. Assume that it was ours.
                while self.messages.len() > ours {
                    self.take_oldest();
                }
            }
            Some(_)
                if paused >= self.trial_expires
                    && queued > self.messages.len()
                    && self.bytes < MAX_BYTES =>
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

    /// Divides the room among the connections that wait, and wakes them. If there is not enough room
    /// for all, the first of the others is woken too, because it has to look from now on.
    fn resume_in_turn(&mut self, mark: usize, now: Duration, woken: &mut Vec<W>) {
        self.forget_trial();
        // With a mark of 0 there is never any room. One message goes through all the same.
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
        if let Some((who, mark)) = self.waiting.pop_front() {
            self.resumed.push((who, mark, messages));
            self.granted += messages;
            woken.push(who);
            self.start_pause(now);
        }
    }

    fn start_pause(&mut self, now: Duration) {
        self.pause = SHORTEST_PAUSE;
        self.progress = now;
    }

    /// Whether a connection that somebody waits for may go on although the mailbox is full.
    pub fn has_reserve(&self, mark: usize) -> bool {
        self.messages.len() < mark.saturating_mul(RESERVE) && self.bytes < MAX_BYTES * RESERVE
    }

    /// The connection has nothing to send, so others may use its grant.
    pub fn give_back(&mut self, member: &mut Member) {
        self.granted -= std::mem::take(self.grant_of(member));
    }

    /// The connection has ended. If it was the one that looks and others wait, returns the one that
    /// has to call [`resume`](Self::resume) in its place.
    pub fn leave(&mut self, who: W, member: &mut Member) -> Option<W> {
        let unused = self.resumed.iter().filter(|(other, _, _)| *other == who);
        *self.grant_of(member) += unused.map(|(_, _, messages)| messages).sum::<usize>();
        self.resumed.retain(|&(other, _, _)| other != who);
        member.waits = false;
        self.give_back(member);
        let was_first = self.first_waiting() == Some(who);
        self.waiting.retain(|&(other, _)| other != who);
        self.first_waiting().filter(|_| was_first)
    }

    fn room(&self, mark: usize) -> usize {
        mark.saturating_sub(self.messages.len() + self.granted)
    }

    fn take_oldest(&mut self) {
        self.bytes -= self.messages.pop_front().unwrap_or(0);
    }
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
