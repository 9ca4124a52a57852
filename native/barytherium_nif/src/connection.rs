//! A connection: its session and its socket, read a slice at a time.
//!
//! A slice reads, decodes and delivers until the socket is empty or its budget is spent. If the
//! socket is empty it asks the VM for a message and returns: an idle connection holds no thread and
//! no buffer.
//!
//! A connection has ended when its state is gone. All calls come from the process that runs the loop.
//! When that process dies, its monitor ends the connection. If a call is still running on a dirty
//! thread, the monitor leaves the connection to the destructor, which runs after the call, when the VM
//! frees the heap of the process. The destructor alone is not enough, because a debugger may keep a copy
//! of the state of the process, with the reference in it.

use crate::atoms;
use crate::batches::Batches;
use crate::delivery::Address;
use crate::slice::Slice;
use crate::slice::reader::{Buffers, Reader};
use crate::socket::Ending;
use crate::state::{State, Transport, now};
use crate::step::{Failure, Step, encode_resume};
use rustler::{Atom, Encoder, Env, Error, LocalPid, Monitor, NifResult, Reference, Term};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stomp::Resume;

/// What a slice needs and a connection does not keep: one for each thread.
#[derive(Default)]
struct Scratch {
    buffers: Buffers,
    batches: Batches,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The resource behind a connection's reference.
pub struct Connection {
    /// None when the connection has ended.
    state: Mutex<Option<State>>,
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[rustler::resource_impl]
impl rustler::Resource for Connection {
    const IMPLEMENTS_DESTRUCTOR: bool = true;
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        if let Ok(mut state) = self.state.try_lock()
            && let Some(state) = state.take()
        {
            state.stop(env, Ending::Shutdown);
        }
    }

    fn destructor(self, env: Env<'_>) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
        let state = self.state.into_inner();
        if let Some(state) = state.unwrap_or_else(PoisonError::into_inner) {
            state.stop(env, Ending::Shutdown);
        }
    }
}

impl Connection {
    pub fn new(state: State) -> Connection {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Connection {
            state: Mutex::new(Some(state)),
        }
    }

    /// Connections that were opened and not yet freed.
    pub fn live() -> usize {
        LIVE.load(Ordering::Relaxed)
    }

    /// The descriptor is that of the socket that was meant.
    pub fn confirm(&self, owner: Term) {
        let mut state = self.lock();
        if let Some(transport) = state.as_mut().and_then(|state| state.transport.as_mut()) {
            transport.socket.confirm(owner);
        }
    }

    /// Reads from the socket.
    pub fn read<'a>(
        &self,
        env: Env<'a>,
        reference: Reference,
        to: Address<'a>,
        receive: impl FnOnce(&mut Reader<'_, 'a, '_>) -> Step<'a>,
    ) -> NifResult<Term<'a>> {
        self.run(env, to, |slice, transport, buffers| {
            let transport = transport.ok_or(Error::BadArg)?;
            transport.socket.settle(env);
            let step = receive(&mut Reader {
                slice,
                transport,
                buffers,
                started: now(),
                may_wait: false,
            });
            match step {
                // The descriptor is above what the VM can poll.
                Step::Wait(_) if transport.socket.notify(env, reference).is_err() => {
                    Ok(slice.stop(Step::stop(atoms::emfile())))
                }
                step => Ok(step),
            }
        })
    }

    /// Takes bytes that were read elsewhere.
    pub fn feed<'a>(
        &self,
        env: Env<'a>,
        to: Address<'a>,
        take: impl FnOnce(&mut Slice<'a, '_>) -> Step<'a>,
    ) -> NifResult<Term<'a>> {
        self.run(env, to, |slice, _, _| Ok(take(slice)))
    }

    /// Ends the connection for a reason that was found elsewhere; `no_listener` if nobody is there
    /// to get its frames.
    pub fn disconnect<'a>(
        &self,
        env: Env<'a>,
        reason: Atom,
        to: Address<'a>,
    ) -> NifResult<Term<'a>> {
        self.run(env, to, |slice, _, _| {
            if reason == atoms::no_listener() {
                Ok(slice.end_without_listener())
            } else {
                Ok(slice.disconnect(reason))
            }
        })
    }

    /// What a full connection has to do.
    pub fn resume<'a>(&self, env: Env<'a>) -> Term<'a> {
        let mut state = self.lock();
        let resume = state.as_mut().map_or(Resume::Go, |state| state.resume(env));
        let awaited = state
            .as_ref()
            .and_then(|state| state.recipients.awaited_pid());
        encode_resume(env, resume, awaited)
    }

    /// The same, with `queued` messages in the mailbox of the process that it waits for.
    pub fn looked<'a>(&self, env: Env<'a>, queued: usize) -> Term<'a> {
        let mut state = self.lock();
        let resume = state
            .as_mut()
            .map_or(Resume::Go, |state| state.looked(env, queued));
        encode_resume(env, resume, None)
    }

    /// Starts the heart-beats that the network agreed on.
    pub fn agree(&self, interval: Duration) {
        if let Some(state) = self.lock().as_mut() {
            state.session.agree(interval, now());
        }
    }

    fn run<'a>(
        &self,
        env: Env<'a>,
        to: Address<'a>,
        work: impl FnOnce(&mut Slice<'a, '_>, Option<&Transport>, &mut Buffers) -> NifResult<Step<'a>>,
    ) -> NifResult<Term<'a>> {
        let mut guard = self.lock();
        let Some(state) = guard.as_mut() else {
            return Ok(Step::stop(atoms::closed()).encode(env));
        };
        state.stats.slices.add(1);
        let (step, answer) = SCRATCH.with_borrow_mut(|scratch| {
            let (mut slice, transport) = state.slice(env, to, &mut scratch.batches);
            let step = contained(&mut slice, |slice| {
                work(slice, transport, &mut scratch.buffers)
            })?;
            let mut answer = slice.delivery.answer(step.encode(env));
            if slice.owes {
                answer = (atoms::owed(), answer).encode(env);
            }
            NifResult::Ok((step, answer))
        })?;
        if let Step::Stop(end) = step
            && let Some(state) = guard.take()
        {
            let ending = state.ending(end.socket);
            state.stop(env, ending);
        }
        Ok(answer)
    }

    /// The state. A panic ends the connection, so it does not matter what it left half done.
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the work of a slice. A panic in it ends its connection and nothing else.
fn contained<'a, 's>(
    slice: &mut Slice<'a, 's>,
    work: impl FnOnce(&mut Slice<'a, 's>) -> NifResult<Step<'a>>,
) -> NifResult<Step<'a>> {
    let result = catch_unwind(AssertUnwindSafe(|| work(slice)));
    result.unwrap_or_else(|_| Ok(slice.stop(Step::fail(atoms::parse_error(), Failure::Panic))))
}
