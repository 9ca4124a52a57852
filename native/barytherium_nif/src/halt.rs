//! Connections whose socket was closed by the VM while nobody was left to notice.
//!
//! `System.halt/1` stops all processes, and then waits until every port has written what it still
//! has to write. It closes the port of a connection, but not our duplicate of its descriptor. So a
//! peer in the same VM would go on writing to a connection that nobody reads, and the VM would
//! never end.
//!
//! No callback of the VM tells a NIF of a halt before OTP 26. Therefore a thread looks from time to
//! time whether the ports are still there, and ends the connections of those that are not. In a VM
//! that goes on, the connection's own process is told of that first.

use crate::socket::{Port, PortLookUp, end, keep_library};
use crate::terms::MessageEnv;
use rustler::Term;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

/// How much longer a halt takes, at most. Looking at 10,000 ports takes less than a millisecond.
const INTERVAL: Duration = Duration::from_millis(500);

/// The port that each duplicated descriptor belongs to.
static DUPLICATES: LazyLock<Mutex<HashMap<RawFd, Port>>> = LazyLock::new(Mutex::default);

/// Watches `socket`, if it is a port, until `duplicate` is [forgotten](forget). The VM does not close
/// other sockets when it halts.
pub fn watch(duplicate: RawFd, socket: Term) {
    if let Some(port) = Port::of(socket) {
        let mut duplicates = lock();
        duplicates.insert(duplicate, port);
        if duplicates.len() == 1 {
            wake();
        }
    }
}

/// The connection is ending. From here on nobody but its owner touches `duplicate`.
pub fn forget(duplicate: RawFd) {
    lock().remove(&duplicate);
}

fn wake() {
    static THREAD: LazyLock<Option<Thread>> = LazyLock::new(start);
    // Without a thread, a halt with a peer in the same VM may take for ever; nothing else is lost.
    if let Some(thread) = &*THREAD {
        thread.unpark();
    }
}

fn start() -> Option<Thread> {
    let look_up = PortLookUp::new()?;
    keep_library();
    let thread = thread::Builder::new().name("barytherium_halt".into());
    let spawned = thread.stack_size(64 * 1024).spawn(move || run(look_up));
    spawned.ok().map(|handle| handle.thread().clone())
}

fn run(look_up: PortLookUp) {
    let env = MessageEnv::new();
    let mut discarded = [0; 16 * 1024];
    loop {
        if lock().is_empty() {
            thread::park();
        }
        thread::sleep(INTERVAL);
        for (&duplicate, port) in lock().iter() {
            if !look_up.is_alive(env.env(), port) {
                // It is open: it is closed after `forget`, which waits for the lock.
                end(duplicate, &mut discarded);
            }
        }
    }
}

fn lock() -> MutexGuard<'static, HashMap<RawFd, Port>> {
    DUPLICATES.lock().unwrap_or_else(PoisonError::into_inner)
}
