//! What a connection keeps from one call to the next.

use crate::budget::Budget;
use crate::clock::now;
use crate::inflating::Inflating;
use crate::recipients::Recipients;
use crate::socket::Ending;
use crate::stats::Stats;
use crate::terms::BinaryBody;
use crate::transport::{Layers, Transport};
use crate::turn::Place;
use crate::undecoded::Undecoded;
use rustler::{Env, ResourceArc, Term};
use std::time::Duration;
use stomp::Session;

/// A connection that has not ended.
pub struct State {
    pub(super) session: Session<BinaryBody>,
    /// None if the bytes come from elsewhere.
    pub(super) transport: Option<Transport>,
    pub(super) layers: Layers,
    pub(super) undecoded: Undecoded,
    /// The last frame that was decoded, if its body is a large one to be inflated.
    pub(super) inflating: Option<Box<Inflating>>,
    pub(super) budget: Budget,
    /// Who gets the frames, and what they have not taken.
    pub(super) recipients: Recipients,
    /// None if the connection does not share the processors with others: nothing is read here, or
    /// sending to the listener may block its process.
    pub(super) place: Option<Place>,
    pub(super) stats: ResourceArc<Stats>,
    /// Whether the connection waits for a recipient.
    pub(super) is_paused: bool,
}

impl State {
    /// A connection that begins with `undecoded` bytes.
    pub fn new(
        session: Session<BinaryBody>,
        transport: Option<Transport>,
        layers: Layers,
        undecoded: Vec<u8>,
        mut recipients: Recipients,
        place: Option<Place>,
        stats: ResourceArc<Stats>,
    ) -> State {
        if !undecoded.is_empty() {
            stats.has_read(undecoded.len(), now());
            recipients.read_at = now();
        }
        State {
            session,
            transport,
            layers,
            undecoded: undecoded.into(),
            inflating: None,
            budget: Budget::default(),
            recipients,
            place,
            stats,
            is_paused: false,
        }
    }

    /// The descriptor is that of the socket that was meant.
    pub fn confirm(&mut self, owner: Term) {
        if let Some(transport) = &mut self.transport {
            transport.confirm(owner);
        }
    }

    /// Starts the heart-beats that the network agreed on.
    pub fn agree(&mut self, interval: Duration) {
        self.session.agree(interval, now());
    }

    /// What becomes of the socket after an orderly end.
    pub fn ending(&self, ending: Ending) -> Ending {
        self.layers.ending(ending)
    }

    /// Closes the duplicate, and lets others that wait for a recipient or for a turn go on.
    pub fn stop(self, env: Env, ending: Ending) {
        if let Some(transport) = self.transport {
            transport.stop(env, ending);
        }
        self.recipients.close(env);
        if let Some(mut place) = self.place {
            place.leave(env);
        }
    }
}
