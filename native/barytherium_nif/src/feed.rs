//! What has come to a subscription, for whoever asks whether its feed is well.

use crate::clock::now;
use rustler::{NifMap, ResourceArc};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stomp::Frame;

/// The lag is looked at once in so many messages, after a pause, and while it is large, so that it is not told for
/// longer than it lasts: looking up a header takes a tenth of the time of a small frame.
const LAG_STRIDE: u64 = 16;
const PAUSE: Duration = Duration::from_millis(100);
const LARGE_LAG: i64 = 100;

/// Timestamps below it are in seconds, as AMQP has them: in milliseconds it would be 1973, in seconds it is 5138.
const SECONDS_BELOW: u64 = 100_000_000_000;

/// No number of a sequence is as large.
const NO_NUMBER: u64 = u64::MAX;
const NO_LAG: i64 = i64::MIN;

/// The counters of a subscription. They outlive its connections, so that it is seen what was missed between two of
/// them. One receive loop at a time writes them, see [`Counting`].
pub struct Feed {
    timestamp: Option<Box<[u8]>>,
    sequence: Option<Sequence>,
    messages: AtomicU64,
    bytes: AtomicU64,
    /// When the last one was read, in nanoseconds of `clock::now`; 0 if there was none.
    last: AtomicU64,
    /// Milliseconds from the timestamp of a message to its arrival.
    lag: AtomicI64,
    gaps: AtomicU64,
    missing: AtomicU64,
    repeats: AtomicU64,
    /// The next number of the sequence.
    expected: AtomicU64,
    /// How many connections have begun to count.
    connections: AtomicU64,
}

/// A connection that counts until another one begins to: what still comes on the old one is delivered again on the new
/// one.
#[derive(Clone)]
pub struct Counting {
    feed: ResourceArc<Feed>,
    connection: u64,
}

impl Counting {
    pub fn begin(feed: ResourceArc<Feed>) -> Counting {
        let connection = feed.connections.fetch_add(1, Relaxed) + 1;
        Counting { feed, connection }
    }

    /// A message that was read at `time` of the clock.
    pub fn message<B: AsRef<[u8]>>(&self, frame: &Frame<'_, B>, time: Duration) {
        if self.feed.connections.load(Relaxed) == self.connection {
            self.feed.message(frame, time);
        }
    }
}

/// A header whose numbers grow by one, and begin again with 0 after so many.
pub struct Sequence {
    pub header: Box<[u8]>,
    pub numbers: u64,
}

impl Sequence {
    /// The sum of two numbers has to fit.
    pub const NUMBERS_MAX: u64 = 1 << 62;
}

#[rustler::resource_impl]
impl rustler::Resource for Feed {}

/// A feed as it is at a moment. Times are in milliseconds.
#[derive(NifMap)]
pub struct Report {
    messages: u64,
    bytes: u64,
    /// Since the last message; None if there was none.
    idle: Option<u64>,
    lag: Option<i64>,
    gaps: u64,
    missing: u64,
    repeats: u64,
}

impl Feed {
    pub fn new(timestamp: Option<Box<[u8]>>, sequence: Option<Sequence>) -> Feed {
        Feed {
            timestamp,
            sequence,
            messages: AtomicU64::default(),
            bytes: AtomicU64::default(),
            last: AtomicU64::default(),
            lag: AtomicI64::new(NO_LAG),
            gaps: AtomicU64::default(),
            missing: AtomicU64::default(),
            repeats: AtomicU64::default(),
            expected: AtomicU64::new(NO_NUMBER),
            connections: AtomicU64::default(),
        }
    }

    fn message<B: AsRef<[u8]>>(&self, frame: &Frame<'_, B>, time: Duration) {
        let number = self.messages.load(Relaxed);
        self.messages.store(number + 1, Relaxed);
        add(&self.bytes, frame.body.as_ref().len() as u64);
        let last = self.last.swap(time.as_nanos() as u64, Relaxed);
        let pause = time.saturating_sub(Duration::from_nanos(last));
        if let Some(header) = &self.timestamp
            && (number.is_multiple_of(LAG_STRIDE)
                || pause >= PAUSE
                || self.lag.load(Relaxed) > LARGE_LAG)
            && let Some(sent @ 1..) = value(frame, header)
        {
            let sent = match sent < SECONDS_BELOW {
                true => sent * 1_000,
                false => sent,
            };
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.unwrap_or_default().as_millis() as i64;
            self.lag.store(now.saturating_sub_unsigned(sent), Relaxed);
        }
        if let Some(sequence) = &self.sequence
            && let Some(number) = value(frame, &sequence.header)
        {
            self.next_in(sequence, number);
        }
    }

    fn next_in(&self, sequence: &Sequence, number: u64) {
        let expected = self.expected.load(Relaxed);
        let numbers = sequence.numbers;
        let ahead = match expected {
            NO_NUMBER => 0,
            _ => (number % numbers + numbers - expected) % numbers,
        };
        // What is far ahead in a circle is behind.
        if ahead > numbers / 2 {
            add(&self.repeats, 1);
            return;
        }
        if ahead > 0 {
            add(&self.gaps, 1);
            add(&self.missing, ahead);
        }
        self.expected
            .store((number % numbers + 1) % numbers, Relaxed);
    }

    pub fn report(&self) -> Report {
        let last = self.last.load(Relaxed);
        let lag = self.lag.load(Relaxed);
        Report {
            messages: self.messages.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            idle: (last != 0).then(|| (now().as_nanos() as u64).saturating_sub(last) / 1_000_000),
            lag: (lag != NO_LAG).then_some(lag),
            gaps: self.gaps.load(Relaxed),
            missing: self.missing.load(Relaxed),
            repeats: self.repeats.load(Relaxed),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

/// The number in a header.
fn value<B>(frame: &Frame<'_, B>, name: &[u8]) -> Option<u64> {
    let value = frame.header(name)?;
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}
