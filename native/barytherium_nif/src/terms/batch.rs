//! The frames of one message, as terms of one environment.

use super::bodies::{Bodies, BodyPlace};
use super::headers::Headers;
use super::raw::{Arena, BinaryBody, Kept, MakeTerms, RawTerm, WORD, emptied};
use crate::atoms;
use rustler::{Atom, Binary, Encoder, Env, Term};
use std::time::Duration;
use stomp::Command;

/// The memory of a map of four keys, the tuple of its keys, and its cell in the list of frames.
const FRAME: usize = 14 * WORD;

/// Frames in the environment `Env<'e>`.
#[derive(Default)]
pub struct Batch<'e> {
    frames: Vec<RawTerm<'e>>,
    headers: Headers<'e>,
    bodies: Bodies<'e>,
    /// When the first frame was read.
    read_at: Duration,
}

/// A frame that has outlasted the input that it came in.
pub struct KeptFrame {
    pub command: Command,
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: BinaryBody,
    /// Why the body is still compressed.
    pub compressed: Option<Atom>,
}

/// A batch with an environment of its own, which becomes a message.
pub type MessageBatch = Arena<Batch<'static>>;

impl Kept for Batch<'static> {
    type In<'e> = Batch<'e>;

    fn emptied<'f>(batch: Batch<'_>) -> Batch<'f> {
        Batch {
            frames: emptied(batch.frames),
            headers: batch.headers.emptied(),
            bodies: Bodies::default(),
            read_at: Duration::ZERO,
        }
    }
}

impl<'e> Batch<'e> {
    /// The next frame was read at this time of the clock.
    pub fn reads_at(&mut self, time: Duration) {
        if self.frames.is_empty() {
            self.read_at = time;
        }
    }

    /// When the first frame was read.
    pub fn read_at(&self) -> Duration {
        self.read_at
    }

    /// Adds a frame. All frames have to come from one decoder, in its order; some may be left out. `compressed`
    /// is why the body is still that. Returns how many bytes of memory its new headers take.
    pub fn push(
        &mut self,
        env: Env<'e>,
        frame: stomp::Frame<'_, BinaryBody>,
        place: BodyPlace,
        compressed: Option<Atom>,
    ) -> usize {
        let before = self.headers.bytes();
        let headers = self.headers.list(env, &frame);
        let command = frame.command();
        let body = self.bodies.of_frame(env, frame.body, place);
        self.add(env, command, headers, said(env, body, compressed));
        self.headers.bytes() - before
    }

    /// Adds a frame that was kept.
    pub fn push_kept(&mut self, env: Env<'e>, frame: KeptFrame) {
        let headers = self.headers.own_list(env, &frame.headers);
        let body = self.bodies.collected(env, frame.body);
        let body = said(env, body, frame.compressed);
        self.add(env, frame.command, headers, body);
    }

    /// Adds a frame whose body is a term already.
    pub fn push_with_body(
        &mut self,
        env: Env<'e>,
        frame: &stomp::Frame<'_, BinaryBody>,
        body: Binary<'e>,
    ) {
        let headers = self.headers.list(env, frame);
        self.bodies.add_part();
        self.add(
            env,
            frame.command(),
            headers,
            RawTerm::of(body.to_term(env)),
        );
    }

    fn add(&mut self, env: Env<'e>, command: Command, headers: RawTerm<'e>, body: RawTerm<'e>) {
        self.frames.push(env.frame(command, headers, body));
    }

    /// The list of all frames.
    pub fn list(&self, env: Env<'e>) -> Term<'e> {
        env.list(&self.frames).in_env(env)
    }

    /// The last frame.
    pub fn last(&self, env: Env<'e>) -> Option<Term<'e>> {
        self.frames.last().map(|frame| frame.in_env(env))
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of memory that all terms take.
    pub fn bytes(&self) -> usize {
        self.frames.len() * FRAME + self.headers.bytes() + self.bodies.bytes()
    }
}

/// The body as it is delivered: `{:compressed, body, reason}` if it could not be inflated.
fn said<'e>(env: Env<'e>, body: RawTerm<'e>, compressed: Option<Atom>) -> RawTerm<'e> {
    match compressed {
        None => body,
        Some(reason) => RawTerm::of((atoms::compressed(), body.in_env(env), reason).encode(env)),
    }
}
