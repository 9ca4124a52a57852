//! What a slice works on: reads, decodes and delivers until the socket is dry or its budget is
//! spent.

use crate::atoms;
use crate::busy::{Busy, FRAME_WORK};
use crate::delivery::{Delivery, Failure, Flushed, Step};
use crate::socket::Socket;
use crate::stats::Stats;
use crate::terms::BinaryBody;
use rustler::{Atom, ResourceArc};
use std::io::{self, ErrorKind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use stomp::{Event, Flow, ParseError, Session};

/// What a thread reads into. A read wakes the peer when it has made room, so fewer and larger ones
/// leave more of the processor to both; much more than this would not stay in the second-level
/// cache until it is decoded.
const RECEIVE_BUFFER: usize = 512 * 1024;

/// A body that lacks so much is likely to be followed by another of its kind, which is to be read
/// into its own place as well: no more is read along with it than that one's head.
const LARGE_BODY: usize = 64 * 1024;
const BEYOND_LARGE_BODY: usize = 4 * 1024;

/// Frames that are sent in one message, at most: with common headers 100 KiB of terms. Of much
/// larger messages a few in the mailbox make the listener's garbage collections so long that the
/// VM moves each of them to another thread.
const MESSAGE_FRAMES: usize = 256;

/// Octets that are enough for a message. Each message wakes the listener, and a body's octets are
/// not on its heap.
const MESSAGE_OCTETS: usize = 1024 * 1024;

/// How long a slice waits for more where it is: what going to sleep and being woken takes. A peer
/// that sends all the time, and is a little slower than the reading, then does not cost that at
/// every turn.
const LINGER: Duration = Duration::from_micros(100);

/// Octets that have to have been read since the last time that there were none, so that who sends
/// little cannot keep a thread by sending it often.
const LINGER_OCTETS: usize = 64 * 1024;

/// How much is read on an ordinary scheduler, where a wait for another thread would cost more than
/// the reading.
const INLINE_OCTETS: usize = 16 * 1024;

/// How much is done there: some 500 of the smallest frames, which take a quarter of the millisecond
/// that a scheduler may be held for. The rest is left to a slice.
const INLINE_WORK: usize = 2 * 1024 * 1024;

/// How often a connection that has just delivered a frame or two is looked at again before it is
/// waited for, each time after everybody else had a turn: what a frame brings about often brings
/// the next one, and on a busy VM the thread that would tell of it has to get a processor first.
/// More often gains next to nothing; each time takes about a microsecond.
const LOOKS: u8 = 8;

/// How long a slice lasts before the same, however little it has done: a peer that sends as fast
/// as single octets are read must not keep a thread either.
const SLICE_TIME: Duration = Duration::from_millis(5);

/// Now, as the session counts time.
pub fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// The first `size` octets of a thread's buffer, which has grown to what its thread reads at once.
fn room(buffer: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buffer.len() < size {
        buffer.resize(size, 0);
    }
    &mut buffer[..size]
}

/// A connection's session, and what is on its way from the socket to the listener.
pub struct State {
    pub session: Session<BinaryBody>,
    /// Bytes that were read, and how many of them have been decoded.
    pending: Vec<u8>,
    decoded: usize,
    /// None for no back-pressure.
    flow: Option<Flow>,
    /// Octets that were read since the last message.
    unsent: usize,
    /// What has been done so far, and what is enough before others get the thread.
    work: usize,
    enough: usize,
    /// Octets that were read since there were none.
    streak: usize,
    /// How often to look for more before waiting for it.
    looks: u8,
    busy: Option<Busy>,
    pub stats: ResourceArc<Stats>,
    pub ended: bool,
}

impl State {
    pub fn new(
        session: Session<BinaryBody>,
        pending: Vec<u8>,
        high_water_mark: Option<usize>,
        stats: ResourceArc<Stats>,
    ) -> State {
        if !pending.is_empty() {
            stats.read(pending.len(), now());
        }
        State {
            session,
            unsent: pending.len(),
            pending,
            decoded: 0,
            work: 0,
            enough: 0,
            streak: 0,
            looks: 0,
            busy: None,
            flow: high_water_mark.map(Flow::new),
            stats,
            ended: false,
        }
    }

    /// With `queued` messages in the listener's mailbox: whether to go on. The peer was not
    /// silent while nobody listened to it.
    pub fn resume(&mut self, queued: usize) -> bool {
        let Some(flow) = &mut self.flow else {
            return true;
        };
        let was_paused = flow.is_paused();
        let resumed = flow.looked(queued);
        if was_paused && resumed {
            self.session.touch(now());
        } else if !was_paused && !resumed {
            self.busy = None;
            self.stats.pauses.add(1);
        }
        resumed
    }

    /// Reads and delivers: a slice.
    pub fn receive<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Step<'a>> {
        let share = Busy::share();
        self.enough = self.work + share;
        // Of small frames a read holds several times its octets' work.
        let step = self.slice(
            socket,
            delivery,
            room(buffer, RECEIVE_BUFFER.min(share / 4)),
        );
        if matches!(step, Ok(Step::Again)) {
            self.busy.get_or_insert_with(Busy::new);
        }
        step
    }

    fn slice<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut [u8],
    ) -> io::Result<Step<'a>> {
        if let Some(step) = self.decode_pending(delivery) {
            return Ok(step);
        }
        let started = now();
        while self.work < self.enough && now() - started < SLICE_TIME {
            match self.read(socket, buffer) {
                Ok((0, _)) => return Ok(self.end(delivery, atoms::closed())),
                Ok((received, beyond)) => {
                    self.account(received);
                    if let Some(step) = self.decode(&buffer[..beyond], delivery) {
                        return Ok(step);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Some(step) = self.dry(socket, delivery) {
                        return Ok(step);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.again(delivery))
    }

    /// There is nothing to read at the moment. None if there is again.
    fn dry<'a>(&mut self, socket: &Socket, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        if let Some(step) = self.flush(delivery) {
            return Some(step);
        }
        let streak = std::mem::take(&mut self.streak);
        if streak >= LINGER_OCTETS && socket.await_readable(LINGER) {
            return None;
        }
        Some(self.wait(delivery))
    }

    /// Reads once and little, if that is all there is to do: for the frame or two of a connection
    /// that is not busy. What takes longer is left to a slice.
    pub fn receive_inline<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Step<'a>> {
        if !self.pending.is_empty() || self.session.decoder().in_frame() {
            return Ok(Step::Again);
        }
        self.enough = self.work + INLINE_WORK;
        let buffer = room(buffer, INLINE_OCTETS);
        match self.read(socket, buffer) {
            Ok((0, _)) => Ok(self.end(delivery, atoms::closed())),
            Ok((received, beyond)) => {
                self.account(received);
                if let Some(step) = self.decode(&buffer[..beyond], delivery) {
                    return Ok(step);
                }
                if received == INLINE_OCTETS {
                    return Ok(self.again(delivery));
                }
                if delivery.pushed() > 0 {
                    self.looks = LOOKS;
                }
                Ok(self.look_or_wait(delivery))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Step::Again),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(self.look_or_wait(delivery)),
            Err(error) => Err(error),
        }
    }

    fn look_or_wait<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        if self.looks == 0 {
            return self.wait(delivery);
        }
        self.looks -= 1;
        self.flush(delivery).unwrap_or(Step::Yield)
    }

    /// `octets` were read.
    pub fn account(&mut self, octets: usize) {
        let now = now();
        self.session.touch(now);
        self.unsent += octets;
        self.work += octets;
        self.streak += octets;
        self.stats.read(octets, now);
    }

    /// Reads once: into the body that is being collected, then into `buffer`. How many octets in
    /// all, and how many of them are in `buffer`.
    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
        let decoder = self.session.decoder();
        let body = decoder.wanting_body();
        let beyond = match &body {
            Some((_, missing)) if *missing >= LARGE_BODY => BEYOND_LARGE_BODY.min(buffer.len()),
            _ => buffer.len(),
        };
        let (filled, beyond) = socket.receive(body, &mut buffer[..beyond])?;
        decoder.filled(filled);
        Ok((filled + beyond, beyond))
    }

    /// There is nothing to read: is the peer dead, and if not, when would it be?
    pub fn wait<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        if let Some(step) = self.flush(delivery) {
            return step;
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
    fn again<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        if let Some(step) = self.flush(delivery) {
            return step;
        }
        match self.left() {
            Some(Duration::ZERO) if self.session.awaits_first() => {
                self.end(delivery, atoms::timeout())
            }
            _ => Step::Again,
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
                    delivery.push(frame);
                    self.work += FRAME_WORK;
                    if delivery.pushed() == MESSAGE_FRAMES
                        && let Some(step) = self.flush_or_rest(delivery)
                    {
                        return Some(step);
                    }
                }
                Ok(Some(Event::Connected(frame))) => {
                    self.stats.frames.add(1);
                    return Some(Step::Connected(delivery.connected(frame)));
                }
                Ok(None) if self.unsent >= MESSAGE_OCTETS => return self.flush(delivery),
                Ok(None) => return None,
                Err(error) => return Some(self.refuse(error, delivery)),
            }
        }
    }

    /// Delivers a message. A step also if that was enough for now.
    fn flush_or_rest<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        let enough = self.work >= self.enough;
        self.flush(delivery)
            .or_else(|| enough.then_some(Step::Again))
    }

    /// Delivers what was decoded. A step if the listener is gone, or may be behind.
    fn flush<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        match self.deliver(delivery) {
            Flushed::Nothing => None,
            // Nobody listens: there is no reason to go on.
            Flushed::NoListener => Some(self.end(delivery, atoms::closed())),
            Flushed::Sent => {
                let octets = std::mem::take(&mut self.unsent);
                let flow = self
                    .flow
                    .as_mut()
                    .filter(|_| delivery.listener_is_local())?;
                flow.sent(octets);
                flow.is_full().then_some(Step::Full)
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
        Step::Stop(Some(Failure::Parse(error)))
    }

    /// Ends the connection: delivers what came before, and this last.
    pub fn end<'a>(&mut self, delivery: &mut Delivery<'a, '_>, reason: Atom) -> Step<'a> {
        self.deliver(delivery);
        self.busy = None;
        self.ended = true;
        delivery.disconnect(reason);
        Step::Stop(None)
    }
}
