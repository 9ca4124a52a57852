//! What a connection keeps from one call to the next.

use crate::batches::Batches;
use crate::budget::Budget;
use crate::delivery::{Address, Delivery};
use crate::recipients::Recipients;
use crate::slice::Slice;
use crate::socket::{Ending, Socket};
use crate::stats::Stats;
use crate::terms::BinaryBody;
use crate::tls::Tls;
use crate::turn::Place;
use rustler::{Env, ResourceArc};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use stomp::{Resume, Session};

/// Now, as sessions count time.
pub fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// A connection that has not ended.
pub struct State {
    pub session: Session<BinaryBody>,
    /// None if the bytes come from elsewhere.
    pub transport: Option<Transport>,
    pub undecoded: Undecoded,
    pub budget: Budget,
    /// Who gets the frames, and what they have not taken.
    pub recipients: Recipients,
    /// None if the connection does not share the processors with others: nothing is read here, or
    /// sending to the listener may block its process.
    pub place: Option<Place>,
    pub stats: ResourceArc<Stats>,
    /// The socket option: a reset is a reason of its own, and not `closed`.
    pub show_econnreset: bool,
    /// Whether bodies may share a binary.
    pub share_bodies: bool,
    /// Whether the connection waits for its listener.
    pub paused: bool,
}

impl State {
    /// Whether the connection may go on after it was full.
    pub fn resume(&mut self, env: Env) -> Resume {
        let resume = self.recipients.resume(env);
        self.note(resume)
    }

    /// The same, with `queued` messages in the mailbox of the process that it waits for.
    pub fn looked(&mut self, env: Env, queued: usize) -> Resume {
        let resume = self.recipients.looked(env, queued);
        self.note(resume)
    }

    fn note(&mut self, resume: Resume) -> Resume {
        match resume {
            Resume::Go => {
                self.paused = false;
                // The peer was not silent while nobody listened to it.
                self.session.touch(now());
            }
            Resume::Wait(_) if !self.paused => {
                self.paused = true;
                self.stats.pauses.add(1);
            }
            Resume::Wait(_) | Resume::Look(_) => {}
        }
        resume
    }

    /// A slice of this connection, and what it reads from. `batches` are the thread's.
    pub fn slice<'a, 's>(
        &'s mut self,
        env: Env<'a>,
        to: Address<'a>,
        batches: &'s mut Batches,
    ) -> (Slice<'a, 's>, Option<&'s Transport>) {
        let (recipients, stats) = (&mut self.recipients, &*self.stats);
        let delivery = Delivery::new(env, to, batches, recipients, stats, self.share_bodies);
        let slice = Slice {
            env,
            session: &mut self.session,
            undecoded: &mut self.undecoded,
            budget: &mut self.budget,
            place: self.place.as_mut(),
            stats: &self.stats,
            delivery,
            show_econnreset: self.show_econnreset,
            owes: false,
        };
        (slice, self.transport.as_ref())
    }

    /// What becomes of the socket after an orderly end.
    pub fn ending(&self, ending: Ending) -> Ending {
        match &self.transport {
            // The owner still has to send an alert.
            Some(Transport { tls: Some(_), .. }) => Ending::LeftToOwner,
            _ => ending,
        }
    }

    /// Closes the duplicate, and lets others that wait for the listener or for a turn go on.
    pub fn stop(self, env: Env, ending: Ending) {
        if let Some(transport) = self.transport {
            transport.socket.stop(env, ending);
        }
        self.recipients.close(env);
        if let Some(mut place) = self.place {
            place.leave(env);
        }
    }
}

/// What a connection reads from.
pub struct Transport {
    pub socket: Socket,
    /// What decrypts the bytes of the socket. None for plain TCP.
    pub tls: Option<ResourceArc<Tls>>,
}

/// Bytes that were read and not decoded.
#[derive(Default)]
pub struct Undecoded {
    bytes: Vec<u8>,
    /// How many bytes at the beginning have been decoded after all.
    decoded: usize,
}

impl Undecoded {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.decoded..]
    }

    /// All but the last `count` bytes have been decoded.
    pub fn keep_last(&mut self, count: usize) {
        self.decoded = self.bytes.len() - count;
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl From<Vec<u8>> for Undecoded {
    fn from(bytes: Vec<u8>) -> Self {
        Undecoded { bytes, decoded: 0 }
    }
}
