//! Back-pressure: how much of what was sent to a consumer may still lie in its queue.
//!
//! To ask for the length of a queue may cost more than to send to it. So what was sent is counted
//! as if none of it had been taken, and only when that is too much somebody has to look.

use std::collections::VecDeque;

/// Octets in a queue that are too many whatever the mark is: a mark counts messages, and a
/// message is a buffer's worth of frames, or one body of any size.
const HIGH_WATER_OCTETS: usize = 32 * 1024 * 1024;

/// What may be in a consumer's queue.
#[derive(Debug)]
pub struct Flow {
    /// Messages that are too many.
    high_water: usize,
    /// The octets of each message that may still be there, and of all of them.
    messages: VecDeque<usize>,
    octets: usize,
    /// Messages of others that were in the queue when it was too long. They may stay there.
    foreign: usize,
    paused: bool,
}

impl Flow {
    /// An empty queue, in which `high_water` messages are too many.
    pub fn new(high_water: usize) -> Flow {
        Flow {
            high_water,
            messages: VecDeque::new(),
            octets: 0,
            foreign: 0,
            paused: false,
        }
    }

    /// Accounts for a message of `octets`.
    pub fn sent(&mut self, octets: usize) {
        self.messages.push_back(octets);
        self.octets += octets;
    }

    /// Whether it is time to look at the queue.
    pub fn is_full(&self) -> bool {
        self.exceeds(self.high_water, HIGH_WATER_OCTETS)
    }

    /// There are `queued` messages in the queue: is that few enough to go on? Once it was too
    /// many it has to be half as many, so that a consumer that is behind gets more at a time.
    pub fn looked(&mut self, queued: usize) -> bool {
        self.foreign = match self.paused {
            true => self.foreign.min(queued),
            false => queued.saturating_sub(self.messages.len()),
        };
        while self.messages.len() > queued - self.foreign {
            self.octets -= self.messages.pop_front().unwrap_or(0);
        }
        self.paused = match self.paused {
            true => self.exceeds(self.high_water / 2 + 1, HIGH_WATER_OCTETS / 2),
            false => self.is_full(),
        };
        !self.paused
    }

    /// Whether it was too many when last looked at.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn exceeds(&self, messages: usize, octets: usize) -> bool {
        self.messages.len() >= messages || self.octets >= octets && !self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(high_water: usize) -> Flow {
        let mut flow = Flow::new(high_water);
        while !flow.is_full() {
            flow.sent(1);
        }
        flow
    }

    #[test]
    fn a_consumer_that_keeps_up_is_looked_at_once_in_as_many_messages_as_the_mark() {
        let mut flow = filled(64);
        assert_eq!(flow.messages.len(), 64);
        assert!(flow.looked(0));
        assert!(!flow.is_full());
        assert_eq!(flow.octets, 0);
    }

    #[test]
    fn a_consumer_that_is_behind_has_to_take_half() {
        let mut flow = filled(64);
        assert!(!flow.looked(64));
        assert!(!flow.looked(33));
        assert!(flow.looked(32));
        flow.sent(1);
        assert!(!flow.is_full());
    }

    #[test]
    fn messages_of_others_that_stay_in_the_queue_do_not_stop_it() {
        let mut flow = Flow::new(64);
        flow.sent(1);
        assert!(flow.looked(10_000));

        let mut flow = filled(64);
        assert!(!flow.looked(64 + 100));
        assert!(!flow.looked(33 + 100));
        assert!(flow.looked(32 + 100));
    }

    #[test]
    fn large_bodies_are_too_much_before_they_are_too_many() {
        let mut flow = Flow::new(64);
        flow.sent(HIGH_WATER_OCTETS);
        assert!(flow.is_full());
        assert!(!flow.looked(1));
        assert!(flow.looked(0));
    }

    #[test]
    fn a_mark_of_zero_or_one_still_lets_messages_through() {
        for high_water in [0, 1] {
            let mut flow = filled(high_water.max(1));
            flow.high_water = high_water;
            assert!(!flow.looked(1));
            assert!(flow.looked(0));
        }
    }
}
