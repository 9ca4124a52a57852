//! Back-pressure: counts the messages that may still be in a listener's mailbox, and decides which
//! connections have to pause until the listener has taken more.
//!
//! ```text
//!  sent ──► full ──► poll ──► Look ──► looked ──► Go       (there is room)
//!                     │                  │
//!                     │ others wait      ▼
//!                     └──────────────► Wait ──► woken ──► poll ──► Go
//! ```
//!
//! Asking for the length of a mailbox may cost more than sending to it. So every message that was
//! sent counts as still being there. The length is asked for only when that count is too high.
//!
//! All connections that feed a listener share one backlog. They go on in the order in which they were paused, and
//! each gets a share of the room. Only the first connection that waits looks
//! at the mailbox.
//!
//! A connection can be held up for any time: its process is suspended, or it was killed in a call, and
//! then nobody is woken in its place. So no connection waits for another without a bound, see
//! [`HELD_UP`].

use std::collections::{BTreeMap, VecDeque};
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
pub enum Pace {
    /// Go on sending.
    Go,
    /// Call [`looked`](Backlog::looked) with the length of the mailbox.
    Look,
    /// Wait to be woken, for this long at most. Then call [`poll`](Backlog::poll) again.
    Wait(Duration),
}

/// A connection that feeds the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member(u64);

/// What is known of a connection. `K` is how its owner is told to poll.
#[derive(Debug)]
struct Connection<K> {
    key: K,
    /// The number of messages in the mailbox at which it has to pause.
    mark: usize,
    state: State,
    /// How many messages had been sent when it began to look.
    looked_at: u64,
    /// Bytes of a message that it is making.
    reserved: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may send, this many messages ahead of those that wait.
    Sending { grant: usize },
    /// It is in the queue.
    Waiting,
    /// It was granted this many messages, and does not know it yet.
    Woken { grant: usize },
}

/// A message that went through although the mailbox was full.
#[derive(Debug)]
enum Trial {
    /// There was none since the mailbox last had room, or it was taken.
    None,
    /// It is on its way, or in the mailbox.
    Open {
        /// The length of the mailbox before it, and how many of the messages in it counted as ours.
        queued: usize,
        ours: usize,
        /// The next trial does not wait any longer for this one to be taken.
        expires: Duration,
    },
}

/// The messages that one listener has not taken yet, as far as is known.
///
/// ```
/// use pacing::{Backlog, Pace};
/// use std::time::Duration;
///
/// let mut backlog = Backlog::default();
/// let feed = backlog.join("feed", 2);
/// assert!(backlog.sent(feed, 100));
/// // The mailbox may hold two messages now.
/// assert!(!backlog.sent(feed, 100));
/// assert_eq!(backlog.poll(feed, Duration::ZERO), Pace::Look);
/// // The listener has taken none of them.
/// assert!(matches!(backlog.looked(feed, 2, Duration::ZERO), Pace::Wait(_)));
/// // After the wait it has taken both.
/// assert_eq!(backlog.poll(feed, Duration::from_millis(1)), Pace::Look);
/// assert_eq!(backlog.looked(feed, 0, Duration::from_millis(1)), Pace::Go);
/// ```
#[derive(Debug)]
pub struct Backlog<K> {
    /// The size of each message that may still be in the mailbox, oldest first.
    messages: VecDeque<usize>,
    /// The sum of `messages`.
    bytes: usize,
    /// Bytes of messages that are being made: the sum over all connections.
    reserved: usize,
    /// Messages sent since the start.
    sent: u64,
    /// Connections that have joined since the start.
    joined: u64,
    connections: BTreeMap<Member, Connection<K>>,
    /// Connections that wait, in the order in which they were paused.
    waiting: VecDeque<Member>,
    /// Messages that were granted and not sent: the sum over all connections.
    granted: usize,
    pause: Duration,
    /// When somebody was last allowed to send.
    progress: Duration,
    /// When the first connection that waits was last there.
    polled: Duration,
    trial: Trial,
    /// Connections that have to poll.
    woken: Vec<Member>,
}

impl<K> Default for Backlog<K> {
    fn default() -> Self {
        Backlog {
            messages: VecDeque::new(),
            bytes: 0,
            reserved: 0,
            sent: 0,
            joined: 0,
            connections: BTreeMap::new(),
            waiting: VecDeque::new(),
            granted: 0,
            pause: SHORTEST_PAUSE,
            progress: Duration::ZERO,
            polled: Duration::ZERO,
            trial: Trial::None,
            woken: Vec::new(),
        }
    }
}

impl<K: Copy> Backlog<K> {
    /// A connection begins. `key` is what [`take_woken`](Self::take_woken) calls it. `mark` is the number of
    /// messages in the mailbox at which it has to pause.
    pub fn join(&mut self, key: K, mark: usize) -> Member {
        let member = Member(self.joined);
        self.joined += 1;
        let state = State::Sending { grant: 0 };
        let connection = Connection {
            key,
            mark,
            state,
            looked_at: 0,
            reserved: 0,
        };
        self.connections.insert(member, connection);
        member
    }

    /// Whether the connection may begin a large message, or go on with one that has become larger than it reserved.
    pub fn may_begin(&self, member: Member) -> bool {
        let own = self.connections.get(&member).map_or(0, |it| it.reserved);
        self.bytes + self.reserved - own < MAX_BYTES
    }

    fn has_room(&self) -> bool {
        self.bytes + self.reserved < MAX_BYTES
    }

    /// The connection is making a message that takes `bytes` bytes by now. Nobody may send more than fits beside it.
    pub fn reserve(&mut self, member: Member, bytes: usize) {
        let connection = self.connection(member);
        let before = std::mem::replace(&mut connection.reserved, bytes);
        self.reserved = self.reserved - before + bytes;
    }

    /// Counts a message of `bytes` bytes as sent, and takes one from the sender's grant if there
    /// is any. Returns whether the sender may send another message.
    pub fn sent(&mut self, member: Member, bytes: usize) -> bool {
        self.messages.push_back(bytes);
        self.bytes += bytes;
        self.sent += 1;
        let connection = self.connection(member);
        let mark = connection.mark;
        let has_grant = match &mut connection.state {
            State::Sending { grant } if *grant > 0 => {
                *grant -= 1;
                let left = *grant;
                self.granted -= 1;
                left > 0
            }
            _ => false,
        };
        let room = has_grant || self.waiting.is_empty() && self.room(mark) > 0;
        room && self.has_room()
    }

    /// A connection asks this when it has filled the mailbox, after a pause, and when it was woken. With
    /// `Go`, it may send what it was granted ahead of those that still wait.
    pub fn poll(&mut self, member: Member, now: Duration) -> Pace {
        let held_up = now.saturating_sub(self.polled) >= HELD_UP;
        let state = self.connection(member).state;
        match state {
            State::Woken { grant } => {
                self.connection(member).state = State::Sending { grant };
                self.woken.retain(|&other| other != member);
                return Pace::Go;
            }
            _ if self.is_first(member) || self.waiting.is_empty() => {}
            State::Sending { .. } => return self.wait(member),
            State::Waiting if !held_up => return Pace::Wait(HELD_UP),
            State::Waiting => {
                self.waiting.retain(|&other| other != member);
                self.waiting.push_front(member);
            }
        }
        self.polled = now;
        self.connection(member).looked_at = self.sent;
        Pace::Look
    }

    fn wait(&mut self, member: Member) -> Pace {
        self.give_back(member);
        self.connection(member).state = State::Waiting;
        self.waiting.push_back(member);
        Pace::Wait(HELD_UP)
    }

    /// The answer to `Look`: there are `queued` messages in the mailbox. Never returns `Look`.
    pub fn looked(&mut self, member: Member, queued: usize, now: Duration) -> Pace {
        let Connection {
            mark,
            state,
            looked_at,
            ..
        } = *self.connection(member);
        // Messages that were sent during the look may not be counted in `queued`.
        let queued = queued + (self.sent - looked_at) as usize;
        while self.messages.len() > queued {
            self.take_oldest();
        }
        // It was held up for so long that another one has looked, and has let it go on.
        if let State::Woken { .. } = state {
            return self.poll(member, now);
        }
        self.polled = now;
        self.reclaim_grants(now);
        match self.waiting.front().copied() {
            None if self.room(mark) > 0 && self.has_room() => return Pace::Go,
            None => {
                self.wait(member);
                self.start_pause(now);
            }
            // Another connection began to wait during the look. It is the one that looks now.
            Some(first) if first != member && state == State::Waiting => {
                return Pace::Wait(HELD_UP);
            }
            Some(first) if first != member => return self.wait(member),
            Some(_) if self.is_low(mark) => self.wake_in_turn(mark, now),
            Some(_) if self.may_try(queued, now) => self.start_trial(queued, now),
            Some(_) => self.pause = self.longest_pause(now).min(self.pause * 2),
        }
        match self.connection(member).state {
            State::Woken { .. } => self.poll(member, now),
            _ => Pace::Wait(self.pause),
        }
    }

    /// Takes the grants of connections that are held up. Those that do not know of theirs wait again.
    fn reclaim_grants(&mut self, now: Duration) {
        if self.granted == 0 || now.saturating_sub(self.progress) < HELD_UP {
            return;
        }
        self.granted = 0;
        for (&member, connection) in &mut self.connections {
            match &mut connection.state {
                State::Sending { grant } => *grant = 0,
                State::Waiting => {}
                state @ State::Woken { .. } => {
                    *state = State::Waiting;
                    self.waiting.push_back(member);
                }
            }
        }
    }

    fn start_trial(&mut self, queued: usize, now: Duration) {
        if let Trial::None = self.trial {
            self.trial = Trial::Open {
                queued,
                ours: self.messages.len(),
                expires: TRIAL_EXPIRES,
            };
        }
        self.grant_first(1, now);
        self.wake_first();
    }

    /// Whether the mailbox is down to half of the limits. To go on with less room is not worth its
    /// cost.
    fn is_low(&self, mark: usize) -> bool {
        self.messages.len() + self.granted <= mark / 2 && self.bytes + self.reserved < MAX_BYTES / 2
    }

    /// Whether it is time for a trial.
    fn may_try(&mut self, queued: usize, now: Duration) -> bool {
        let paused = now.saturating_sub(self.progress);
        match &mut self.trial {
            Trial::None => {}
            // It has not been sent yet.
            Trial::Open { .. } if self.granted > 0 => return false,
            &mut Trial::Open {
                queued: before,
                ours,
                ..
            } if queued <= before => {
                self.trial = Trial::None;
                // The listener has taken a message since the trial. Assume that it was ours.
                while self.messages.len() > ours {
                    self.take_oldest();
                }
            }
            Trial::Open { expires, .. }
                if paused >= *expires && queued > self.messages.len() && self.bytes < MAX_BYTES =>
            {
                *expires = TRIAL_EXPIRES_MAX.min(*expires * 2);
            }
            Trial::Open { .. } => return false,
        }
        paused >= TRIAL_AFTER
    }

    fn longest_pause(&self, now: Duration) -> Duration {
        if now.saturating_sub(self.progress) < STUCK_AFTER {
            LONGEST_PAUSE
        } else {
            LONGEST_STUCK_PAUSE
        }
    }

    /// Divides the room among the connections that wait, and wakes them. If there is not enough room
    /// for all, the first of the others is woken too, because it has to look from now on.
    fn wake_in_turn(&mut self, mark: usize, now: Duration) {
        self.trial = Trial::None;
        // With a mark of 0 there is never any room. One message goes through all the same.
        let mut room = self.room(mark).max(1);
        let share = (room / self.waiting.len()).max(1);
        while let Some(&first) = self.waiting.front()
            && room > 0
        {
            let own_room = self.room(self.connections[&first].mark);
            let messages = share.min(room).min(own_room.max(1));
            self.grant_first(messages, now);
            room -= messages;
        }
        self.wake_first();
    }

    fn grant_first(&mut self, grant: usize, now: Duration) {
        if let Some(member) = self.waiting.pop_front() {
            self.connection(member).state = State::Woken { grant };
            self.granted += grant;
            self.woken.push(member);
            self.start_pause(now);
        }
    }

    fn wake_first(&mut self) {
        self.woken.extend(self.waiting.front());
    }

    fn start_pause(&mut self, now: Duration) {
        self.pause = SHORTEST_PAUSE;
        self.progress = now;
    }

    /// The connections that have to poll since the last call.
    pub fn take_woken(&mut self) -> Vec<K> {
        let keys = self.woken.iter().filter_map(|m| self.connections.get(m));
        let keys = keys.map(|connection| connection.key).collect();
        self.woken.clear();
        keys
    }

    /// Whether a connection that somebody waits for may go on although the mailbox is full.
    pub fn has_reserve(&self, member: Member) -> bool {
        let limit = self.connections[&member].mark.saturating_mul(RESERVE);
        self.messages.len() < limit && self.bytes < MAX_BYTES * RESERVE
    }

    /// The connection has nothing to send, so others may use its grant.
    pub fn give_back(&mut self, member: Member) {
        if let State::Sending { grant } = &mut self.connection(member).state {
            self.granted -= std::mem::take(grant);
        }
    }

    /// The connection waits no longer, and gives back its grant. If it was the one that looks, the next one
    /// is woken.
    pub fn withdraw(&mut self, member: Member) {
        let state = State::Sending { grant: 0 };
        match std::mem::replace(&mut self.connection(member).state, state) {
            State::Sending { grant } | State::Woken { grant } => self.granted -= grant,
            State::Waiting => {
                let was_first = self.is_first(member);
                self.waiting.retain(|&other| other != member);
                if was_first {
                    self.wake_first();
                }
            }
        }
    }

    /// The connection has ended. [`Member`]s that have left must not be used again.
    pub fn leave(&mut self, member: Member) {
        self.withdraw(member);
        self.reserve(member, 0);
        self.connections.remove(&member);
    }

    fn is_first(&self, member: Member) -> bool {
        self.waiting.front() == Some(&member)
    }

    fn connection(&mut self, member: Member) -> &mut Connection<K> {
        let connection = self.connections.get_mut(&member);
        connection.expect("a connection that has not left")
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
