//! What a connection has done so far. Counters are updated once for each call or read, which costs
//! next to nothing.

use rustler::NifMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The counters of a connection. They are a resource of their own, so that other processes can read
/// them.
#[derive(Default)]
pub struct Stats {
    pub frames: Counter,
    /// Bytes read.
    pub bytes: Counter,
    pub slices: Counter,
    /// How often there was nothing to read.
    pub waits: Counter,
    /// How often the listener was too far behind.
    pub pauses: Counter,
    /// Bodies that were inflated, and those that could not be.
    pub inflated: Counter,
    pub not_inflated: Counter,
    parse_nanos: Counter,
    /// When something was read last, in nanoseconds of `state::now`; 0 if never.
    last_read: AtomicU64,
}

#[rustler::resource_impl]
impl rustler::Resource for Stats {}

/// Only ever added to, by one thread at a time.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Stats {
    pub fn has_read(&self, bytes: usize, now: Duration) {
        self.bytes.add(bytes);
        self.last_read.store(now.as_nanos() as u64, Relaxed);
    }

    /// Adds the time that decoding and making terms took.
    pub fn parsed(&self, time: Duration) {
        self.parse_nanos.add(time.as_nanos() as usize);
    }

    /// What they are at `now`.
    pub fn read(&self, now: Duration) -> Counters {
        Counters {
            frames: self.frames.get(),
            bytes: self.bytes.get(),
            slices: self.slices.get(),
            waits: self.waits.get(),
            pauses: self.pauses.get(),
            inflated: self.inflated.get(),
            not_inflated: self.not_inflated.get(),
            parse_time: self.parse_nanos.get() / 1000,
            idle: match self.last_read.load(Relaxed) {
                0 => None,
                last => Some((now.as_nanos() as u64).saturating_sub(last) / 1_000_000),
            },
        }
    }
}

/// The counters as they are at a moment.
#[derive(NifMap)]
pub struct Counters {
    frames: u64,
    bytes: u64,
    slices: u64,
    waits: u64,
    pauses: u64,
    inflated: u64,
    not_inflated: u64,
    /// Microseconds.
    parse_time: u64,
    /// Milliseconds since something was read last; None if nothing was.
    idle: Option<u64>,
}
