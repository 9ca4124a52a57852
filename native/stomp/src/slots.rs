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

/// A holder that has not ended its turn for this long loses its slot as soon as another connection
/// wants one. Turns take a millisecond, so its process is suspended or starved.
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
    /// It has got a slot after waiting for it, and others still wait.
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
        if self.take_free(who, now) {
            return self.turn();
        }
        self.queue.push_back(who);
        Turn::Queued
    }

    /// `who` was queued. Whether it has a slot now.
    pub fn claim(&mut self, who: W, now: Duration) -> Turn {
        if self.position(who).is_some() {
            return self.turn();
        }
        // It may have been given a slot and lost it before it woke. Then it is no longer queued.
        let queued = self.queue.iter().position(|&queued| queued == who);
        if self.take_free(who, now) {
            queued.map(|at| self.queue.remove(at));
            return self.turn();
        }
        if queued.is_none() {
            self.queue.push_back(who);
        }
        Turn::Queued
    }

    /// `who` has ended a turn and wants another one. All in `woken` have got a slot.
    pub fn rotate(&mut self, who: W, now: Duration, woken: &mut Vec<W>) -> Turn {
        let Some(at) = self.position(who) else {
            return self.request(who, now);
        };
        if !self.is_crowded() {
            self.holders[at].1 = now;
            return Turn::Alone;
        }
        self.holders.swap_remove(at);
        self.queue.push_back(who);
        self.hand_out(now, woken);
        Turn::Queued
    }

    /// `who` has nothing to read, or is over. All in `woken` have got a slot.
    pub fn release(&mut self, who: W, now: Duration, woken: &mut Vec<W>) {
        match self.position(who) {
            Some(at) => _ = self.holders.swap_remove(at),
            None => self.queue.retain(|&queued| queued != who),
        }
        self.hand_out(now, woken);
    }

    /// Gives free slots to the first in the queue.
    fn hand_out(&mut self, now: Duration, woken: &mut Vec<W>) {
        while let Some(&next) = self.queue.front()
            && self.take_free(next, now)
        {
            self.queue.pop_front();
            woken.push(next);
        }
    }

    /// Gives `who` a slot that is free or not used any more. False if there is none.
    fn take_free(&mut self, who: W, now: Duration) -> bool {
        if self.holders.len() == self.limit {
            let unused = |&(_, since): &(W, Duration)| now.saturating_sub(since) > LONGEST_TURN;
            let Some(at) = self.holders.iter().position(unused) else {
                return false;
            };
            self.holders.swap_remove(at);
        }
        self.holders.push((who, now));
        true
    }

    fn position(&self, who: W) -> Option<usize> {
        self.holders.iter().position(|&(holder, _)| holder == who)
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
    fn rotate<W: Copy + PartialEq>(slots: &mut Slots<W>, who: W, now: Duration) -> (Turn, Vec<W>) {
        let mut woken = Vec::new();
        (slots.rotate(who, now, &mut woken), woken)
    }

    fn release<W: Copy + PartialEq>(slots: &mut Slots<W>, who: W, now: Duration) -> Vec<W> {
        let mut woken = Vec::new();
        slots.release(who, now, &mut woken);
        woken
    }

    #[test]
    fn slots_are_handed_on_in_the_order_of_the_queue() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.request('a', START), Turn::Alone);
        assert_eq!(slots.request('b', START), Turn::Alone);
        assert_eq!(slots.request('c', START), Turn::Queued);
        assert_eq!(slots.request('d', START), Turn::Queued);
        assert_eq!(slots.claim('c', START), Turn::Queued);

        assert_eq!(rotate(&mut slots, 'b', START), (Turn::Queued, vec!['c']));
        assert_eq!(slots.claim('c', START), Turn::Crowded);
        assert_eq!(rotate(&mut slots, 'a', START), (Turn::Queued, vec!['d']));
        assert_eq!(rotate(&mut slots, 'c', START), (Turn::Queued, vec!['b']));
        assert_eq!(release(&mut slots, 'd', START), ['a']);
        assert_eq!(release(&mut slots, 'a', START), ['c']);
        assert_eq!(slots.claim('c', START), Turn::Alone);
        assert_eq!(rotate(&mut slots, 'c', START), (Turn::Alone, vec![]));
    }

    #[test]
    fn everybody_gets_as_many_turns() {
        let mut slots = Slots::new(3);
        let mut running: Vec<usize> = (0..100)
            .filter(|&who| slots.request(who, START) != Turn::Queued)
            .collect();
        let mut turns = [0; 100];
        for n in 0..10_000 {
            let at = n % running.len();
            turns[running[at]] += 1;
            let (turn, woken) = rotate(&mut slots, running[at], START);
            assert_eq!((turn, woken.len()), (Turn::Queued, 1));
            running[at] = woken[0];
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
        assert_eq!(release(&mut slots, 'b', START), []);
        assert_eq!(rotate(&mut slots, 'a', START), (Turn::Queued, vec!['c']));
    }

    #[test]
    fn a_holder_that_does_not_use_its_slot_loses_it_to_who_asks() {
        let mut slots = Slots::new(1);
        slots.request('a', START);
        slots.request('b', START);
        assert_eq!(slots.claim('b', LONGEST_TURN), Turn::Queued);
        assert_eq!(slots.claim('b', LATE), Turn::Alone);
        // It comes back.
        assert_eq!(rotate(&mut slots, 'a', LATE), (Turn::Queued, vec![]));
        assert_eq!(rotate(&mut slots, 'b', LATE), (Turn::Queued, vec!['a']));
        assert_eq!(slots.claim('a', LATE), Turn::Crowded);
    }

    #[test]
    fn a_slot_that_is_not_used_is_handed_out_when_another_turn_ends() {
        let mut slots = Slots::new(2);
        for who in ['a', 'b', 'c', 'd'] {
            slots.request(who, START);
        }
        assert_eq!(
            rotate(&mut slots, 'b', LONGEST_TURN),
            (Turn::Queued, vec!['c'])
        );
        assert_eq!(
            rotate(&mut slots, 'c', LATE),
            (Turn::Queued, vec!['d', 'b'])
        );
        assert_eq!(slots.connections(), 3);
    }

    #[test]
    fn who_lost_a_slot_before_it_knew_gets_another_one() {
        let mut slots = Slots::new(1);
        slots.request('a', START);
        slots.request('b', START);
        assert_eq!(rotate(&mut slots, 'a', START), (Turn::Queued, vec!['b']));
        assert_eq!(slots.claim('a', LATE), Turn::Alone);
        assert_eq!(slots.claim('b', LATE), Turn::Queued);
        assert_eq!(rotate(&mut slots, 'a', LATE), (Turn::Queued, vec!['b']));
        assert_eq!(slots.claim('b', LATE), Turn::Crowded);

        // The same when all others are gone by then.
        let later = LATE * 2;
        assert_eq!(slots.claim('a', later), Turn::Alone);
        assert_eq!(release(&mut slots, 'a', later), []);
        assert_eq!(slots.claim('b', later), Turn::Alone);
        assert_eq!(slots.connections(), 1);
    }
}
