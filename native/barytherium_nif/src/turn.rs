//! One connection's place among those that have a lot to read, in the whole VM.
//!
//! A turn runs on a dirty thread while nobody waits for one: reading and consuming then go on in
//! parallel. If more connections want to read than there are schedulers, more threads would only
//! fight for the processors and for the allocators' locks. Turns are shorter then and run on the
//! connections' own schedulers, where the listeners find the terms in the cache.

use crate::atoms;
use crate::clock::now;
use crate::lock::lock;
use pacing::{Slots, Turn};
use rustler::{Env, LocalPid};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

static SLOTS: OnceLock<Mutex<Slots<LocalPid>>> = OnceLock::new();

/// Whether connections are queued.
static CROWDED: AtomicBool = AtomicBool::new(false);

/// Sets how many connections may read at the same time. Called by `load`.
pub fn init(slots: usize) {
    SLOTS.get_or_init(|| Mutex::new(Slots::new(slots)));
}

/// A connection's place.
pub struct Place {
    owner: LocalPid,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Queued,
    Holding,
}

impl Place {
    pub fn new(owner: LocalPid) -> Place {
        let stage = Stage::Idle;
        Place { owner, stage }
    }

    /// The connection has more to read. If it has to wait, its process gets a message when it is
    /// its turn.
    pub fn poll(&mut self, env: Env) -> Turn {
        let turn = with_slots(env, |slots| slots.poll(self.owner, now()));
        self.stage = match turn {
            Turn::Queued => Stage::Queued,
            Turn::Alone | Turn::Crowded => Stage::Holding,
        };
        turn
    }

    /// Whether the connection has to wait for its turn.
    pub fn is_queued(&mut self, env: Env) -> bool {
        if self.stage == Stage::Queued {
            self.poll(env);
        }
        self.stage == Stage::Queued
    }

    /// Whether the connection has a slot.
    pub fn is_holding(&self) -> bool {
        self.stage == Stage::Holding
    }

    /// There is nothing to read at the moment, or nobody to take it.
    pub fn leave(&mut self, env: Env) {
        if self.stage != Stage::Idle {
            self.stage = Stage::Idle;
            with_slots(env, |slots| slots.release(self.owner, now()));
        }
    }
}

/// Whether more connections want to read than may read at the same time.
pub fn is_crowded() -> bool {
    CROWDED.load(Relaxed)
}

/// Connections that have a turn or wait for one.
pub fn count() -> usize {
    lock(slots()).connections()
}

fn slots() -> &'static Mutex<Slots<LocalPid>> {
    SLOTS.get_or_init(|| Mutex::new(Slots::new(1)))
}

/// Changes the slots, and tells connections that it is their turn. If a process is dead, its monitor releases
/// the slot.
fn with_slots<T>(env: Env, change: impl FnOnce(&mut Slots<LocalPid>) -> T) -> T {
    let mut slots = lock(slots());
    let result = change(&mut slots);
    CROWDED.store(slots.is_crowded(), Relaxed);
    let woken = slots.take_woken();
    drop(slots);
    for owner in woken {
        _ = env.send(&owner, (atoms::barytherium(), atoms::turn()));
    }
    result
}
