//! Bodies as binaries.
//!
//! A binary that is too large for a heap costs an allocation, a reference count and a release. So
//! bodies that follow each other are cut out of one binary. Whoever keeps one of them keeps all of
//! that binary: it holds no more than [`SHARED_BODIES`] times the smallest body in it.

use super::raw::{
    BinaryBody, HEAP_BINARY_MAX, MakeTerms, RawTerm, SharedBinary, WORD, binary_bytes,
};
use rustler::Env;
use stomp::Body;

/// The size of a shared binary, in bodies.
const SHARED_BODIES: usize = 8;

/// For a larger body the copying costs more than the allocation.
const SHARED_BODY_MAX: usize = 16 * 1024;

/// A reference to a part of a shared binary.
const SUB_BINARY: usize = 6 * WORD;

/// Bodies share a binary with others of their class: of at least half their size, and less than
/// twice their size. Feeds mix small and large bodies, and a large one in between must not end the
/// sharing of the small ones.
const CLASSES: usize = (SHARED_BODY_MAX.ilog2() - HEAP_BINARY_MAX.ilog2()) as usize + 1;

/// How the body of a frame is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyPlace {
    /// In a binary of its own.
    Own,
    /// In one that it may share with the next bodies. How many these are is estimated from the bytes
    /// of this frame and the bytes that follow it.
    Shared { frame: usize, following: usize },
}

impl BodyPlace {
    /// The place of a body whose frame has `frame` bytes, if `following` more bytes were read.
    pub fn new(may_share: bool, frame: usize, following: usize) -> BodyPlace {
        if may_share {
            BodyPlace::Shared { frame, following }
        } else {
            BodyPlace::Own
        }
    }
}

/// The binaries of one batch.
#[derive(Default)]
pub struct Bodies<'e> {
    classes: [Class<'e>; CLASSES],
    bytes: usize,
}

#[derive(Default)]
struct Class<'e> {
    binary: Option<SharedBinary<'e>>,
    /// The smallest body so far; 0 before the first.
    smallest: usize,
}

impl<'e> Bodies<'e> {
    /// Bytes of memory that the binaries take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Accounts for a body that is a term already.
    pub fn add_part(&mut self) {
        self.bytes += SUB_BINARY;
    }

    /// Accounts for a binary of `length` bytes.
    fn add(&mut self, length: usize) {
        self.bytes += binary_bytes(length);
    }

    /// The binary of a frame's body.
    pub fn of_frame(
        &mut self,
        env: Env<'e>,
        body: Body<'_, BinaryBody>,
        place: BodyPlace,
    ) -> RawTerm<'e> {
        match body {
            Body::Borrowed(body) => self.make(env, body, place),
            Body::Owned(body) => self.collected(env, body),
        }
    }

    /// The binary of a body that was collected.
    pub fn collected(&mut self, env: Env<'e>, body: BinaryBody) -> RawTerm<'e> {
        self.add(body.as_ref().len());
        env.body(body)
    }

    /// The binary of a body.
    fn make(&mut self, env: Env<'e>, body: &[u8], place: BodyPlace) -> RawTerm<'e> {
        if let BodyPlace::Shared { frame, following } = place
            && body.len() > HEAP_BINARY_MAX
            && body.len() <= SHARED_BODY_MAX
            && let Some(shared) = self.shared(env, body.len(), frame, following)
        {
            return env.part(shared, body);
        }
        self.add(body.len());
        env.binary(body)
    }

    /// A binary that has room for a body of `length` bytes. `None` if the body should have its own.
    /// The first body of a class gets its own, because it may be the only one.
    fn shared(
        &mut self,
        env: Env<'e>,
        length: usize,
        frame: usize,
        following: usize,
    ) -> Option<&mut SharedBinary<'e>> {
        let class = &mut self.classes[(length.ilog2() - HEAP_BINARY_MAX.ilog2()) as usize];
        let is_first = class.smallest == 0;
        if is_first || length < class.smallest {
            class.smallest = length;
        }
        let size = class.binary.as_ref().map_or(0, SharedBinary::size);
        if is_first || size > length * SHARED_BODIES {
            return None;
        }
        if class
            .binary
            .as_ref()
            .is_none_or(|shared| shared.room() < length)
        {
            let bodies = SHARED_BODIES.min(1 + following / frame.max(1));
            let size = class.smallest * bodies;
            if size < 2 * length {
                return None;
            }
            self.bytes += binary_bytes(size);
            class.binary = Some(env.shared_binary(size));
        }
        self.bytes += SUB_BINARY;
        class.binary.as_mut()
    }
}
