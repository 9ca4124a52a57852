//! A connection: its session and its socket, read a slice at a time.
//!
//! A slice reads, decodes and delivers until the socket is dry or its budget is spent. Dry, it
//! leaves a request for a message and returns: an idle connection holds no thread and no buffer.
//!
//! The connection ends once, by whatever comes first, and its socket is stopped under the same
//! lock that a slice holds. The death of the owning process must not wait for a slice on the
//! scheduler that reports it: where the lock is taken it leaves a mark, which the slice finds
//! after it has unlocked.

use crate::atoms;
use crate::delivery::{Delivery, Failure, Recipients, Step};
use crate::socket::Socket;
use crate::terms::{BinaryBody, FrameTerms};
use rustler::{Atom, Env, LocalPid, Monitor, Reference, Term};
use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stomp::{Event, ParseError, Session};

/// What a thread reads into. Large enough that a busy feed's system calls cost nothing beside
/// its frames, small enough to stay in the second-level cache.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// How much a slice reads before it lets other connections have the thread: some milliseconds'
/// worth of small frames.
const SLICE_OCTETS: usize = 1024 * 1024;

/// What a slice needs and a connection does not keep: one for each thread.
#[derive(Default)]
struct Scratch {
    buffer: Vec<u8>,
    terms: FrameTerms,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Now, as the session counts time.
pub fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// The resource behind a connection's reference.
pub struct Connection {
    state: Mutex<State>,
    /// None where the bytes come from elsewhere.
    socket: Option<Socket>,
    owner_is_dead: AtomicBool,
    show_econnreset: bool,
}

struct State {
    session: Session<BinaryBody>,
    /// Bytes that were read and not decoded yet.
    pending: Vec<u8>,
    ended: bool,
}

impl rustler::Resource for Connection {
    const IMPLEMENTS_DESTRUCTOR: bool = true;
    const IMPLEMENTS_DOWN: bool = true;

    fn destructor(self, env: Env<'_>) {
        if let Some(socket) = &self.socket {
            socket.stop(env);
        }
    }

    fn down<'a>(&'a self, env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.owner_is_dead.store(true, Ordering::SeqCst);
        self.stop_if_unused(env);
    }
}

impl Connection {
    pub fn new(
        session: Session<BinaryBody>,
        socket: Option<Socket>,
        pending: Vec<u8>,
        show_econnreset: bool,
    ) -> Self {
        let state = State {
            session,
            pending,
            ended: false,
        };
        Connection {
            state: Mutex::new(state),
            socket,
            owner_is_dead: AtomicBool::new(false),
            show_econnreset,
        }
    }

    /// Reads from the socket: a slice.
    pub fn receive<'a>(&self, env: Env<'a>, reference: Reference, to: Recipients<'a>) -> Term<'a> {
        self.run(env, to, |state, delivery, buffer| {
            let Some(socket) = &self.socket else {
                return state.wait(delivery);
            };
            let read = state.receive(socket, delivery, buffer);
            let step = read.unwrap_or_else(|error| state.end(delivery, self.reason(&error)));
            match step {
                Step::Wait(_) if socket.notify(env, reference).is_err() => {
                    state.end(delivery, atoms::closed())
                }
                step => step,
            }
        })
    }

    /// The reason that `gen_tcp` would give for `error`.
    fn reason(&self, error: &io::Error) -> Atom {
        match error.kind() {
            ErrorKind::ConnectionReset if self.show_econnreset => atoms::econnreset(),
            ErrorKind::TimedOut => atoms::etimedout(),
            ErrorKind::HostUnreachable => atoms::ehostunreach(),
            ErrorKind::NetworkUnreachable => atoms::enetunreach(),
            ErrorKind::NetworkDown => atoms::enetdown(),
            _ => atoms::closed(),
        }
    }

    /// Takes bytes that were read elsewhere; none of them, to see whether time is up.
    pub fn feed<'a>(&self, env: Env<'a>, bytes: &[u8], to: Recipients<'a>) -> Term<'a> {
        self.run(env, to, |state, delivery, _| {
            if !bytes.is_empty() {
                state.session.touch(now());
            }
            let pending = state.decode_pending(delivery);
            let step = pending.or_else(|| state.decode(bytes, delivery));
            step.unwrap_or_else(|| state.wait(delivery))
        })
    }

    /// Ends the connection for a reason that was found elsewhere.
    pub fn disconnect<'a>(&self, env: Env<'a>, reason: Atom, to: Recipients<'a>) -> Term<'a> {
        self.run(env, to, |state, delivery, _| state.end(delivery, reason))
    }

    /// Starts the heart-beats that the network agreed on.
    pub fn agree(&self, interval: Duration) {
        self.lock().session.agree(interval, now());
    }

    fn run<'a>(
        &self,
        env: Env<'a>,
        to: Recipients<'a>,
        slice: impl FnOnce(&mut State, &mut Delivery<'a, '_>, &mut Vec<u8>) -> Step<'a>,
    ) -> Term<'a> {
        let mut state = self.lock();
        let answer = SCRATCH.with_borrow_mut(|scratch| {
            let mut delivery = Delivery::new(env, to, &mut scratch.terms);
            let step = if state.ended {
                Step::Stop(None)
            } else {
                contained(&mut state, &mut delivery, &mut scratch.buffer, slice)
            };
            delivery.answer(step)
        });
        if state.ended {
            self.stop(env);
        }
        drop(state);
        if self.owner_is_dead.load(Ordering::SeqCst) {
            self.stop_if_unused(env);
        }
        answer
    }

    /// The state. A panic leaves nothing half done that matters: the connection ends.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_if_unused(&self, env: Env) {
        if let Ok(mut state) = self.state.try_lock() {
            state.ended = true;
            self.stop(env);
        }
    }

    /// Closes the duplicate. The lock must be held.
    fn stop(&self, env: Env) {
        if let Some(socket) = &self.socket {
            socket.stop(env);
        }
    }
}

/// Runs a slice so that a panic in it ends its connection and nothing else.
fn contained<'a>(
    state: &mut State,
    delivery: &mut Delivery<'a, '_>,
    buffer: &mut Vec<u8>,
    slice: impl FnOnce(&mut State, &mut Delivery<'a, '_>, &mut Vec<u8>) -> Step<'a>,
) -> Step<'a> {
    let result = catch_unwind(AssertUnwindSafe(|| slice(state, delivery, buffer)));
    result.unwrap_or_else(|_| {
        state.end(delivery, atoms::parse_error());
        Step::Stop(Some(Failure::Panic))
    })
}

impl State {
    fn receive<'a>(
        &mut self,
        socket: &Socket,
        delivery: &mut Delivery<'a, '_>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Step<'a>> {
        if let Some(step) = self.decode_pending(delivery) {
            return Ok(step);
        }
        buffer.resize(RECEIVE_BUFFER, 0);
        let mut read = 0;
        while read < SLICE_OCTETS {
            match self.read(socket, buffer) {
                Ok((0, _)) => return Ok(self.end(delivery, atoms::closed())),
                Ok((received, beyond)) => {
                    self.session.touch(now());
                    read += received;
                    if let Some(step) = self.decode(&buffer[..beyond], delivery) {
                        return Ok(step);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(self.wait(delivery));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Step::Again)
    }

    /// Reads once: into the body that is being collected, then into `buffer`. How many octets in
    /// all, and how many of them are in `buffer`.
    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
        let decoder = self.session.decoder();
        let (filled, beyond) = socket.receive(decoder.wanting_body(), buffer)?;
        decoder.filled(filled);
        Ok((filled + beyond, beyond))
    }

    /// There is nothing to read: is the peer dead, and if not, when would it be?
    fn wait<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        self.session.decoder().release_memory();
        let Some(deadline) = self.session.deadline() else {
            return Step::Wait(None);
        };
        let left = deadline.saturating_sub(now());
        if left.is_zero() {
            return self.end(delivery, atoms::timeout());
        }
        // Rounded up: a process that wakes too early would only wait again.
        let millis = left.as_nanos().div_ceil(1_000_000);
        Step::Wait(Some(millis.try_into().unwrap_or(u64::MAX)))
    }

    fn decode_pending<'a>(&mut self, delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        let pending = std::mem::take(&mut self.pending);
        self.decode(&pending, delivery)
    }

    /// Decodes and delivers `bytes`. A step if that is not simply to go on.
    fn decode<'a>(&mut self, bytes: &[u8], delivery: &mut Delivery<'a, '_>) -> Option<Step<'a>> {
        let mut input = bytes;
        loop {
            match self.session.next(&mut input) {
                Ok(Some(Event::Frame(frame))) => delivery.push(frame),
                Ok(Some(Event::Connected(frame))) => {
                    let frame = delivery.connected(frame);
                    self.pending = input.to_vec();
                    return Some(Step::Connected(frame));
                }
                Ok(None) if delivery.flush() => return None,
                // Nobody listens: there is no reason to go on.
                Ok(None) => return Some(self.end(delivery, atoms::closed())),
                Err(error) => return Some(self.refuse(error, delivery)),
            }
        }
    }

    fn refuse<'a>(&mut self, error: ParseError, delivery: &mut Delivery<'a, '_>) -> Step<'a> {
        delivery.flush();
        self.end(delivery, atoms::parse_error());
        Step::Stop(Some(Failure::Parse(error)))
    }

    /// Ends the connection: what came before has been delivered, this comes last.
    fn end<'a>(&mut self, delivery: &mut Delivery<'a, '_>, reason: Atom) -> Step<'a> {
        self.ended = true;
        delivery.disconnect(reason);
        Step::Stop(None)
    }
}
