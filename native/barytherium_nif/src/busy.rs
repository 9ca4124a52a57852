//! Fairness: how much a slice does, by how many connections want one.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How much a slice does before it lets other connections have the thread: about a millisecond's
/// worth. Counted in octets; a frame takes as long as reading so many more.
const SLICE_WORK: usize = 4 * 1024 * 1024;
pub const FRAME_WORK: usize = 2560;

/// The same for a header that is not that of the frame before: a tuple and up to two binaries.
pub const HEADER_WORK: usize = 512;

/// The more connections are busy, the less each of them does in its turn, down to what still takes
/// many times longer than the turn's beginning and end.
const SLICE_WORK_MIN: usize = 256 * 1024;

static BUSY: AtomicUsize = AtomicUsize::new(0);

/// There is one for each connection that had more to read when its slice ended.
pub struct Busy;

impl Busy {
    pub fn new() -> Busy {
        BUSY.fetch_add(1, Relaxed);
        Busy
    }

    /// A slice's share of the work.
    pub fn share() -> usize {
        (SLICE_WORK / BUSY.load(Relaxed).max(1)).max(SLICE_WORK_MIN)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Relaxed);
    }
}
