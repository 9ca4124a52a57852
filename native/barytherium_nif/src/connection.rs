//! A connection: its session and its socket, read a slice at a time.
//!
//! A slice reads, decodes and delivers until the socket is dry or its budget is spent. Dry, it
//! leaves a request for a message and returns: an idle connection holds no thread and no buffer.
//!
//! The connection ends once, by whatever comes first, and its socket is stopped under the same
//! lock that a slice holds. The death of the owning process must not wait for a slice on the
//! scheduler that reports it: where the lock is taken it leaves a mark, which the slice finds
//! after it has unlocked.

use crate::account::Account;
use crate::atoms;
use crate::delivery::{Delivery, Failure, Recipients, Step, encode_resume};
use crate::socket::Socket;
use crate::state::{State, now};
use crate::stats::Stats;
use crate::terms::{BinaryBody, FrameTerms};
use rustler::{Atom, Env, LocalPid, Monitor, Reference, ResourceArc, Term};
use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use stomp::Session;

/// What a slice needs and a connection does not keep: one for each thread.
#[derive(Default)]
struct Scratch {
    buffer: Vec<u8>,
    terms: FrameTerms,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The resource behind a connection's reference.
pub struct Connection {
    state: Mutex<State>,
    /// None where the bytes come from elsewhere.
    socket: Option<Socket>,
    owner_is_dead: AtomicBool,
    show_econnreset: bool,
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

impl Drop for Connection {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl rustler::Resource for Connection {
    const IMPLEMENTS_DESTRUCTOR: bool = true;
    const IMPLEMENTS_DOWN: bool = true;

    fn destructor(self, env: Env<'_>) {
        self.stop(env, &mut self.lock());
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
        account: Option<Account>,
        show_econnreset: bool,
        stats: ResourceArc<Stats>,
    ) -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        let state = State::new(session, pending, account, stats);
        Connection {
            state: Mutex::new(state),
            socket,
            owner_is_dead: AtomicBool::new(false),
            show_econnreset,
        }
    }

    /// Connections that were opened and not yet freed.
    pub fn live() -> usize {
        LIVE.load(Ordering::Relaxed)
    }

    /// The descriptor is that of the socket that was meant.
    pub fn confirm(&self, owner: Term) {
        if let Some(socket) = &self.socket {
            socket.confirm(owner);
        }
    }

    /// Reads from the socket: a slice, or with `inline` once and little.
    pub fn receive<'a>(
        &self,
        env: Env<'a>,
        reference: Reference,
        to: Recipients<'a>,
        inline: bool,
    ) -> Term<'a> {
        self.run(env, to, |state, delivery, buffer| {
            let Some(socket) = &self.socket else {
                return state.wait(delivery);
            };
            let read = match inline {
                true => state.receive_inline(socket, delivery, buffer),
                false => state.receive(socket, delivery, buffer),
            };
            let step = read.unwrap_or_else(|error| state.end(delivery, self.reason(&error)));
            match step {
                // The descriptor is above what the VM can poll.
                Step::Wait(_) if socket.notify(env, reference).is_err() => {
                    state.end(delivery, atoms::emfile())
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
                state.account(bytes.len());
            }
            let step = state.take(bytes, delivery);
            step.unwrap_or_else(|| state.wait(delivery))
        })
    }

    /// Ends the connection for a reason that was found elsewhere; `no_listener` if nobody is there
    /// to get its frames.
    pub fn disconnect<'a>(&self, env: Env<'a>, reason: Atom, to: Recipients<'a>) -> Term<'a> {
        self.run(env, to, |state, delivery, _| {
            if reason == atoms::no_listener() {
                state.end_without_listener(delivery)
            } else {
                state.disconnect(delivery, reason)
            }
        })
    }

    /// What a full connection has to do.
    pub fn resume<'a>(&self, env: Env<'a>) -> Term<'a> {
        let mut state = self.lock();
        let resume = state.resume();
        encode_resume(env, resume, state.turn())
    }

    /// The same, with `queued` messages in the listener's mailbox.
    pub fn looked<'a>(&self, env: Env<'a>, queued: usize) -> Term<'a> {
        let mut state = self.lock();
        let resume = state.looked(env, queued);
        encode_resume(env, resume, state.turn())
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
        state.stats.slices.add(1);
        let answer = SCRATCH.with_borrow_mut(|scratch| {
            let mut delivery = Delivery::new(env, to, &mut scratch.terms);
            let step = if state.ended {
                Step::Stop(atoms::closed(), None)
            } else {
                contained(&mut state, &mut delivery, &mut scratch.buffer, slice)
            };
            delivery.answer(step)
        });
        if state.ended {
            self.stop(env, &mut state);
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
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // The slice that has it looks for the mark when it has unlocked.
            Err(TryLockError::WouldBlock) => return,
        };
        state.ended = true;
        self.stop(env, &mut state);
    }

    /// Closes the duplicate, and lets others that wait for the listener go on.
    fn stop(&self, env: Env, state: &mut State) {
        if let Some(socket) = &self.socket {
            socket.stop(env, state.ending);
        }
        state.leave_account(env);
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
        Step::Stop(atoms::parse_error(), Some(Failure::Panic))
    })
}
