//! Calls to the VM that make terms, for the path that every frame takes.

use crate::atoms;
use rustler::sys::{
    ErlNifBinary, ErlNifEnv, ErlNifTerm, enif_alloc_binary, enif_alloc_env, enif_clear_env,
    enif_free_env, enif_make_binary, enif_make_copy, enif_make_list_cell,
    enif_make_list_from_array, enif_make_map_from_arrays, enif_make_new_binary,
    enif_make_sub_binary, enif_make_tuple_from_array, enif_realloc_binary, enif_release_binary,
    enif_send,
};
use rustler::{Env, LocalPid, Term};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr;
use std::slice;
use std::sync::OnceLock;
use stomp::{BodyBuffer, Command};

/// Binaries up to this size live on the heap of their process and are cheap to make.
pub const HEAP_BINARY_MAX: usize = 64;

/// The memory of terms is counted in words.
pub const WORD: usize = size_of::<ErlNifTerm>();
/// A binary's header, or a reference to one that is not on the heap, and its own memory.
const HEAP_BINARY: usize = 2 * WORD;
const OFF_HEAP_BINARY: usize = 6 * WORD + 4 * WORD;

/// The memory that a binary of `length` bytes takes.
pub fn binary_bytes(length: usize) -> usize {
    if length <= HEAP_BINARY_MAX {
        HEAP_BINARY + length.next_multiple_of(WORD)
    } else {
        OFF_HEAP_BINARY + length
    }
}

/// The terms that every frame uses.
struct Constants {
    keys: [ErlNifTerm; 4],
    frame_module: ErlNifTerm,
    commands: [ErlNifTerm; Command::ALL.len()],
}

static CONSTANTS: OnceLock<Constants> = OnceLock::new();

/// Makes the terms that every frame uses. They are atoms, which are valid in every environment,
/// for ever.
pub fn init() {
    let command = |&command| atoms::of_command(command).as_c_arg();
    let commands: Vec<ErlNifTerm> = Command::ALL.iter().map(command).collect();
    CONSTANTS.get_or_init(|| Constants {
        keys: [
            atoms::struct_key().as_c_arg(),
            atoms::body().as_c_arg(),
            atoms::command().as_c_arg(),
            atoms::headers().as_c_arg(),
        ],
        frame_module: atoms::frame_module().as_c_arg(),
        commands: std::array::from_fn(|index| commands[index]),
    });
}

/// A term, without the environment that it belongs to.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RawTerm(ErlNifTerm);

impl RawTerm {
    pub fn of(term: Term) -> RawTerm {
        RawTerm(term.as_c_arg())
    }

    /// The term again, in `env`, which has to be the environment that it belongs to.
    pub fn in_env<'a>(self, env: Env<'a>) -> Term<'a> {
        // SAFETY: a `Batch` calls this with its own environment only.
        unsafe { Term::new(env, self.0) }
    }

    /// A copy in `env`.
    pub fn copy<'a>(self, env: Env<'a>) -> Term<'a> {
        // SAFETY: the environment of a `Batch`'s term is alive, and the copy is made in `env`.
        unsafe { Term::new(env, enif_make_copy(env.as_c_arg(), self.0)) }
    }
}

/// An environment that terms are made in. The terms that its methods take belong to it.
pub trait Environment {
    fn as_ptr(&self) -> *mut ErlNifEnv;

    fn binary(&self, bytes: &[u8]) -> RawTerm {
        let mut term = MaybeUninit::uninit();
        // SAFETY: the VM makes room for `bytes` and fills in the term; nobody else knows it yet.
        unsafe {
            let data = enif_make_new_binary(self.as_ptr(), bytes.len(), term.as_mut_ptr());
            ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
            RawTerm(term.assume_init())
        }
    }

    /// A binary of `size` bytes to be filled, outside the heap: more than 64.
    fn shared_binary(&self, size: usize) -> SharedBinary {
        assert!(size > HEAP_BINARY_MAX);
        let mut term = MaybeUninit::uninit();
        // SAFETY: as in `binary`. A binary of this size does not move.
        let data = unsafe { enif_make_new_binary(self.as_ptr(), size, term.as_mut_ptr()) };
        SharedBinary {
            // SAFETY: just filled in.
            term: unsafe { term.assume_init() },
            data,
            size,
            used: 0,
        }
    }

    /// Appends `bytes` to `shared`, which has room for them: the binary of this part.
    fn part(&self, shared: &mut SharedBinary, bytes: &[u8]) -> RawTerm {
        assert!(bytes.len() <= shared.room());
        let start = shared.used;
        shared.used += bytes.len();
        // SAFETY: there is room, and no term refers to this part of the memory yet.
        unsafe {
            let end = shared.data.add(start);
            ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
            let part = enif_make_sub_binary(self.as_ptr(), shared.term, start, bytes.len());
            RawTerm(part)
        }
    }

    /// A list of `terms`.
    fn list(&self, terms: &[RawTerm]) -> RawTerm {
        let start = terms.as_ptr().cast();
        // SAFETY: a `RawTerm` is an `ErlNifTerm`, and there are as many as said.
        RawTerm(unsafe { enif_make_list_from_array(self.as_ptr(), start, terms.len() as u32) })
    }

    fn cell(&self, head: RawTerm, tail: RawTerm) -> RawTerm {
        // SAFETY: both terms belong to this environment.
        RawTerm(unsafe { enif_make_list_cell(self.as_ptr(), head.0, tail.0) })
    }

    fn pair(&self, first: RawTerm, second: RawTerm) -> RawTerm {
        let terms = [first.0, second.0];
        // SAFETY: as in `cell`.
        RawTerm(unsafe { enif_make_tuple_from_array(self.as_ptr(), terms.as_ptr(), 2) })
    }

    /// A `Barytherium.Frame`.
    fn frame(&self, command: Command, headers: RawTerm, body: RawTerm) -> RawTerm {
        let constants = CONSTANTS.get().expect("made when the library was loaded");
        let command = constants.commands[command as usize];
        let values = [constants.frame_module, body.0, command, headers.0];
        let mut map = MaybeUninit::uninit();
        // SAFETY: there are as many keys as values, and the keys differ, so this cannot fail and
        // `map` is written.
        unsafe {
            enif_make_map_from_arrays(
                self.as_ptr(),
                constants.keys.as_ptr(),
                values.as_ptr(),
                values.len(),
                map.as_mut_ptr(),
            );
            RawTerm(map.assume_init())
        }
    }
}

impl Environment for Env<'_> {
    fn as_ptr(&self) -> *mut ErlNifEnv {
        self.as_c_arg()
    }
}

/// A binary that is filled piece by piece, each of which becomes a binary that refers to it.
pub struct SharedBinary {
    term: ErlNifTerm,
    data: *mut u8,
    size: usize,
    used: usize,
}

impl SharedBinary {
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn room(&self) -> usize {
        self.size - self.used
    }
}

/// An environment for messages, one after the other.
pub struct MessageEnv(*mut ErlNifEnv);

impl Environment for MessageEnv {
    fn as_ptr(&self) -> *mut ErlNifEnv {
        self.0
    }
}

impl MessageEnv {
    pub fn new() -> MessageEnv {
        // SAFETY: no preconditions; the VM ends itself when it has no memory for it.
        MessageEnv(unsafe { enif_alloc_env() })
    }

    pub fn env(&self) -> Env<'_> {
        // SAFETY: the environment lives as long as `self` is borrowed.
        unsafe { Env::new(self, self.0) }
    }

    /// Sends the message that `make` makes to `pid`, without copying it. Nothing is left in the
    /// environment. False if there is no such process any more.
    pub fn send(
        &mut self,
        caller: Env,
        pid: &LocalPid,
        make: impl for<'e> FnOnce(Env<'e>) -> Term<'e>,
    ) -> bool {
        let message = make(self.env()).as_c_arg();
        // SAFETY: `caller` is the environment of the process that runs the NIF, `message` belongs
        // to `self`. The VM takes the environment's contents; the environment itself stays ours.
        let sent = unsafe { enif_send(caller.as_c_arg(), pid.as_c_arg(), self.0, message) };
        self.clear();
        sent != 0
    }

    /// Frees all terms.
    pub fn clear(&mut self) {
        // SAFETY: terms that were made in it do not outlive the borrow of `self`.
        unsafe { enif_clear_env(self.0) };
    }
}

impl Drop for MessageEnv {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, and terms of it do not outlive the borrow of `self`.
        unsafe { enif_free_env(self.0) };
    }
}

/// A body that is collected in the binary that will be its term: one copy from the socket.
pub struct BinaryBody {
    binary: ErlNifBinary,
    length: usize,
}

// SAFETY: the binary is ours alone until it becomes a term, and may be filled on any thread.
unsafe impl Send for BinaryBody {}

impl BinaryBody {
    /// Room for bytes that are still to come, at most `missing` of them.
    pub fn spare(&mut self, missing: usize) -> &mut [MaybeUninit<u8>] {
        if self.length == self.binary.size {
            self.grow(missing);
        }
        let room = (self.binary.size - self.length).min(missing);
        // SAFETY: the binary has `size` bytes, of which `length` are filled; `MaybeUninit` does
        // not claim that the rest is.
        unsafe { slice::from_raw_parts_mut(self.binary.data.add(self.length).cast(), room) }
    }

    /// Accounts for `bytes` that were written to [`spare`](Self::spare).
    ///
    /// # Safety
    /// They must have been written.
    pub unsafe fn filled(&mut self, bytes: usize) {
        debug_assert!(self.length + bytes <= self.binary.size);
        self.length += bytes;
    }

    /// Makes room for `more` bytes, but at most doubles: appending stays linear, and a length that
    /// a peer only announced costs nothing.
    fn grow(&mut self, more: usize) {
        let size = self.length + more.min(self.length.max(HEAP_BINARY_MAX));
        self.resize(size);
    }

    fn resize(&mut self, size: usize) {
        // SAFETY: the binary was allocated by `enif_alloc_binary` and is not a term yet.
        let resized = unsafe { enif_realloc_binary(&mut self.binary, size) };
        assert!(resized != 0, "out of memory for a body of {size} bytes");
    }

    pub fn into_term(mut self, environment: &impl Environment) -> RawTerm {
        if self.length <= HEAP_BINARY_MAX {
            return environment.binary(self.as_ref());
        }
        if self.length < self.binary.size {
            self.resize(self.length);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the binary is filled; making a term of it hands it to the VM, so it must not
        // be released here any more.
        RawTerm(unsafe { enif_make_binary(environment.as_ptr(), &mut this.binary) })
    }
}

impl BodyBuffer for BinaryBody {
    fn with_capacity(capacity: usize) -> Self {
        let mut binary = MaybeUninit::uninit();
        // SAFETY: `binary` is written if the allocation succeeds.
        let allocated = unsafe { enif_alloc_binary(capacity, binary.as_mut_ptr()) };
        assert!(
            allocated != 0,
            "out of memory for a body of {capacity} bytes"
        );
        BinaryBody {
            // SAFETY: just checked.
            binary: unsafe { binary.assume_init() },
            length: 0,
        }
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        let needed = self.length + bytes.len();
        if needed > self.binary.size {
            self.resize(needed.max(self.length * 2));
        }
        // SAFETY: there is room for `bytes` behind `length`, and nobody else has this memory.
        unsafe {
            let end = self.binary.data.add(self.length);
            ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
        }
        self.length = needed;
    }
}

impl AsRef<[u8]> for BinaryBody {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `length` bytes are filled.
        unsafe { slice::from_raw_parts(self.binary.data, self.length) }
    }
}

impl Drop for BinaryBody {
    fn drop(&mut self) {
        // SAFETY: it did not become a term, or this would not run.
        unsafe { enif_release_binary(&mut self.binary) };
    }
}
