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

use crate::terms::MessageEnv;
use rustler::Term;
use rustler::sys::{ErlNifEnv, ErlNifTerm, c_int};
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

/// How much longer a halt takes, at most. Looking at 10,000 ports takes less than a millisecond.
const INTERVAL: Duration = Duration::from_millis(500);

/// A port, which the VM can be asked about. As `ErlNifPort` in `erl_nif.h`.
#[repr(C)]
struct Port {
    id: ErlNifTerm,
}

type IsPortAlive = unsafe extern "C" fn(*mut ErlNifEnv, *const Port) -> c_int;

/// The port that each duplicated descriptor belongs to.
static DUPLICATES: LazyLock<Mutex<HashMap<RawFd, Port>>> = LazyLock::new(Mutex::default);

/// Watches `socket`, if it is a port, until `duplicate` is [forgotten](forget). The VM does not close
/// other sockets when it halts.
pub fn watch(duplicate: RawFd, socket: Term) {
    if !socket.is_port() {
        return;
    }
    let id = socket.as_c_arg();
    let mut duplicates = lock();
    duplicates.insert(duplicate, Port { id });
    if duplicates.len() == 1 {
        wake();
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
    // Rustler does not have this function. It is in every VM since OTP 19.
    // SAFETY: the name is NUL-terminated, and the type is that of `erl_nif.h`.
    let is_port_alive: IsPortAlive = unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"enif_is_port_alive".as_ptr());
        std::mem::transmute::<*mut libc::c_void, Option<IsPortAlive>>(symbol)?
    };
    static KEEP: Once = Once::new();
    KEEP.call_once(keep_library);
    let thread = thread::Builder::new().name("barytherium_halt".into());
    let spawned = thread
        .stack_size(64 * 1024)
        .spawn(move || run(is_port_alive));
    spawned.ok().map(|handle| handle.thread().clone())
}

fn run(is_port_alive: IsPortAlive) {
    let env = MessageEnv::new();
    let mut discarded = [0; 16 * 1024];
    loop {
        if lock().is_empty() {
            thread::park();
        }
        thread::sleep(INTERVAL);
        for (&duplicate, port) in lock().iter() {
            // SAFETY: the environment belongs to no process, and this may be called on any thread.
            if unsafe { is_port_alive(env.env().as_c_arg(), port) } == 0 {
                end(duplicate, &mut discarded);
            }
        }
    }
}

/// Ends a connection. What has arrived is discarded: as long as the peer's window is closed, the
/// end does not reach it.
fn end(duplicate: RawFd, buffer: &mut [u8]) {
    // SAFETY: `duplicate` is open, since it is closed after `forget`, which waits for the lock that
    // the caller has; and `buffer` is borrowed mutably.
    unsafe {
        libc::shutdown(duplicate, libc::SHUT_RDWR);
        let (start, length) = (buffer.as_mut_ptr().cast(), buffer.len());
        while libc::recv(duplicate, start, length, libc::MSG_DONTWAIT) > 0 {}
    }
}

/// The thread runs code of this library, so the library must stay when the VM unloads it.
fn keep_library() {
    // SAFETY: `dladdr` fills in `info` for an address of this library, whose path is then valid;
    // a failure leaves everything as it was.
    unsafe {
        let mut info = std::mem::zeroed();
        if libc::dladdr(keep_library as *const libc::c_void, &mut info) != 0 {
            libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NODELETE);
        }
    }
}

fn lock() -> MutexGuard<'static, HashMap<RawFd, Port>> {
    DUPLICATES.lock().unwrap_or_else(PoisonError::into_inner)
}
