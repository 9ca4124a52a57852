//! A duplicate of a socket's descriptor: reading from it, and waiting for it.
//!
//! The VM's driver polls the descriptor that it opened. Two pollers of one descriptor disturb each
//! other, so we poll a duplicate. It belongs to a resource type that is opened by hand, because
//! `enif_select` needs a stop callback and Rustler's resources have none. The VM calls that callback
//! when no poller uses the descriptor any more, and only there it is closed.
//!
//! A message `:ready_input` keeps the VM's schedulers from polling until its descriptor is polled again
//! or the scheduler that handled the message has nothing to do. This is the VM's way of not finding more
//! input than it can handle. But a connection that is flooded reads on for seconds without polling, and
//! meanwhile nobody would look at the descriptors that schedulers poll: those of ports, and from OTP 28
//! also those that one process polls often, which are connections like ours. Therefore every message is
//! settled, see [`Socket::settle`].

use crate::terms::BinaryBody;
use rustler::sys::{
    ERL_NIF_SELECT_READ, ERL_NIF_SELECT_STOP, ErlNifEnv, ErlNifEvent, ErlNifResourceFlags,
    ErlNifResourceStop, ErlNifResourceType, ErlNifResourceTypeInit, ErlNifSelectFlags, c_int,
    c_void, enif_alloc_resource, enif_init_resource_type, enif_release_resource, enif_select,
};
use rustler::{Env, Reference, Term};
use std::cell::Cell;
use std::io::{Error, ErrorKind, Result};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

/// How many of the callbacks of a resource type are set: those up to `stop`.
const MEMBERS_UP_TO_STOP: c_int = 2;

/// `ERL_NIF_SELECT_CANCEL` in `erl_nif.h`, since OTP 22. Rustler has no name for it.
const CANCEL: ErlNifSelectFlags = 1 << 3;

struct ResourceType(*const ErlNifResourceType);

// SAFETY: a resource type is immutable once opened, and never freed while the library is loaded.
unsafe impl Send for ResourceType {}
// SAFETY: as above.
unsafe impl Sync for ResourceType {}

static POLLED: OnceLock<ResourceType> = OnceLock::new();

/// Opens the resource type of polled descriptors. To be called from the library's `load`.
pub fn register(env: Env) -> bool {
    let init = ErlNifResourceTypeInit {
        dtor: ptr::null(),
        stop: close_descriptor as *const ErlNifResourceStop,
        down: ptr::null(),
        members: MEMBERS_UP_TO_STOP,
        dyncall: ptr::null(),
    };
    // SAFETY: `env` is the environment of `load`, the name is NUL-terminated, and `init` has as
    // many members as it says.
    let opened = unsafe {
        enif_init_resource_type(
            env.as_c_arg(),
            c"barytherium_polled".as_ptr(),
            &init,
            ErlNifResourceFlags::ERL_NIF_RT_CREATE,
            &mut MaybeUninit::<ErlNifResourceFlags>::uninit() as *mut _ as *mut _,
        )
    };
    !opened.is_null() && POLLED.set(ResourceType(opened)).is_ok()
}

#[cfg(target_os = "linux")]
fn poll(polled: &mut libc::pollfd, time: Duration) -> c_int {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: one `pollfd`, a `timespec`, and no signal mask.
    unsafe { libc::ppoll(polled, 1, &time, ptr::null()) }
}

/// `poll` has a resolution of a millisecond.
#[cfg(not(target_os = "linux"))]
fn poll(polled: &mut libc::pollfd, time: Duration) -> c_int {
    let millis = time.as_micros().div_ceil(1000) as c_int;
    // SAFETY: one `pollfd`.
    unsafe { libc::poll(polled, 1, millis) }
}

/// Whether nobody reads any more what is written to `descriptor`, a pipe or a terminal.
pub fn is_abandoned(descriptor: RawFd) -> bool {
    let mut polled = libc::pollfd {
        fd: descriptor,
        events: 0,
        revents: 0,
    };
    poll(&mut polled, Duration::ZERO) > 0 && polled.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

unsafe extern "C" fn close_descriptor(
    _env: *mut ErlNifEnv,
    _object: *mut c_void,
    descriptor: ErlNifEvent,
    _is_direct_call: c_int,
) {
    // SAFETY: `Socket::stop` asks for this and consumes the socket, so nobody uses the descriptor
    // afterwards.
    unsafe { libc::close(descriptor) };
}

/// What becomes of the connection when its duplicate is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is shut down. The peer sees the end even if the socket's owner does not close its own
    /// descriptor, and unsent data cannot hold up the owner's close.
    Shutdown,
    /// It is left to the owner, which may still have to send something.
    LeftToOwner,
}

/// A duplicated, non-blocking socket.
pub struct Socket {
    descriptor: RawFd,
    polled: *mut c_void,
    /// Whether it is known to be a duplicate of the socket that was meant.
    confirmed: bool,
    /// Whether a message was asked for since the last call of `settle`.
    polls: Cell<bool>,
}

// SAFETY: a descriptor may be used from any thread, and `polled` is only handed to the VM, which
// does its own locking.
unsafe impl Send for Socket {}

/// What was read at once. No byte at all is the end of the stream.
pub struct Read {
    /// Bytes of the body that is being collected.
    pub body: usize,
    /// Bytes in the buffer.
    pub beyond: usize,
    /// Whether there was no room for more.
    pub is_full: bool,
}

impl Read {
    pub fn bytes(&self) -> usize {
        self.body + self.beyond
    }
}

impl Socket {
    /// Duplicates `descriptor`, which stays its owner's.
    pub fn duplicate(descriptor: RawFd) -> Result<Socket> {
        let polled_type = POLLED.get().ok_or(ErrorKind::Unsupported)?;
        // SAFETY: `fcntl` checks the descriptor that it is given.
        let descriptor = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
        if descriptor < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the type was opened; the resource has no contents of ours.
        let polled = unsafe { enif_alloc_resource(polled_type.0, 1) };
        Ok(Socket {
            descriptor,
            polled,
            confirmed: false,
            polls: Cell::new(false),
        })
    }

    /// The descriptor was still that of the socket that was meant, after it had been duplicated. A number
    /// that was looked up before may be closed by then, and opened again as something else.
    pub fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// The number of the duplicate.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor
    }

    /// Reads what is there, without waiting: first into `body`, which lacks this many bytes, but no
    /// more than `most` of them, then into `buffer`.
    pub fn receive(
        &self,
        body: Option<(&mut BinaryBody, usize)>,
        most: usize,
        buffer: &mut [u8],
    ) -> Result<Read> {
        let Some((body, missing)) = body else {
            let beyond = self.receive_one(buffer)?;
            return Ok(Read {
                body: 0,
                beyond,
                is_full: beyond == buffer.len(),
            });
        };
        let spare = body.spare(missing);
        let room = spare.len().min(most);
        // What follows a body that does not get all of its room now still belongs to it.
        let beyond = if room == missing { buffer } else { &mut [] };
        let received = self.receive_two(&mut spare[..room], beyond)?;
        let filled = received.min(room);
        // SAFETY: this many bytes were just written there.
        unsafe { body.filled(filled) };
        Ok(Read {
            body: filled,
            beyond: received - filled,
            is_full: received == room + beyond.len(),
        })
    }

    /// Reads into `buffer` what is there, without waiting.
    pub fn receive_one(&self, buffer: &mut [u8]) -> Result<usize> {
        let start = buffer.as_mut_ptr().cast();
        // SAFETY: `buffer` is borrowed mutably for the call, and the descriptor is open as long as
        // there is a `Socket`.
        let received =
            unsafe { libc::recv(self.descriptor, start, buffer.len(), libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| Error::last_os_error())
    }

    fn receive_two(&self, first: &mut [MaybeUninit<u8>], then: &mut [u8]) -> Result<usize> {
        let mut parts = [
            libc::iovec {
                iov_base: first.as_mut_ptr().cast(),
                iov_len: first.len(),
            },
            libc::iovec {
                iov_base: then.as_mut_ptr().cast(),
                iov_len: then.len(),
            },
        ];
        // SAFETY: an all-zero `msghdr` is valid: no name, no control data, no parts.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: the parts point to memory that is borrowed mutably for the call, and the
        // descriptor is open as long as there is a `Socket`.
        let received = unsafe { libc::recvmsg(self.descriptor, &mut message, libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| Error::last_os_error())
    }

    /// Waits until there is something to read, for `time` at most. Whether there is.
    pub fn await_readable(&self, time: Duration) -> bool {
        let mut polled = libc::pollfd {
            fd: self.descriptor,
            events: libc::POLLIN,
            revents: 0,
        };
        poll(&mut polled, time) > 0
    }

    /// Asks the VM for one `{:select, _, reference, :ready_input}` to the calling process, once
    /// there is something to read.
    pub fn notify(&self, env: Env, reference: Reference) -> Result<()> {
        self.acknowledge();
        let reference: Term = reference.into();
        // SAFETY: `env` is of the calling process, `polled` is a resource with a stop callback,
        // and a null pid stands for the calling process.
        let selected = unsafe {
            enif_select(
                env.as_c_arg(),
                self.descriptor,
                ERL_NIF_SELECT_READ,
                self.polled,
                ptr::null(),
                reference.as_c_arg(),
            )
        };
        if selected < 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.polls.set(true);
        Ok(())
    }

    /// Has the kernel acknowledge what was read, now. It may wait up to 40 ms for something to send with it, and a
    /// peer with Nagle's algorithm, as ActiveMQ is without `tcpNoDelay`, sends nothing more that is small until then.
    #[cfg(target_os = "linux")]
    fn acknowledge(&self) {
        let on: c_int = 1;
        // SAFETY: `on` is of the size that is said. It fails for a local socket, which has no such option.
        unsafe {
            libc::setsockopt(
                self.descriptor,
                libc::IPPROTO_TCP,
                libc::TCP_QUICKACK,
                ptr::from_ref(&on).cast(),
                size_of::<c_int>() as libc::socklen_t,
            );
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn acknowledge(&self) {}

    /// Tells the VM that the message has been handled, or is not wanted any more. Without this, the
    /// schedulers do not poll while we read.
    pub fn settle(&self, env: Env) {
        if self.polls.take() {
            let undefined = rustler::types::atom::undefined().to_term(env).as_c_arg();
            // SAFETY: as in `notify`. No message is cancelled by this but one to the owner.
            unsafe {
                enif_select(
                    env.as_c_arg(),
                    self.descriptor,
                    ERL_NIF_SELECT_READ | CANCEL,
                    self.polled,
                    ptr::null(),
                    undefined,
                );
            }
        }
    }

    /// Stops polling and has the duplicate closed. A `Socket` that is dropped instead is never
    /// closed.
    pub fn stop(self, env: Env, ending: Ending) {
        let this = ManuallyDrop::new(self);
        let undefined = rustler::types::atom::undefined().to_term(env).as_c_arg();
        // SAFETY: as in `notify`; this also runs the stop callback if nothing was ever selected.
        // The VM keeps the resource alive until that has happened, so our reference can go. Where
        // the VM refuses, because the descriptor is above its limit, it has never polled it and
        // does not run the callback: nobody else uses the descriptor, and it is closed here.
        unsafe {
            if ending == Ending::Shutdown && this.confirmed {
                libc::shutdown(this.descriptor, libc::SHUT_RDWR);
            }
            let stopped = enif_select(
                env.as_c_arg(),
                this.descriptor,
                ERL_NIF_SELECT_STOP,
                this.polled,
                ptr::null(),
                undefined,
            );
            if stopped < 0 {
                libc::close(this.descriptor);
            }
            enif_release_resource(this.polled);
        }
    }
}

#[cfg(debug_assertions)]
impl Drop for Socket {
    fn drop(&mut self) {
        eprintln!(
            "a bug: descriptor {} was not stopped, and stays open",
            self.descriptor
        );
    }
}
