//! Calls to the VM that make terms, for the path that every frame takes.
//!
//! A [`RawTerm<'e>`] belongs to the environment `Env<'e>`. The lifetime is invariant, and no two environments of a NIF
//! or an [`Arena`] have the same, so the compiler refuses to mix their terms, and to keep a term for longer than its
//! environment. (Rustler's `OwnedEnv::run` lets its user choose the lifetime, so it has no place in this library.) An
//! [`Arena`] is the one place where terms are kept without a lifetime, together with their environment.

use crate::atoms;
use rustler::sys::{
    ErlNifBinary, ErlNifEnv, ErlNifTerm, enif_alloc_binary, enif_alloc_env, enif_clear_env,
    enif_free_env, enif_make_binary, enif_make_list_cell, enif_make_list_from_array,
    enif_make_map_from_arrays, enif_make_new_binary, enif_make_sub_binary,
    enif_make_tuple_from_array, enif_realloc_binary, enif_release_binary, enif_send,
};
use rustler::{Env, LocalPid, Term};
use std::marker::PhantomData;
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

/// A term of the environment `Env<'e>`, in one word. [`Term`] takes two.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RawTerm<'e> {
    term: ErlNifTerm,
    /// As in `Env`: invariant.
    environment: PhantomData<*mut &'e u8>,
}

impl<'e> RawTerm<'e> {
    /// # Safety
    /// `term` belongs to the environment `Env<'e>`.
    unsafe fn new(term: ErlNifTerm) -> RawTerm<'e> {
        RawTerm {
            term,
            environment: PhantomData,
        }
    }

    pub fn of(term: Term<'e>) -> RawTerm<'e> {
        // SAFETY: that is what the lifetime of a `Term` says.
        unsafe { RawTerm::new(term.as_c_arg()) }
    }

    pub fn in_env(self, env: Env<'e>) -> Term<'e> {
        // SAFETY: the environments are the same, because their lifetimes are.
        unsafe { Term::new(env, self.term) }
    }
}

/// Making the terms of frames.
pub trait MakeTerms<'e> {
    fn binary(self, bytes: &[u8]) -> RawTerm<'e>;
    /// A binary of `size` bytes to be filled, outside the heap: more than 64.
    fn shared_binary(self, size: usize) -> SharedBinary<'e>;
    /// Appends `bytes` to `shared`, which has room for them: the binary of this part.
    fn part(self, shared: &mut SharedBinary<'e>, bytes: &[u8]) -> RawTerm<'e>;
    fn list(self, terms: &[RawTerm<'e>]) -> RawTerm<'e>;
    fn cell(self, head: RawTerm<'e>, tail: RawTerm<'e>) -> RawTerm<'e>;
    fn pair(self, first: RawTerm<'e>, second: RawTerm<'e>) -> RawTerm<'e>;
    /// A `Barytherium.Frame`.
    fn frame(self, command: Command, headers: RawTerm<'e>, body: RawTerm<'e>) -> RawTerm<'e>;
    /// The binary of a body that was collected.
    fn body(self, body: BinaryBody) -> RawTerm<'e>;
}

// SAFETY of all `RawTerm::new` here: the term was made in `self`, or is an argument that belongs to it.
impl<'e> MakeTerms<'e> for Env<'e> {
    fn binary(self, bytes: &[u8]) -> RawTerm<'e> {
        let mut term = MaybeUninit::uninit();
        // SAFETY: the VM makes room for `bytes` and fills in the term; nobody else knows it yet.
        unsafe {
            let data = enif_make_new_binary(self.as_c_arg(), bytes.len(), term.as_mut_ptr());
            ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
            RawTerm::new(term.assume_init())
        }
    }

    fn shared_binary(self, size: usize) -> SharedBinary<'e> {
        assert!(size > HEAP_BINARY_MAX);
        let mut term = MaybeUninit::uninit();
        // SAFETY: as in `binary`. A binary of this size does not move.
        let data = unsafe { enif_make_new_binary(self.as_c_arg(), size, term.as_mut_ptr()) };
        SharedBinary {
            // SAFETY: just filled in.
            term: unsafe { RawTerm::new(term.assume_init()) },
            data,
            size,
            used: 0,
        }
    }

    fn part(self, shared: &mut SharedBinary<'e>, bytes: &[u8]) -> RawTerm<'e> {
        assert!(bytes.len() <= shared.room());
        let start = shared.used;
        shared.used += bytes.len();
        // SAFETY: the binary is alive as long as its environment. There is room, and no term refers to this
        // part of the memory yet.
        unsafe {
            let end = shared.data.add(start);
            ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
            let whole = shared.term.term;
            let part = enif_make_sub_binary(self.as_c_arg(), whole, start, bytes.len());
            RawTerm::new(part)
        }
    }

    fn list(self, terms: &[RawTerm<'e>]) -> RawTerm<'e> {
        let (start, count) = (terms.as_ptr().cast(), terms.len() as u32);
        // SAFETY: a `RawTerm` is an `ErlNifTerm`, and there are as many as said.
        unsafe { RawTerm::new(enif_make_list_from_array(self.as_c_arg(), start, count)) }
    }

    fn cell(self, head: RawTerm<'e>, tail: RawTerm<'e>) -> RawTerm<'e> {
        // SAFETY: both terms belong to this environment.
        unsafe { RawTerm::new(enif_make_list_cell(self.as_c_arg(), head.term, tail.term)) }
    }

    fn pair(self, first: RawTerm<'e>, second: RawTerm<'e>) -> RawTerm<'e> {
        let terms = [first.term, second.term];
        // SAFETY: as in `cell`.
        unsafe {
            RawTerm::new(enif_make_tuple_from_array(
                self.as_c_arg(),
                terms.as_ptr(),
                2,
            ))
        }
    }

    fn frame(self, command: Command, headers: RawTerm<'e>, body: RawTerm<'e>) -> RawTerm<'e> {
        let constants = CONSTANTS.get().expect("made when the library was loaded");
        let command = constants.commands[command as usize];
        let values = [constants.frame_module, body.term, command, headers.term];
        let mut map = MaybeUninit::uninit();
        // SAFETY: there are as many keys as values, and the keys differ, so this cannot fail and
        // `map` is written.
        unsafe {
            enif_make_map_from_arrays(
                self.as_c_arg(),
                constants.keys.as_ptr(),
                values.as_ptr(),
                values.len(),
                map.as_mut_ptr(),
            );
            RawTerm::new(map.assume_init())
        }
    }

    fn body(self, mut body: BinaryBody) -> RawTerm<'e> {
        if body.length <= HEAP_BINARY_MAX {
            return self.binary(body.as_ref());
        }
        if body.length < body.binary.size {
            body.resize(body.length);
        }
        let mut body = ManuallyDrop::new(body);
        // SAFETY: the binary is filled; making a term of it hands it to the VM, so it must not
        // be released here any more.
        unsafe { RawTerm::new(enif_make_binary(self.as_c_arg(), &mut body.binary)) }
    }
}

/// A binary that is filled piece by piece, each of which becomes a binary that refers to it.
pub struct SharedBinary<'e> {
    term: RawTerm<'e>,
    data: *mut u8,
    size: usize,
    used: usize,
}

impl SharedBinary<'_> {
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn room(&self) -> usize {
        self.size - self.used
    }
}

/// The environment of the process that runs a NIF: one that messages can be sent from.
#[derive(Clone, Copy)]
pub struct Caller<'a>(Env<'a>);

impl<'a> Caller<'a> {
    /// # Safety
    /// `env` is the first argument of a NIF that is being called.
    pub unsafe fn new(env: Env<'a>) -> Caller<'a> {
        Caller(env)
    }

    pub fn env(self) -> Env<'a> {
        self.0
    }
}

/// What an [`Arena`] keeps with its environment: something that holds terms of it.
pub trait Kept {
    type In<'e>: Default;

    /// The same without terms, for the environment's next contents. Between these lifetimes no term can get
    /// from one to the other.
    fn emptied<'f>(kept: Self::In<'_>) -> Self::In<'f>;
}

/// The memory of `terms`, without them.
pub fn emptied<'f>(mut terms: Vec<RawTerm<'_>>) -> Vec<RawTerm<'f>> {
    terms.clear();
    let mut terms = ManuallyDrop::new(terms);
    // SAFETY: of the same vector, which is empty. The lifetime of a type does not change how it is laid out.
    unsafe { Vec::from_raw_parts(terms.as_mut_ptr().cast(), 0, terms.capacity()) }
}

impl Kept for () {
    type In<'e> = ();

    fn emptied<'f>(_nothing: Self::In<'_>) -> Self::In<'f> {}
}

/// An environment for messages, one after the other, and what holds terms of it. Both are emptied together, so
/// there is no term without its environment.
pub struct Arena<K: Kept> {
    environment: *mut ErlNifEnv,
    /// Its terms belong to `environment`.
    kept: K::In<'static>,
}

impl<K: Kept> Arena<K> {
    pub fn new() -> Arena<K> {
        Arena {
            // SAFETY: no preconditions; the VM ends itself when it has no memory for it.
            environment: unsafe { enif_alloc_env() },
            kept: Default::default(),
        }
    }

    /// Calls `f` with the environment and what is kept with it.
    pub fn with<T>(&mut self, f: impl for<'e> FnOnce(Env<'e>, &mut K::In<'e>) -> T) -> T {
        let kept: *mut K::In<'static> = &mut self.kept;
        let environment = self.environment;
        // SAFETY: the environment and what is kept live as long as `self` is borrowed. The lifetimes of a type
        // do not change how it is laid out. `f` has to work with every lifetime, so it cannot mix these terms
        // with others, or keep them elsewhere.
        unsafe { f(Env::new(&environment, environment), &mut *kept.cast()) }
    }

    /// Sends the message that `make` makes to `pid`, without copying it. Nothing is left in the arena. False if
    /// there is no such process any more.
    pub fn send(
        &mut self,
        caller: Caller,
        pid: &LocalPid,
        make: impl for<'e> FnOnce(Env<'e>, &mut K::In<'e>) -> Term<'e>,
    ) -> bool {
        let message = self.with(|env, kept| make(env, kept).as_c_arg());
        let caller = caller.env().as_c_arg();
        // SAFETY: `caller` is the environment of the process that runs the NIF, and `message` belongs
        // to ours. The VM takes its contents; the environment itself stays ours.
        let sent = unsafe { enif_send(caller, pid.as_c_arg(), self.environment, message) };
        // If there is no such process, the contents are left.
        self.clear();
        sent != 0
    }

    /// Frees all terms.
    pub fn clear(&mut self) {
        self.kept = K::emptied(std::mem::take(&mut self.kept));
        // SAFETY: there are no terms in `kept`, and others do not outlive `with`.
        unsafe { enif_clear_env(self.environment) };
    }
}

impl<K: Kept> Drop for Arena<K> {
    fn drop(&mut self) {
        // What is kept may look at its terms when it is dropped.
        drop(std::mem::take(&mut self.kept));
        // SAFETY: allocated in `new`, and nobody has terms of it any more.
        unsafe { enif_free_env(self.environment) };
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

    /// Makes room for `more` bytes: for `expected` in all, or for twice what there is, but for no more than `max`.
    pub fn make_room(&mut self, more: usize, expected: usize, max: u64) {
        let needed = self.length + more;
        if needed > self.binary.size {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            let size = if expected > needed {
                expected
            } else {
                self.length * 2
            };
            self.resize(needed.max(max.min(size)));
        }
    }

    /// The memory that it takes.
    pub fn capacity(&self) -> usize {
        self.binary.size
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
