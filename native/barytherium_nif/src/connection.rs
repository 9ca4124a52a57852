//! A connection: its session and its socket, as a resource.
//!
//! A [`Call`] reads, decodes and delivers until the socket is empty or its budget is spent. If the
//! socket is empty it asks the VM for a message and returns: an idle connection holds no thread and
//! no buffer.
//!
//! A connection has ended when its state is gone. All calls come from the process that runs the loop.
//! When that process dies, its monitor ends the connection. If a call is still running on a dirty
//! thread, the call ends it. The destructor is not enough for that, because a debugger may keep a copy
//! of the state of the process, with the reference in it.

use crate::atoms;
use crate::call::{Call, Scratch, State};
use crate::delivery::Address;
use crate::lock::lock;
use crate::next::{Failure, Next};
use crate::socket::Ending;
use crate::terms::Caller;
use rustler::{Env, LocalPid, Monitor, NifResult, Term};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The resource behind a connection's reference.
pub struct Connection {
    /// None when the connection has ended.
    state: Mutex<Option<State>>,
    /// Whether its process has died.
    is_orphan: AtomicBool,
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[rustler::resource_impl]
impl rustler::Resource for Connection {
    const IMPLEMENTS_DESTRUCTOR: bool = true;
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.is_orphan.store(true, Ordering::Relaxed);
        self.end_orphan(env);
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
            is_orphan: AtomicBool::new(false),
        }
    }

    /// Connections that were opened and not yet freed.
    pub fn live() -> usize {
        LIVE.load(Ordering::Relaxed)
    }

    /// Changes what the connection keeps, if it has not ended.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = lock(&self.state).as_mut() {
            change(state);
        }
    }

    /// Does `work`, and answers with what comes next. If that is the end, the connection has ended when this
    /// returns.
    pub fn call<'a>(
        &self,
        caller: Caller<'a>,
        to: Address<'a>,
        work: impl FnOnce(&mut Call<'a, '_>) -> NifResult<Next<'a>>,
    ) -> NifResult<Term<'a>> {
        let answer = self.call_locked(caller, to, work);
        self.end_orphan(caller.env());
        answer
    }

    /// Ends the connection if its process has died, unless a call has it, which does that at its end. One of the
    /// two sees what the other has done: each first writes (that the process is dead, that the lock is free), and
    /// reads what the other writes after a fence.
    fn end_orphan(&self, env: Env) {
        fence(Ordering::SeqCst);
        if self.is_orphan.load(Ordering::Relaxed)
            && let Ok(mut state) = self.state.try_lock()
            && let Some(state) = state.take()
        {
            state.stop(env, Ending::Shutdown);
        }
    }

    fn call_locked<'a>(
        &self,
        caller: Caller<'a>,
        to: Address<'a>,
        work: impl FnOnce(&mut Call<'a, '_>) -> NifResult<Next<'a>>,
    ) -> NifResult<Term<'a>> {
        let mut guard = lock(&self.state);
        let Some(state) = guard.as_mut() else {
            return Ok(Next::stop(atoms::closed()).encode(caller.env()));
        };
        let (next, answer) = SCRATCH.with_borrow_mut(|scratch| {
            let mut call = Call::new(caller, state, to, scratch);
            let next = contained(&mut call, work)?;
            let answer = call.answer(&next);
            NifResult::Ok((next, answer))
        })?;
        if let Next::Stop(end) = next
            && let Some(state) = guard.take()
        {
            let ending = state.ending(end.socket);
            state.stop(caller.env(), ending);
        }
        Ok(answer)
    }
}

/// Does the work of a call. A panic in it ends its connection and nothing else. Another one, in delivering what
/// came before the first, changes nothing about that.
fn contained<'a, 's>(
    call: &mut Call<'a, 's>,
    work: impl FnOnce(&mut Call<'a, 's>) -> NifResult<Next<'a>>,
) -> NifResult<Next<'a>> {
    let result = catch_unwind(AssertUnwindSafe(|| work(call)));
    result.unwrap_or_else(|_panic| {
        let stopped = catch_unwind(AssertUnwindSafe(|| call.panicked()));
        Ok(stopped.unwrap_or_else(|_panic| Next::fail(atoms::parse_error(), Failure::Panic)))
    })
}
