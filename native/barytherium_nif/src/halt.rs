//! Connections that the VM closes while it halts.
//!
//! `System.halt/1` stops all processes. Then it waits until every port has written what it has to
//! write. It closes the port of a connection, but not our duplicate of the descriptor. A peer in the
//! same VM would go on writing to a connection that nobody reads, and the VM would never end.
//!
//! Before OTP 26 no callback tells a NIF of a halt. So a thread checks every half second that the
//! ports are still there, and ends the connections of those that are not. In a VM that does not halt,
//! the connection's process has ended the connection by then.

use crate::lock::lock;
use crate::port::{Port, end, keep_library};
use crate::terms::Arena;
use rustler::Term;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex};
use std::thread::{self, Thread};
use std::time::Duration;

/// How long it may take to notice a halt. Checking 10,000 ports takes less than a millisecond.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long to wait before more is read that peers in the same VM still have to write. A read makes room
/// for some 64 KiB, and the VM waits for all of it.
const DISCARDING: Duration = Duration::from_millis(5);

/// The port that each duplicated descriptor belongs to.
static DUPLICATES: LazyLock<Mutex<HashMap<RawFd, Port>>> = LazyLock::new(Mutex::default);

/// Watches `socket` until `duplicate` is [forgotten](forget), if it is a port: the VM does not close
/// other sockets when it halts.
pub fn watch(duplicate: RawFd, socket: Term) {
    if let Some(port) = Port::of(socket) {
        let mut duplicates = lock(&DUPLICATES);
        duplicates.insert(duplicate, port);
        if duplicates.len() == 1 {
            wake();
        }
    }
}

/// The connection is ending. From here on only its owner uses `duplicate`.
pub fn forget(duplicate: RawFd) {
    lock(&DUPLICATES).remove(&duplicate);
}

fn wake() {
    static THREAD: LazyLock<Option<Thread>> = LazyLock::new(start);
    // Without the thread, a halt with a peer in the same VM may take for ever. Nothing else is lost.
    if let Some(thread) = &*THREAD {
        thread.unpark();
    }
}

fn start() -> Option<Thread> {
    keep_library();
    let thread = thread::Builder::new().name("barytherium_halt".into());
    let spawned = thread.stack_size(64 * 1024).spawn(run);
    spawned.ok().map(|handle| handle.thread().clone())
}

fn run() {
    let mut arena = Arena::<()>::new();
    let mut discarded = [0; 16 * 1024];
    let mut interval = INTERVAL;
    loop {
        if lock(&DUPLICATES).is_empty() {
            thread::park();
        }
        thread::sleep(std::mem::replace(&mut interval, INTERVAL));
        for (&duplicate, port) in lock(&DUPLICATES).iter() {
            if !arena.with(|env, ()| port.is_alive(env)) {
                // The duplicate is open: it is closed after `forget`, which waits for the lock.
                end(duplicate, &mut discarded);
                interval = DISCARDING;
            }
        }
    }
}
