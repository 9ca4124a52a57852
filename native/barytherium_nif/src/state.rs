//! What a slice works on: bytes that were read are decoded and delivered, as far as its budget goes.
//! [`reader`] reads them.

mod reader;

use crate::account::Account;
use crate::atoms;
use crate::busy::{Busy, FRAME_WORK, HEADER_WORK};
use crate::delivery::{Delivery, Failure, Flushed, Step};
use crate::socket::Ending;
use crate::stats::Stats;
use crate::terms::BinaryBody;
use rustler::{Atom, Env, ResourceArc};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use stomp::{Event, ParseError, Resume, Session};

/// Octets that were read without finding the socket empty, which make a burst. Only a burst is read
/// in slices on dirty threads, where a busy machine may let it wait for a processor, and only in a
/// burst does a slice linger. A peer that sends little never gets a thread, however often it sends.
const BURST: usize = 64 * 1024;

/// How much is done at once on an ordinary scheduler: a quarter of the millisecond that it may be
/// held for.
const INLINE_WORK: usize = 1024 * 1024;

/// How much more may be done, so that what was read is not left over.
const OVERRUN: usize = 1536 * 1024;

/// Now, as the session counts time.
pub fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// A connection's session, and what is on its way from the socket to the listener.
pub struct State {
    pub session: Session<BinaryBody>,
    /// Bytes that were read, and how many of them have been decoded.
    pending: Vec<u8>,
    decoded: usize,
    /// None for no back-pressure.
    account: Option<Account>,
    paused: bool,
    /// What has been done so far, and what is enough before others get the thread.
    work: usize,
    enough: usize,
    /// The work that an octet made when it was last read.
    density: usize,
    /// Octets that were read since there were none.
    streak: usize,
    /// How often to look for more before waiting for it.
    looks: u8,
    busy: Option<Busy>,
    pub stats: ResourceArc<Stats>,
    pub ended: bool,
    /// What becomes of its socket then.
    pub ending: Ending,
}

impl State {
    pub fn new(
        session: Session<BinaryBody>,
        pending: Vec<u8>,
        account: Option<Account>,
        stats: ResourceArc<Stats>,
    ) -> State {
        if !pending.is_empty() {
            stats.read(pending.len(), now());
        }
        State {
            session,
            pending,
            decoded: 0,
            account,
            paused: false,
            work: 0,
            enough: 0,
            density: 1,
            streak: 0,
            looks: 0,
            busy: None,
            stats,
            ended: false,
            ending: Ending::Shutdown,
        }
    }

    /// Whether the connection may go on after it was full. The peer was not silent while nobody
    /// listened to it.
    pub fn resume(&mut self) -> Resume {
        let resume = self.account.as_mut().map_or(Resume::Go, Account::resume);
        self.note(resume)
    }

    /// The same, with `queued` messages in the listener's mailbox.
    pub fn looked(&mut self, env: Env, queued: usize) -> Resume {
        let account = self.account.as_mut();
        let resume = account.map_or(Resume::Go, |account| account.looked(env, queued, now()));
        self.note(resume)
    }

    fn note(&mut self, resume: Resume) -> Resume {
        match resume {
            Resume::Go => {
                self.paused = false;
                self.session.touch(now());
            }
            Resume::Wait(_) if !self.paused => {
                self.paused = true;
                self.busy = None;
                self.stats.pauses.add(1);
            }
            Resume::Wait(_) | Resume::Look(_) => {}
        }
        resume
    }

    /// `octets` were read.
    pub fn account(&mut self, octets: usize) {
        let now = now();
        self.session.touch(now);
        self.work += octets;
        self.streak += octets;
        self.stats.read(octets, now);
    }

    /// There is nothing to read: is the peer dead, and if not, when would it be?
    pub fn wait<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        if let Some(step) = self.flush(delivery) {
            return step;
        }
        if let Some(account) = &mut self.account {
            account.rest();
        }
        self.busy = None;
        self.streak = 0;
        self.session.decoder().release_memory();
        self.stats.waits.add(1);
        let left = match self.left() {
            None => return Step::Wait(None),
            Some(Duration::ZERO) => return self.end(delivery, atoms::timeout()),
            Some(left) => left,
        };
        // Rounded up: a process that wakes too early would only wait again.
        let millis = left.as_nanos().div_ceil(1_000_000);
        Step::Wait(Some(millis.try_into().unwrap_or(u64::MAX)))
    }

    /// There may be more to read. Endless heart-beats are no reply to a CONNECT; else something has
    /// just been read.
    fn more<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        if let Some(step) = self.flush(delivery) {
            return step;
        }
        match self.left() {
            Some(Duration::ZERO) if self.session.awaits_first() => {
                self.end(delivery, atoms::timeout())
            }
            _ => self.turn(),
        }
    }

    /// The next turn: on a dirty thread only in a burst.
    pub fn turn<'a>(&self) -> Step<'a> {
        if self.streak >= BURST {
            Step::Again
        } else {
            Step::Yield
        }
    }

    /// The time until the deadline, if there is one.
    fn left(&self) -> Option<Duration> {
        let deadline = self.session.deadline()?;
        Some(deadline.saturating_sub(now()))
    }

    /// Decodes `bytes`, after what is pending.
    pub fn take<'a>(&mut self, bytes: &[u8], delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        self.enough = self.work + INLINE_WORK;
        let step = self.decode_pending(delivery);
        if step.is_some() {
            self.pending.extend_from_slice(bytes);
            return step;
        }
        self.decode(bytes, delivery)
    }

    fn decode_pending<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        let pending = std::mem::take(&mut self.pending);
        let mut input = &pending[std::mem::take(&mut self.decoded)..];
        let step = self.decode_front(&mut input, delivery);
        if !input.is_empty() {
            self.decoded = pending.len() - input.len();
            self.pending = pending;
        }
        step
    }

    fn decode<'a>(
        &mut self,
        mut bytes: &[u8],
        delivery: &mut Delivery<'a, '_>,
    ) -> Option<Step<'a>> {
        let step = self.decode_front(&mut bytes, delivery);
        if !bytes.is_empty() {
            self.pending = bytes.to_vec();
        }
        step
    }

    /// Decodes `input`, as far as there is no other step than to go on, and delivers what is enough
    /// for a message.
    fn decode_front<'a>(
        &mut self,
        input: &mut &[u8],
        delivery: &mut Delivery<'a, '_>,
    ) -> Option<Step<'a>> {
        let started = now();
        let step = self.decode_frames(input, delivery);
        self.stats.parsed(now() - started);
        if self.ended {
            *input = &[];
        }
        step
    }

    fn decode_frames<'a>(
        &mut self,
        input: &mut &[u8],
        delivery: &mut Delivery<'a, '_>,
    ) -> Option<Step<'a>> {
        loop {
            match self.session.next(input) {
                Ok(Some(Event::Frame(frame))) => {
                    self.work += FRAME_WORK + HEADER_WORK * delivery.push(frame);
                    let overrun = self.work >= self.enough + OVERRUN;
                    if (delivery.is_enough() || overrun)
                        && let Some(step) = self.flush(delivery)
                    {
                        return Some(step);
                    }
                    if overrun {
                        return Some(self.turn());
                    }
                }
                Ok(Some(Event::Connected(frame))) => {
                    self.stats.frames.add(1);
                    return Some(Step::Connected(delivery.connected(frame)));
                }
                Ok(Some(Event::Refused(frame))) => {
                    let message = frame.header(b"message").unwrap_or_default().into_owned();
                    delivery.push(frame);
                    self.end(delivery, atoms::closed());
                    return Some(Step::Stop(atoms::closed(), Some(Failure::Refused(message))));
                }
                Ok(None) => return None,
                Err(error) => return Some(self.refuse(error, delivery)),
            }
        }
    }

    /// Delivers what was decoded. A step if the listener is gone, or may be behind.
    fn flush<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        match self.deliver(delivery) {
            Flushed::Nothing => None,
            Flushed::NoListener => Some(self.end_without_listener(delivery)),
            Flushed::Sent(octets) => {
                let may_send = self.account.as_mut()?.sent(octets);
                (!may_send).then_some(Step::Full)
            }
        }
    }

    /// Counted first: who has got a frame finds it counted.
    fn deliver(&self, delivery: &mut Delivery) -> Flushed {
        self.stats.frames.add(delivery.pushed());
        delivery.flush()
    }

    fn refuse<'a>(&mut self, error: ParseError, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        self.end(delivery, atoms::parse_error());
        Step::Stop(atoms::parse_error(), Some(Failure::Parse(error)))
    }

    /// Ends the connection: delivers what came before.
    pub fn end<'a>(&mut self, delivery: &mut Delivery<'a, '_>, reason: Atom) -> Step<'a> {
        self.deliver(delivery);
        self.busy = None;
        self.ended = true;
        Step::Stop(reason, None)
    }

    /// Nobody listens: there is no reason to go on. What was written is still to be sent.
    pub fn end_without_listener<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        self.ending = Ending::LeftToOwner;
        self.end(delivery, atoms::no_listener())
    }

    /// Ends the connection for a reason that was found elsewhere. What has been read is decoded and
    /// delivered first, however much the listener has not taken yet.
    pub fn disconnect<'a>(&mut self, delivery: &mut Delivery<'a, '_>, reason: Atom) -> Step<'a> {
        let pending = std::mem::take(&mut self.pending);
        let mut input = &pending[std::mem::take(&mut self.decoded)..];
        loop {
            match self.session.next(&mut input) {
                Ok(Some(Event::Frame(frame) | Event::Refused(frame))) => {
                    delivery.push(frame);
                    if delivery.is_enough() {
                        self.deliver(delivery);
                    }
                }
                Ok(Some(Event::Connected(frame))) => {
                    self.stats.frames.add(1);
                    delivery.connected(frame);
                }
                Ok(None) | Err(_) => return self.end(delivery, reason),
            }
        }
    }

    /// The connection is over, and so is its part in the listener's account.
    pub fn leave_account(&mut self, env: Env) {
        if let Some(account) = self.account.take() {
            account.close(env);
        }
    }
}
