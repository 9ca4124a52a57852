//! Turns: which of the connections that have a lot to read may read now.
//!
//! ```text
//!            request            claim
//!   idle ───────────► queued ──────────► holding ──► rotate: queued again, if others wait
//!     ▲                  │                  │
//!     └──────────────────┴──── release ─────┘
//! ```
//!
//! There are as many slots as connections can read at the same time without getting in each other's
//! way. Connections without a slot wait in a queue. A holder whose turn is over gives its slot to
//! the first in the queue, so every connection gets as many turns as any other.

use std::collections::VecDeque;
use std::time::Duration;

/// A slot is taken away from a holder that has not ended its turn for this long. Turns take a
/// millisecond, so its process was suspended or is starved, and others must not wait for it.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// The slots, and the queue for them. `W` identifies a connection.
#[derive(Debug)]
pub struct Slots<W> {
    limit: usize,
    /// Who has a slot, and when they got it or last ended a turn.
    holders: Vec<(W, Duration)>,
    queue: VecDeque<W>,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has a slot, and nobody waits for one.
    Alone,
    /// It has a slot, and others wait.
    Crowded,
    /// It is in the queue. It is woken when it gets a slot.
    Queued,
}

impl<W: Copy + PartialEq> Slots<W> {
    /// `limit` slots, at least one.
    pub fn new(limit: usize) -> Self {
        Slots {
            limit: limit.max(1),
            holders: Vec::new(),
            queue: VecDeque::new(),
        }
    }

    /// `who`, which is neither a holder nor in the queue, wants a turn.
    pub fn request(&mut self, who: W, now: Duration) -> Turn {
        if self.holders.len() < self.limit {
            self.holders.push((who, now));
            return self.turn();
        }
        self.queue.push_back(who);
        Turn::Queued
    }

    /// `who` was queued. Whether it has a slot now; one that a holder does not use counts.
    pub fn claim(&mut self, who: W, now: Duration) -> Turn {
        if self.holders.iter().any(|&(holder, _)| holder == who) {
            return self.turn();
        }
        let unused = |&(_, since): &(W, Duration)| now.saturating_sub(since) > LONGEST_TURN;
        let Some(at) = self.holders.iter().position(unused) else {
            // It had a slot, and lost it before it knew.
            if !self.queue.contains(&who) {
                self.queue.push_back(who);
            }
            return Turn::Queued;
        };
        self.queue.retain(|&queued| queued != who);
        self.holders[at] = (who, now);
        self.turn()
    }

    /// `who` has ended a turn and wants another one. If it is queued now, the one to wake.
    pub fn rotate(&mut self, who: W, now: Duration) -> (Turn, Option<W>) {
        let Some(at) = self.holders.iter().position(|&(holder, _)| holder == who) else {
            return (self.request(who, now), None);
        };
        match self.queue.pop_front() {
            None => {
                self.holders[at].1 = now;
                (Turn::Alone, None)
            }
            Some(next) => {
                self.holders[at] = (next, now);
                self.queue.push_back(who);
                (Turn::Queued, Some(next))
            }
        }
    }

    /// `who` has nothing to read, or is over. If its slot goes to another one, the one to wake.
    pub fn release(&mut self, who: W, now: Duration) -> Option<W> {
        let Some(at) = self.holders.iter().position(|&(holder, _)| holder == who) else {
            self.queue.retain(|&queued| queued != who);
            return None;
        };
        let next = self.queue.pop_front();
        match next {
            Some(next) => self.holders[at] = (next, now),
            None => _ = self.holders.swap_remove(at),
        }
        next
    }

    /// Whether connections are queued.
    pub fn is_crowded(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many connections have a slot or are queued.
    pub fn len(&self) -> usize {
        self.holders.len() + self.queue.len()
    }

    /// Whether no connection has a slot or is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    #[test]
    fn slots_are_handed_on_in_the_order_of_the_queue() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.request('a', START), Turn::Alone);
        assert_eq!(slots.request('b', START), Turn::Alone);
        assert_eq!(slots.request('c', START), Turn::Queued);
        assert_eq!(slots.request('d', START), Turn::Queued);
        assert_eq!(slots.claim('c', START), Turn::Queued);

        assert_eq!(slots.rotate('b', START), (Turn::Queued, Some('c')));
        assert_eq!(slots.claim('c', START), Turn::Crowded);
        assert_eq!(slots.rotate('a', START), (Turn::Queued, Some('d')));
        assert_eq!(slots.rotate('c', START), (Turn::Queued, Some('b')));
        assert_eq!(slots.release('d', START), Some('a'));
        assert_eq!(slots.release('a', START), Some('c'));
        assert_eq!(slots.claim('c', START), Turn::Alone);
        assert_eq!(slots.rotate('c', START), (Turn::Alone, None));
    }

    #[test]
    fn everybody_gets_as_many_turns() {
        let mut slots = Slots::new(3);
        let mut running: Vec<usize> = Vec::new();
        for who in 0..100 {
            if slots.request(who, START) != Turn::Queued {
                running.push(who);
            }
        }
        let mut turns = [0; 100];
        for n in 0..10_000 {
            let at = n % running.len();
            turns[running[at]] += 1;
            if let (Turn::Queued, Some(next)) = slots.rotate(running[at], START) {
                running[at] = next;
            }
        }
        let (least, most) = (turns.iter().min(), turns.iter().max());
        assert!(most.unwrap() - least.unwrap() <= 1, "{least:?} to {most:?}");
    }

    #[test]
    fn who_leaves_the_queue_gets_no_slot() {
        let mut slots = Slots::new(1);
        slots.request('a', START);
        slots.request('b', START);
        slots.request('c', START);
        assert_eq!(slots.release('b', START), None);
        assert_eq!(slots.rotate('a', START), (Turn::Queued, Some('c')));
    }

    #[test]
    fn a_holder_that_does_not_use_its_slot_loses_it() {
        let mut slots = Slots::new(1);
        slots.request('a', START);
        slots.request('b', START);
        assert_eq!(slots.claim('b', LONGEST_TURN), Turn::Queued);
        let late = LONGEST_TURN + Duration::from_millis(1);
        assert_eq!(slots.claim('b', late), Turn::Alone);
        // It comes back.
        assert_eq!(slots.rotate('a', late), (Turn::Queued, None));
        assert_eq!(slots.rotate('b', late), (Turn::Queued, Some('a')));
        assert_eq!(slots.claim('a', late), Turn::Crowded);
    }

    #[test]
    fn who_lost_a_slot_before_it_knew_is_queued_again() {
        let mut slots = Slots::new(1);
        slots.request('a', START);
        slots.request('b', START);
        assert_eq!(slots.rotate('a', START), (Turn::Queued, Some('b')));
        let late = LONGEST_TURN + Duration::from_millis(1);
        assert_eq!(slots.claim('a', late), Turn::Alone);
        assert_eq!(slots.claim('b', late), Turn::Queued);
        assert_eq!(slots.rotate('a', late), (Turn::Queued, Some('b')));
        assert_eq!(slots.claim('b', late), Turn::Crowded);
    }
}
