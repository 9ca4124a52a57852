//! The VM's port of a socket, and ending its connection from a thread of ours.

use rustler::sys::{ErlNifPort, c_void, enif_get_local_port, enif_is_port_alive};
use rustler::{Env, Term};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// A port of this node.
#[derive(Clone, Copy)]
pub struct Port(ErlNifPort);

impl Port {
    pub fn of(term: Term) -> Option<Port> {
        let mut port = MaybeUninit::uninit();
        // SAFETY: the port is filled in if the term is one of this node, and only then used.
        unsafe {
            let env = term.get_env().as_c_arg();
            let is_one = enif_get_local_port(env, term.as_c_arg(), port.as_mut_ptr()) != 0;
            is_one.then(|| Port(port.assume_init()))
        }
    }

    /// Whether it is open. For any thread, with an environment that belongs to no process.
    pub fn is_alive(mut self, env: Env) -> bool {
        // SAFETY: it may be called on any thread, and looks the port up by its number.
        unsafe { enif_is_port_alive(env.as_c_arg(), &mut self.0) != 0 }
    }
}

/// Ends the connection of `descriptor`. What has arrived is discarded, because the end does not reach
/// a peer whose window is closed.
pub fn end(descriptor: RawFd, buffer: &mut [u8]) {
    // SAFETY: both calls check the descriptor that they are given, and `buffer` is borrowed mutably.
    unsafe {
        libc::shutdown(descriptor, libc::SHUT_RDWR);
        let (start, length) = (buffer.as_mut_ptr().cast(), buffer.len());
        while libc::recv(descriptor, start, length, libc::MSG_DONTWAIT) > 0 {}
    }
}

/// Keeps this library in memory when the VM unloads it: a thread of ours runs its code.
pub fn keep_library() {
    // SAFETY: `dladdr` fills in `info` for an address of this library, whose path is then valid;
    // a failure leaves everything as it was.
    unsafe {
        let mut info = std::mem::zeroed();
        if libc::dladdr(keep_library as *const c_void, &mut info) != 0 {
            libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NODELETE);
        }
    }
}
