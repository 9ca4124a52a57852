//! How much one turn of a connection does, and when a connection may have a thread of its own.
//!
//! Work is counted in bytes that were read. Making a frame's terms takes as long as reading a few
//! thousand bytes, and is counted so.

use std::time::Duration;

/// The work of making a frame's terms, in bytes read.
const FRAME_WORK: usize = 2560;

/// The work of a header that is the same as in the frame before for its recipient.
const HEADER_WORK: usize = 32;

/// The work for each byte of a new header's terms. A tuple and a binary of 40 bytes take 80 bytes.
const HEADER_BYTE_WORK: usize = 6;

/// The work of decrypting a byte, with AES on a common processor: as much as of reading it.
const DECRYPTING_WORK: usize = 1;

/// The work of a TLS record besides its bytes: about 0.25 us.
const RECORD_WORK: usize = 1024;

/// The work of a WebSocket frame besides its bytes: about 20 ns.
const UNFRAMING_WORK: usize = 80;

/// The work of a nanosecond. How long inflating takes cannot be told from the bytes: a peer can make each of them cost
/// twenty times as much as those of text.
const NANOSECOND_WORK: usize = 4;

/// The work of a turn on a dirty thread: about a millisecond.
const DIRTY_WORK: usize = 4 * 1024 * 1024;

/// The work of a turn on an ordinary scheduler, which may be held for a millisecond: about 0.25 ms.
const INLINE_WORK: usize = 1024 * 1024;

/// A turn may exceed its work by this much to finish decoding what it has read.
const DIRTY_OVERRUN: usize = 1536 * 1024;
const INLINE_OVERRUN: usize = 512 * 1024;

/// A call reads no more after this time, however little it has done. Otherwise a peer that sends as
/// fast as single bytes are read could keep a thread.
pub const DIRTY_TIME: Duration = Duration::from_millis(5);

/// Bytes that were read without finding the socket empty. More than this make a burst. Only a burst
/// is read on dirty threads, where a busy machine may let it wait for a processor, and only in a
/// burst does a call linger. A peer that sends little never gets a thread, however often it sends.
const BURST: usize = 64 * 1024;

/// While connections wait for a turn, one that has read this much must wait too. Otherwise it would
/// overtake them. A single frame of common size is less.
const CROWDED_BURST: usize = 32 * 1024;

/// The size of a read on a dirty thread. A read wakes the peer when it has made room, so large reads
/// leave more of the processor to both. A larger buffer would not stay in the second-level cache
/// until it is decoded. A smaller read is not worth its system call.
const READ_MAX: usize = 512 * 1024;
const READ_MIN: usize = 32 * 1024;

/// The size of a read of a turn on an ordinary scheduler, at most. Escapes in headers take several times
/// as long as other bytes, and are counted only when their frame is complete.
const INLINE_READ_MAX: usize = 128 * 1024;

/// The size of a read outside a burst: the largest TLS record, of 16 KiB and its overhead.
pub const SMALL_READ: usize = 17 * 1024;

/// After a frame was delivered, the socket is read this many more times before we wait for it. Other
/// processes run between these reads. A frame often causes the next one, and on a busy VM the thread
/// that reports the socket has to get a processor first. More looks gain next to nothing; each takes
/// about a microsecond.
const LOOKS: u8 = 8;

/// What a connection has done, and what it may do.
#[derive(Default)]
pub struct Budget {
    work: usize,
    /// After this much work the turn reads no more.
    enough: usize,
    /// After this much work the turn ends.
    limit: usize,
    /// The size of a read, at most.
    read_max: usize,
    /// Work for each byte of the last read.
    density: usize,
    /// Bytes that were read since the socket was last empty.
    streak: usize,
    looks: u8,
}

impl Budget {
    /// A turn on a dirty thread begins.
    pub fn start_dirty(&mut self) {
        self.enough = self.work + DIRTY_WORK;
        self.limit = self.enough + DIRTY_OVERRUN;
        self.read_max = READ_MAX;
    }

    /// A turn on an ordinary scheduler begins.
    pub fn start_inline(&mut self) {
        self.enough = self.work + INLINE_WORK;
        self.limit = self.enough + INLINE_OVERRUN;
        self.read_max = INLINE_READ_MAX;
    }

    /// The last turn begins: what was read is decoded, however much it is.
    pub fn start_last(&mut self) {
        self.limit = usize::MAX;
    }

    /// `bytes` were read.
    pub fn read(&mut self, bytes: usize) {
        self.work += bytes;
        self.streak += bytes;
    }

    /// `bytes` in `records` records were decrypted.
    pub fn decrypted(&mut self, bytes: usize, records: usize) {
        self.work += DECRYPTING_WORK * bytes + RECORD_WORK * records;
    }

    /// The headers of so many WebSocket frames were read.
    pub fn unframed(&mut self, frames: usize) {
        self.work += UNFRAMING_WORK * frames;
    }

    /// A frame with `headers` headers was made. The terms of those that are not headers of the frame
    /// before take `bytes` bytes.
    pub fn frame(&mut self, headers: usize, bytes: usize) {
        self.work += FRAME_WORK + HEADER_WORK * headers + HEADER_BYTE_WORK * bytes;
    }

    /// Something took this long.
    pub fn took(&mut self, time: Duration) {
        self.work += NANOSECOND_WORK * time.as_nanos() as usize;
    }

    /// The work that is left for this turn.
    pub fn left(&self) -> usize {
        self.enough.saturating_sub(self.work)
    }

    /// Whether the turn should not read any more.
    pub fn is_spent(&self) -> bool {
        self.work >= self.enough
    }

    /// Whether the turn has to end even if something is left over of what was read.
    pub fn is_overrun(&self) -> bool {
        self.work >= self.limit
    }

    /// What has been done so far.
    pub fn work(&self) -> usize {
        self.work
    }

    /// `bytes` were read and decoded, which took the work since `before`.
    pub fn learn(&mut self, before: usize, bytes: usize) {
        self.density = (self.work - before) / bytes;
    }

    /// The size of the next read. The rest of the budget should suffice to decode it, because what
    /// is left over has to be copied.
    pub fn read_size(&self) -> usize {
        let bytes = self.left() / self.density.max(1);
        bytes.clamp(READ_MIN, self.read_max)
    }

    /// How much of the timeslice of a process the work since `before` takes, in percent.
    pub fn timeslice(&self, before: usize) -> i32 {
        let percent = (self.work - before) * 100 / DIRTY_WORK;
        percent.clamp(1, 100) as i32
    }

    /// Whether the peer has sent a lot without a pause.
    pub fn is_burst(&self) -> bool {
        self.streak >= BURST
    }

    /// Whether the peer has sent enough to take turns with others that wait.
    pub fn is_crowding(&self) -> bool {
        self.streak >= CROWDED_BURST
    }

    /// The socket is empty.
    pub fn end_burst(&mut self) {
        self.streak = 0;
    }

    /// Something was delivered: the socket is to be looked at a few times before waiting for it.
    pub fn expect_more(&mut self) {
        self.looks = LOOKS;
    }

    /// Whether to look at the socket once more before waiting for it.
    pub fn look(&mut self) -> bool {
        let again = self.looks > 0;
        self.looks = self.looks.saturating_sub(1);
        again
    }
}
