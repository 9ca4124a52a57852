//! Turns: which of the connections that have a lot to read may read now.
//!
//! ```text
//!            poll               poll
//!   idle ───────────► queued ──────────► holding ──► poll: queued again, if others wait
//!     ▲                  │                  │
//!     └──────────────────┴──── release ─────┘
//! ```
//!
//! There are as many slots as connections can read at the same time without getting in each other's
//! way. Connections without a slot wait in a queue. A holder whose turn is over gives its slot to
//! the first in the queue, so every connection gets as many turns as any other.

use std::collections::VecDeque;
use std::time::Duration;

/// A holder that has not ended its turn for this long loses its slot as soon as another connection
/// wants one. Turns take a millisecond, so its process is suspended or starved.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// The slots, and the queue for them. `K` identifies a connection.
///
/// ```
/// use pacing::{Slots, Turn};
/// use std::time::Duration;
///
/// let now = Duration::ZERO;
/// let mut slots = Slots::new(1);
/// assert_eq!(slots.poll("a", now), Turn::Alone);
/// assert_eq!(slots.poll("b", now), Turn::Queued);
/// // The turn of the first one is over.
/// assert_eq!(slots.poll("a", now), Turn::Queued);
/// assert_eq!(slots.take_woken(), ["b"]);
/// assert_eq!(slots.poll("b", now), Turn::Crowded);
/// ```
#[derive(Debug)]
pub struct Slots<K> {
    limit: usize,
    holders: Vec<Holder<K>>,
    queue: VecDeque<K>,
    /// Connections that got a slot while they were queued.
    woken: Vec<K>,
}

#[derive(Debug)]
struct Holder<K> {
    key: K,
    /// When it got its slot or last ended a turn.
    since: Duration,
    /// Whether it knows of its slot.
    knows: bool,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has a slot, and nobody waits for one.
    Alone,
    /// It has got a slot after waiting for it, and others still wait.
    Crowded,
    /// It is in the queue. It is woken when it gets a slot.
    Queued,
}

impl<K: Copy + PartialEq> Slots<K> {
    /// `limit` slots, at least one.
    pub fn new(limit: usize) -> Self {
        Slots {
            limit: limit.max(1),
            holders: Vec::new(),
            queue: VecDeque::new(),
            woken: Vec::new(),
        }
    }

    /// A connection wants a turn, was woken, or has ended a turn and wants another one.
    pub fn poll(&mut self, key: K, now: Duration) -> Turn {
        let is_crowded = self.is_crowded();
        let Some(at) = self.position(key) else {
            return self.request(key, now);
        };
        let holder = &mut self.holders[at];
        if !holder.knows {
            holder.knows = true;
            return self.turn();
        }
        if !is_crowded {
            holder.since = now;
            return Turn::Alone;
        }
        self.holders.swap_remove(at);
        self.queue.push_back(key);
        self.hand_out(now);
        Turn::Queued
    }

    /// A connection without a slot wants one. It may be queued, or it lost its slot before it knew.
    fn request(&mut self, key: K, now: Duration) -> Turn {
        let queued = self.queue.iter().position(|&queued| queued == key);
        if self.take_free(key, now, true) {
            queued.map(|at| self.queue.remove(at));
            return self.turn();
        }
        if queued.is_none() {
            self.queue.push_back(key);
        }
        Turn::Queued
    }

    /// The connection has nothing to read, or is over.
    pub fn release(&mut self, key: K, now: Duration) {
        match self.position(key) {
            Some(at) => _ = self.holders.swap_remove(at),
            None => self.queue.retain(|&queued| queued != key),
        }
        self.hand_out(now);
    }

    /// The connections that got a slot since the last call, and have to poll.
    pub fn take_woken(&mut self) -> Vec<K> {
        std::mem::take(&mut self.woken)
    }

    /// Gives free slots to the first in the queue.
    fn hand_out(&mut self, now: Duration) {
        while let Some(&next) = self.queue.front()
            && self.take_free(next, now, false)
        {
            self.queue.pop_front();
            self.woken.push(next);
        }
    }

    /// Gives a connection a slot that is free or not used any more. False if there is none.
    fn take_free(&mut self, key: K, now: Duration, knows: bool) -> bool {
        if self.holders.len() == self.limit {
            let unused = |holder: &Holder<K>| now.saturating_sub(holder.since) > LONGEST_TURN;
            let Some(at) = self.holders.iter().position(unused) else {
                return false;
            };
            self.holders.swap_remove(at);
        }
        let since = now;
        self.holders.push(Holder { key, since, knows });
        true
    }

    fn position(&self, key: K) -> Option<usize> {
        self.holders.iter().position(|holder| holder.key == key)
    }

    /// Whether connections are queued.
    pub fn is_crowded(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many connections have a slot or are queued.
    pub fn connections(&self) -> usize {
        self.holders.len() + self.queue.len()
    }

    fn turn(&self) -> Turn {
        if self.is_crowded() {
            Turn::Crowded
        } else {
            Turn::Alone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::ZERO;
    const LATE: Duration = LONGEST_TURN.saturating_add(Duration::from_millis(1));

    /// The turn, and who was woken.
    fn poll<K: Copy + PartialEq>(slots: &mut Slots<K>, key: K, now: Duration) -> (Turn, Vec<K>) {
        (slots.poll(key, now), slots.take_woken())
    }

    fn release<K: Copy + PartialEq>(slots: &mut Slots<K>, key: K, now: Duration) -> Vec<K> {
        slots.release(key, now);
        slots.take_woken()
    }

    #[test]
    fn slots_are_handed_on_in_the_order_of_the_queue() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.poll('a', START), Turn::Alone);
        assert_eq!(slots.poll('b', START), Turn::Alone);
        assert_eq!(slots.poll('c', START), Turn::Queued);
        assert_eq!(slots.poll('d', START), Turn::Queued);
        assert_eq!(slots.poll('c', START), Turn::Queued);

        assert_eq!(poll(&mut slots, 'b', START), (Turn::Queued, vec!['c']));
        assert_eq!(slots.poll('c', START), Turn::Crowded);
        assert_eq!(poll(&mut slots, 'a', START), (Turn::Queued, vec!['d']));
        assert_eq!(poll(&mut slots, 'c', START), (Turn::Queued, vec!['b']));
        assert_eq!(release(&mut slots, 'd', START), ['a']);
        assert_eq!(release(&mut slots, 'a', START), ['c']);
        assert_eq!(slots.poll('c', START), Turn::Alone);
        assert_eq!(poll(&mut slots, 'c', START), (Turn::Alone, vec![]));
    }

    #[test]
    fn everybody_gets_as_many_turns() {
        let mut slots = Slots::new(3);
        let mut running: Vec<usize> = (0..100)
            .filter(|&who| slots.poll(who, START) != Turn::Queued)
            .collect();
        let mut turns = [0; 100];
        for n in 0..10_000 {
            let at = n % running.len();
            turns[running[at]] += 1;
            let (turn, woken) = poll(&mut slots, running[at], START);
            assert_eq!((turn, woken.len()), (Turn::Queued, 1));
            running[at] = woken[0];
            assert_eq!(slots.poll(woken[0], START), Turn::Crowded);
        }
        let (least, most) = (turns.iter().min(), turns.iter().max());
        assert!(most.unwrap() - least.unwrap() <= 1, "{least:?} to {most:?}");
    }

    #[test]
    fn who_leaves_the_queue_gets_no_slot() {
        let mut slots = Slots::new(1);
        slots.poll('a', START);
        slots.poll('b', START);
        slots.poll('c', START);
        assert_eq!(release(&mut slots, 'b', START), []);
        assert_eq!(poll(&mut slots, 'a', START), (Turn::Queued, vec!['c']));
    }

    #[test]
    fn a_holder_that_does_not_use_its_slot_loses_it_to_who_asks() {
        let mut slots = Slots::new(1);
        slots.poll('a', START);
        slots.poll('b', START);
        assert_eq!(slots.poll('b', LONGEST_TURN), Turn::Queued);
        assert_eq!(slots.poll('b', LATE), Turn::Alone);
        // It comes back.
        assert_eq!(poll(&mut slots, 'a', LATE), (Turn::Queued, vec![]));
        assert_eq!(poll(&mut slots, 'b', LATE), (Turn::Queued, vec!['a']));
        assert_eq!(slots.poll('a', LATE), Turn::Crowded);
    }

    #[test]
    fn a_slot_that_is_not_used_is_handed_out_when_another_turn_ends() {
        let mut slots = Slots::new(2);
        for who in ['a', 'b', 'c', 'd'] {
            slots.poll(who, START);
        }
        assert_eq!(
            poll(&mut slots, 'b', LONGEST_TURN),
            (Turn::Queued, vec!['c'])
        );
        assert_eq!(slots.poll('c', LONGEST_TURN), Turn::Crowded);
        assert_eq!(poll(&mut slots, 'c', LATE), (Turn::Queued, vec!['d', 'b']));
        assert_eq!(slots.connections(), 3);
    }

    #[test]
    fn who_lost_a_slot_before_it_knew_gets_another_one() {
        let mut slots = Slots::new(1);
        slots.poll('a', START);
        slots.poll('b', START);
        assert_eq!(poll(&mut slots, 'a', START), (Turn::Queued, vec!['b']));
        assert_eq!(slots.poll('a', LATE), Turn::Alone);
        assert_eq!(slots.poll('b', LATE), Turn::Queued);
        assert_eq!(poll(&mut slots, 'a', LATE), (Turn::Queued, vec!['b']));
        assert_eq!(slots.poll('b', LATE), Turn::Crowded);

        // The same when all others are gone by then.
        let later = LATE * 2;
        assert_eq!(slots.poll('a', later), Turn::Alone);
        assert_eq!(release(&mut slots, 'a', later), []);
        assert_eq!(slots.poll('b', later), Turn::Alone);
        assert_eq!(slots.connections(), 1);
    }
}
