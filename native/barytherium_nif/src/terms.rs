//! Terms made by raw calls, for the path that every frame takes: binaries that are filled before
//! they are terms, headers whose terms are reused, and messages in environments of their own.

use crate::atoms;
use rustler::sys::{
    ErlNifBinary, ErlNifEnv, ErlNifTerm, enif_alloc_binary, enif_alloc_env, enif_free_env,
    enif_make_binary, enif_make_list_cell, enif_make_list_from_array, enif_make_map_from_arrays,
    enif_make_new_binary, enif_make_tuple_from_array, enif_realloc_binary, enif_release_binary,
    enif_send,
};
use rustler::{Env, LocalPid, Term};
use std::mem::MaybeUninit;
use std::ptr;
use std::slice;
use std::sync::OnceLock;
use stomp::{BodyBuffer, Command, Header, Same};

/// Binaries up to this size live on the heap of their process and are cheap to make.
const HEAP_BINARY_MAX: usize = 64;

/// The terms that every frame uses.
struct Constants {
    keys: [ErlNifTerm; 4],
    frame_module: ErlNifTerm,
    commands: [ErlNifTerm; Command::ALL.len()],
}

static CONSTANTS: OnceLock<Constants> = OnceLock::new();

/// Makes what every frame uses. Atoms are valid in every environment, for ever.
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

/// A body that is collected in the binary that will be its term: one copy from the socket.
pub struct BinaryBody {
    binary: ErlNifBinary,
    length: usize,
}

// SAFETY: the binary is ours alone until it becomes a term, and may be filled on any thread.
unsafe impl Send for BinaryBody {}

impl BinaryBody {
    /// Room for octets that are still to come, at most `missing` of them.
    pub fn spare(&mut self, missing: usize) -> &mut [MaybeUninit<u8>] {
        if self.length == self.binary.size {
            self.grow(missing);
        }
        let room = (self.binary.size - self.length).min(missing);
        // SAFETY: the binary has `size` octets, of which `length` are filled; `MaybeUninit` does
        // not claim that the rest is.
        unsafe { slice::from_raw_parts_mut(self.binary.data.add(self.length).cast(), room) }
    }

    /// Accounts for `octets` that were written to [`spare`](Self::spare).
    ///
    /// # Safety
    /// They must have been written.
    pub unsafe fn filled(&mut self, octets: usize) {
        debug_assert!(self.length + octets <= self.binary.size);
        self.length += octets;
    }

    /// Makes room for `more` octets, but for no more than that and as many as there already are:
    /// doubling keeps appending linear, and a length that a peer only announced costs nothing.
    fn grow(&mut self, more: usize) {
        let size = self.length + more.min(self.length.max(HEAP_BINARY_MAX));
        self.resize(size);
    }

    fn resize(&mut self, size: usize) {
        // SAFETY: the binary was allocated by `enif_alloc_binary` and is not a term yet.
        let resized = unsafe { enif_realloc_binary(&mut self.binary, size) };
        assert!(resized != 0, "out of memory for a body of {size} octets");
    }

    fn into_term(mut self, env: Env) -> ErlNifTerm {
        if self.length <= HEAP_BINARY_MAX {
            return binary(env, self.as_ref());
        }
        if self.length < self.binary.size {
            self.resize(self.length);
        }
        let mut this = std::mem::ManuallyDrop::new(self);
        // SAFETY: the binary is filled; making a term of it hands it to the VM, so it must not
        // be released here any more.
        unsafe { enif_make_binary(env.as_c_arg(), &mut this.binary) }
    }
}

impl BodyBuffer for BinaryBody {
    fn with_capacity(capacity: usize) -> Self {
        let mut binary = MaybeUninit::uninit();
        // SAFETY: `binary` is written if the allocation succeeds.
        let allocated = unsafe { enif_alloc_binary(capacity, binary.as_mut_ptr()) };
        assert!(
            allocated != 0,
            "out of memory for a body of {capacity} octets"
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
        // SAFETY: `length` octets are filled.
        unsafe { slice::from_raw_parts(self.binary.data, self.length) }
    }
}

impl Drop for BinaryBody {
    fn drop(&mut self) {
        // SAFETY: it did not become a term, or this would not run.
        unsafe { enif_release_binary(&mut self.binary) };
    }
}

/// What a binary of `length` octets takes up.
fn binary_octets(length: usize) -> usize {
    if length <= HEAP_BINARY_MAX {
        HEAP_BINARY + length.next_multiple_of(WORD)
    } else {
        OFF_HEAP_BINARY + length
    }
}

fn binary(env: Env, bytes: &[u8]) -> ErlNifTerm {
    let mut term = MaybeUninit::uninit();
    // SAFETY: the VM makes room for `bytes` and fills in the term; nobody else knows it yet.
    unsafe {
        let data = enif_make_new_binary(env.as_c_arg(), bytes.len(), term.as_mut_ptr());
        ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        term.assume_init()
    }
}

/// What terms take on a heap, in octets.
const WORD: usize = size_of::<ErlNifTerm>();
const CELL: usize = 2 * WORD;
/// A tuple of two.
const PAIR: usize = 3 * WORD;
/// A map of four keys, the tuple of its keys, and its cell in the list of frames.
const FRAME: usize = 14 * WORD;
/// A binary's header, or a reference to one that is not on the heap, and its own memory.
const HEAP_BINARY: usize = 2 * WORD;
const OFF_HEAP_BINARY: usize = 6 * WORD + 4 * WORD;

/// How many headers at a list's end have to be those of the frame before for the end to be shared:
/// a cell that is made by itself takes twice as long as one of a whole list, and a shared one is
/// memory that the listener's collector need not look after.
const SHARED_END_MIN: usize = 3;

/// Makes frames' terms in one environment. Feeds repeat most of their header lines from frame to
/// frame: a line that is the same as at the same place of the frame before has that one's term,
/// and so have a name alone and the end of a list.
#[derive(Default)]
pub struct FrameTerms {
    frames: Vec<ErlNifTerm>,
    /// The headers of the frame that was pushed last, and their names.
    pairs: Vec<ErlNifTerm>,
    names: Vec<ErlNifTerm>,
    /// The list that starts at each header, and the empty one behind them; none if the last list
    /// was made as a whole.
    ends: Vec<ErlNifTerm>,
    /// Octets that the terms take up since `begin`, and headers that were made for them.
    octets: usize,
    made: usize,
}

// SAFETY: terms are plain words; `begin` forgets those of another environment.
unsafe impl Send for FrameTerms {}

impl FrameTerms {
    /// Forgets everything: what follows is made in another environment.
    pub fn begin(&mut self) {
        self.frames.clear();
        self.pairs.clear();
        self.names.clear();
        self.ends.clear();
        self.octets = 0;
        self.made = 0;
    }

    /// How many octets of memory the frames since `begin` take up.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// How many headers since `begin` were not those of the frame before.
    pub fn made(&self) -> usize {
        self.made
    }

    /// How many frames there are since `begin`.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Adds a frame. From one `begin` to the next, `env` must be the same, and the frames all
    /// those that one decoder gave, in order.
    pub fn push(&mut self, env: Env, frame: stomp::Frame<'_, BinaryBody>) {
        let headers = self.headers(env, frame.headers());
        let command = frame.command();
        self.octets += binary_octets(frame.body.as_ref().len());
        let body = match frame.body {
            stomp::Body::Borrowed(bytes) => binary(env, bytes),
            stomp::Body::Owned(body) => body.into_term(env),
        };
        self.frames.push(map(env, command, headers, body));
    }

    /// The same, with a body that is there as a term.
    pub fn push_with_body(
        &mut self,
        env: Env,
        frame: &stomp::Frame<'_, BinaryBody>,
        body: rustler::Binary,
    ) {
        let headers = self.headers(env, frame.headers());
        let body = body.to_term(env).as_c_arg();
        self.frames.push(map(env, frame.command(), headers, body));
    }

    fn headers<'a>(
        &mut self,
        env: Env,
        headers: impl ExactSizeIterator<Item = Header<'a>>,
    ) -> ErlNifTerm {
        let count = headers.len();
        self.octets += FRAME;
        if count != self.pairs.len() {
            self.ends.clear();
        }
        self.pairs.truncate(count);
        self.names.truncate(count);
        let mut new = 0;
        for (index, header) in headers.enumerate() {
            if self.header(env, index, header) {
                new = index + 1;
            }
        }
        if count - new < SHARED_END_MIN {
            self.ends.clear();
            self.octets += count * CELL;
            return list(env, &self.pairs);
        }
        self.linked(env, new)
    }

    /// The headers' list, whose first `new` are others than in the list before.
    fn linked(&mut self, env: Env, new: usize) -> ErlNifTerm {
        let new = if self.ends.is_empty() {
            self.ends.resize(self.pairs.len() + 1, list(env, &[]));
            self.pairs.len()
        } else {
            new
        };
        self.octets += new * CELL;
        for index in (0..new).rev() {
            self.ends[index] = cell(env, self.pairs[index], self.ends[index + 1]);
        }
        self.ends[0]
    }

    /// Whether it is another than at the same place of the frame before.
    fn header(&mut self, env: Env, index: usize, header: Header) -> bool {
        let known = index < self.pairs.len();
        let name = match header.same() {
            Same::Line if known => return false,
            Same::Name if known => self.names[index],
            _ => self.binary(env, &header.name()),
        };
        let value = self.binary(env, &header.value());
        let pair = tuple(env, &[name, value]);
        self.octets += PAIR;
        self.made += 1;
        if known {
            (self.names[index], self.pairs[index]) = (name, pair);
        } else {
            self.names.push(name);
            self.pairs.push(pair);
        }
        true
    }

    fn binary(&mut self, env: Env, bytes: &[u8]) -> ErlNifTerm {
        self.octets += binary_octets(bytes.len());
        binary(env, bytes)
    }

    /// The frame that was pushed last.
    pub fn last<'a>(&self, env: Env<'a>) -> Option<Term<'a>> {
        // SAFETY: `env` is the environment that the frame was made in.
        self.frames
            .last()
            .map(|&frame| unsafe { Term::new(env, frame) })
    }

    /// The list of the frames since `begin`.
    pub fn list<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: the term was just made in `env`.
        unsafe { Term::new(env, list(env, &self.frames)) }
    }
}

/// A `Barytherium.Frame`.
fn map(env: Env, command: Command, headers: ErlNifTerm, body: ErlNifTerm) -> ErlNifTerm {
    let constants = CONSTANTS.get().expect("made when the library was loaded");
    let values = [
        constants.frame_module,
        body,
        constants.commands[command as usize],
        headers,
    ];
    let mut map = MaybeUninit::uninit();
    // SAFETY: as many keys as values, all terms of `env`, and the keys differ, so this cannot
    // fail and `map` is written.
    unsafe {
        enif_make_map_from_arrays(
            env.as_c_arg(),
            constants.keys.as_ptr(),
            values.as_ptr(),
            values.len(),
            map.as_mut_ptr(),
        );
        map.assume_init()
    }
}

fn cell(env: Env, head: ErlNifTerm, tail: ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as in `list`.
    unsafe { enif_make_list_cell(env.as_c_arg(), head, tail) }
}

fn list(env: Env, terms: &[ErlNifTerm]) -> ErlNifTerm {
    // SAFETY: `terms` are of `env`, and there are as many as said.
    unsafe { enif_make_list_from_array(env.as_c_arg(), terms.as_ptr(), terms.len() as u32) }
}

fn tuple(env: Env, terms: &[ErlNifTerm]) -> ErlNifTerm {
    // SAFETY: as in `list`.
    unsafe { enif_make_tuple_from_array(env.as_c_arg(), terms.as_ptr(), terms.len() as u32) }
}

/// An environment for one message.
pub struct MessageEnv(*mut ErlNifEnv);

impl MessageEnv {
    pub fn new() -> MessageEnv {
        // SAFETY: no preconditions; the VM ends itself when it has no memory for it.
        MessageEnv(unsafe { enif_alloc_env() })
    }

    /// The environment, for making the message's terms.
    pub fn env(&self) -> Env<'_> {
        // SAFETY: the environment lives as long as `self` is borrowed.
        unsafe { Env::new(self, self.0) }
    }

    /// Sends the message that `make` makes to `pid`, without copying it. False if there is no
    /// such process any more.
    pub fn send<'a>(
        &'a self,
        caller: Env,
        pid: &LocalPid,
        make: impl FnOnce(Env<'a>) -> Term<'a>,
    ) -> bool {
        let message = make(self.env()).as_c_arg();
        // SAFETY: `caller` is the environment of the process that runs the NIF, `message` is of
        // `self`. The VM takes the environment's contents; the environment itself stays ours.
        let sent = unsafe { enif_send(caller.as_c_arg(), pid.as_c_arg(), self.0, message) };
        sent != 0
    }
}

impl Drop for MessageEnv {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, and terms of it do not outlive the borrow of `self`.
        unsafe { enif_free_env(self.0) };
    }
}
