//! Frames as Erlang terms.
//!
//! * [`batch`]: the frames of one message, made together;
//! * [`headers`]: the lists of their headers;
//! * [`bodies`]: the binaries of their bodies;
//! * [`raw`]: the calls to the VM, with all of the `unsafe` code.

mod batch;
mod bodies;
mod headers;
#[allow(unsafe_code)]
mod raw;

pub use batch::{Batch, KeptFrame, MessageBatch};
pub use bodies::BodyPlace;
pub use raw::{Arena, BinaryBody, Caller, init};

use rustler::{Binary, Encoder, Env, NewBinary, Term};

/// A copy of `bytes` as a binary, where no frame is made.
pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    Binary::from(NewBinary::from_slice(env, bytes)).encode(env)
}
