//! The frames of a call that wait to be sent: a batch for each recipient.
//!
//! A process gets its frames in the order on the wire, whatever their subscriptions. The listener gets
//! its frames in order with those of all others: a RECEIPT comes after the messages before it. So its
//! batch is never beside others.

use crate::routes::Route;
use crate::terms::MessageBatch;

/// With one recipient more, what waits is sent first. A call reads some 800 frames of 256 bytes. More
/// recipients that take turns would get one or two each, which is not worth a search for their batch.
/// And a thread keeps the memory of its batches, a few kilobytes each.
const RECIPIENTS_MAX: usize = 256;

/// The batches of a thread. There are none between calls.
#[derive(Default)]
pub struct Batches {
    /// How the frames of each batch go: None to the listener.
    routes: Vec<Option<Route>>,
    /// As many, and empty ones for later.
    batches: Vec<MessageBatch>,
    /// The batch of the last frame.
    current: usize,
}

/// What has to be sent before the next frame can be added.
pub enum SendFirst {
    Nothing,
    /// The current batch. It gets another [route](Batches::set_route) then: one of the same recipient, or it
    /// was the listener's.
    Current,
    /// All batches. A new one is to be [opened](Batches::open) then.
    All,
}

impl Batches {
    /// Makes the batch for frames that go by `route` the current one.
    pub fn select(&mut self, route: Option<Route>) -> SendFirst {
        if self.routes.get(self.current) == Some(&route) {
            return SendFirst::Nothing;
        }
        let Some(Route { recipient, .. }) = route else {
            return SendFirst::All;
        };
        let in_its_way = |other: &Option<Route>| other.is_none_or(|o| o.recipient == recipient);
        match self.routes.iter().position(in_its_way) {
            Some(at) => {
                self.current = at;
                match self.routes[at] == route {
                    true => SendFirst::Nothing,
                    false => SendFirst::Current,
                }
            }
            None if self.routes.len() == RECIPIENTS_MAX => SendFirst::All,
            None => {
                self.open(route);
                SendFirst::Nothing
            }
        }
    }

    /// Makes a new batch the current one.
    pub fn open(&mut self, route: Option<Route>) {
        self.current = self.routes.len();
        if self.batches.len() == self.current {
            self.batches.push(MessageBatch::new());
        }
        self.routes.push(route);
    }

    /// The current batch was sent. Its next frames go by `route`.
    pub fn set_route(&mut self, route: Option<Route>) {
        self.routes[self.current] = route;
    }

    /// All batches were sent.
    pub fn close(&mut self) {
        self.routes.clear();
        self.current = 0;
    }

    /// Forgets what a call has left that panicked.
    pub fn clear(&mut self) {
        let opened = &mut self.batches[..self.routes.len()];
        opened.iter_mut().for_each(MessageBatch::clear);
        self.close();
    }

    /// How many batches there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether frames wait.
    pub fn has_frames(&mut self) -> bool {
        let mut opened = self.batches[..self.routes.len()].iter_mut();
        opened.any(|batch| batch.with(|_env, batch| batch.len() > 0))
    }

    /// The index of the batch of the last frame.
    pub fn current(&self) -> usize {
        self.current
    }

    /// A batch.
    pub fn get(&mut self, at: usize) -> &mut MessageBatch {
        &mut self.batches[at]
    }

    /// How its frames go.
    pub fn route(&self, at: usize) -> Option<Route> {
        self.routes[at]
    }
}
