//! The frames of one message, as terms in one environment.

use super::bodies::{Bodies, BodyPlace};
use super::headers::Headers;
use super::raw::{BinaryBody, Environment, MessageEnv, RawTerm, WORD};
use rustler::{Binary, Env, LocalPid, Term};
use stomp::{Body, Command};

/// The memory of a map of four keys, the tuple of its keys, and its cell in the list of frames.
const FRAME: usize = 14 * WORD;

/// Frames, and the environment that their terms are made in.
pub struct Batch<E> {
    environment: E,
    frames: Vec<RawTerm>,
    headers: Headers,
    bodies: Bodies,
}

impl<E: Environment> Batch<E> {
    /// An empty batch.
    pub fn new(environment: E) -> Self {
        Batch {
            environment,
            frames: Vec::new(),
            headers: Headers::default(),
            bodies: Bodies::default(),
        }
    }

    /// Adds a frame. All frames have to come from one decoder, in its order; some may be left out. Returns
    /// how many bytes of memory its new headers take.
    pub fn push(&mut self, frame: stomp::Frame<'_, BinaryBody>, place: BodyPlace) -> usize {
        let before = self.headers.bytes();
        let headers = self.headers.list(&self.environment, &frame);
        let command = frame.command();
        let body = match frame.body {
            Body::Borrowed(body) => self.bodies.make(&self.environment, body, place),
            Body::Owned(body) => {
                self.bodies.add(body.as_ref().len());
                body.into_term(&self.environment)
            }
        };
        self.add(command, headers, body);
        self.headers.bytes() - before
    }

    fn add(&mut self, command: Command, headers: RawTerm, body: RawTerm) {
        let frame = self.environment.frame(command, headers, body);
        self.frames.push(frame);
    }

    /// A copy of the last frame.
    pub fn copy_last<'a>(&self, env: Env<'a>) -> Option<Term<'a>> {
        self.frames.last().map(|frame| frame.copy(env))
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of memory that all terms take.
    pub fn bytes(&self) -> usize {
        self.frames.len() * FRAME + self.headers.bytes() + self.bodies.bytes()
    }

    fn reset(&mut self) {
        self.frames.clear();
        self.headers.clear();
        self.bodies.clear();
    }
}

impl<'a> Batch<Env<'a>> {
    /// Adds a frame whose body is a term already.
    pub fn push_with_body(&mut self, frame: &stomp::Frame<'_, BinaryBody>, body: Binary<'a>) {
        let headers = self.headers.list(&self.environment, frame);
        self.bodies.add_part();
        self.add(
            frame.command(),
            headers,
            RawTerm::of(body.to_term(self.environment)),
        );
    }

    /// Empties the batch: the list of its frames.
    pub fn take(&mut self) -> Term<'a> {
        let frames = self.environment.list(&self.frames).in_env(self.environment);
        self.reset();
        frames
    }
}

impl Batch<MessageEnv> {
    /// Empties the batch: a copy of the list of its frames.
    pub fn take_copy<'a>(&mut self, env: Env<'a>) -> Term<'a> {
        let frames = self.environment.list(&self.frames).copy(env);
        self.clear();
        frames
    }

    /// Empties the batch, and sends the message that `make` makes of the list of its frames.
    /// False if there is no such process.
    pub fn send(
        &mut self,
        caller: Env,
        to: &LocalPid,
        make: impl for<'e> FnOnce(Env<'e>, Term<'e>) -> Term<'e>,
    ) -> bool {
        let frames = self.environment.list(&self.frames);
        let sent = self
            .environment
            .send(caller, to, |env| make(env, frames.in_env(env)));
        self.reset();
        sent
    }

    /// Empties the batch.
    pub fn clear(&mut self) {
        self.environment.clear();
        self.reset();
    }
}
