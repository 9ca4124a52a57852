//! Frames to their recipients, as messages.
//!
//! A recipient on this node is sent its messages from here. Other nodes are out of `enif_send`'s
//! reach: messages to a listener there are handed back for the caller to cast.
//!
//! At the end of a call, each recipient is sent what waits for it. Until then it is sent what is enough
//! for a message.

use crate::atoms;
use crate::batches::{Batches, SendFirst};
use crate::budget::Budget;
use crate::inflating::{self, Inflated, Inflating, Spare};
use crate::recipients::Recipients;
use crate::routes::{Origin, Route};
use crate::terms::{BinaryBody, BodyPlace, Caller, binary};
use rustler::{Encoder, LocalPid, NifResult, Term};
use stomp::Command;

/// The most frames in one message. With common headers they are 100 KiB of terms. A few messages
/// that are much larger make the listener's garbage collections so long that the VM moves each of
/// them to another thread.
const MESSAGE_FRAMES: usize = 256;

/// A message with this many bytes of terms and bodies is large enough, however few frames it has.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// The listener, and the sender that its messages name.
#[derive(Clone, Copy)]
pub struct Address<'a> {
    listener: Term<'a>,
    sender: Term<'a>,
}

impl Address<'_> {
    /// The listener, if it is a process of this node.
    pub fn local_listener(&self) -> Option<LocalPid> {
        self.listener.decode().ok()
    }
}

impl<'a> rustler::Decoder<'a> for Address<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (listener, sender) = term.decode()?;
        Ok(Address { listener, sender })
    }
}

/// What became of the frames that were to be delivered, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flushed {
    /// They are on their way, if there were any.
    Done,
    /// The same, and a recipient is too far behind for more.
    Full,
    /// There were some, and the listener is not there to get them.
    NoListener,
    /// Our own process has been killed. The VM sends nothing for it any more.
    NoCaller,
}

/// The messages of one call.
pub struct Delivery<'a, 's> {
    caller: Caller<'a>,
    to: Address<'a>,
    /// None if it is not a process of this node.
    listener: Option<LocalPid>,
    batches: &'s mut Batches,
    inflater: &'s mut Spare,
    /// `{listener, message}`, for the caller to cast in this order.
    casts: Vec<Term<'a>>,
}

impl<'a, 's> Delivery<'a, 's> {
    /// `batches` and `inflater` are the thread's.
    pub fn new(
        caller: Caller<'a>,
        to: Address<'a>,
        batches: &'s mut Batches,
        inflater: &'s mut Spare,
    ) -> Self {
        batches.clear();
        Delivery {
            caller,
            to,
            listener: to.local_listener(),
            batches,
            inflater,
            casts: Vec::new(),
        }
    }

    /// Adds a frame to the next message to its recipient. It had `size` bytes of the input, in which
    /// `following` more were left. Its body is inflated if the recipient wants that: one that takes longer is
    /// returned, and to be added when it is done.
    pub fn push(
        &mut self,
        recipients: &mut Recipients,
        budget: &mut Budget,
        frame: stomp::Frame<'_, BinaryBody>,
        (size, following): (usize, usize),
    ) -> Option<Box<Inflating>> {
        let route = recipients.route(&frame);
        let headers = frame.headers().len();
        // A frame that was inflated has its body there.
        let mut inflater = std::mem::take(self.inflater);
        let (frame, compressed) = match frame.command() {
            Command::Message if recipients.inflates(route) => {
                match inflating::inflate(&mut inflater, frame, route, recipients, budget) {
                    Inflated::Frame(frame, compressed) => (frame, compressed),
                    Inflated::Begun(inflating) => return Some(inflating),
                }
            }
            _ => (frame, None),
        };
        self.select(recipients, recipients.by_body(route, frame.body.as_ref()));
        // What follows is for all recipients.
        let following = following / self.batches.len();
        let batch = self.batches.get(self.batches.current());
        let bytes = batch.with(|env, batch| {
            batch.reads_at(recipients.read_at);
            let is_last = batch.len() + 1 >= MESSAGE_FRAMES;
            let place = BodyPlace::new(recipients.share_bodies && !is_last, size, following);
            batch.push(env, frame, place, compressed)
        });
        budget.frame(headers, bytes);
        *self.inflater = inflater;
        None
    }

    /// Adds a frame after which this call decodes no more.
    pub fn push_last(&mut self, recipients: &mut Recipients, frame: stomp::Frame<'_, BinaryBody>) {
        let route = recipients.route(&frame);
        self.select(recipients, route);
        let batch = self.batches.get(self.batches.current());
        batch.with(|env, batch| {
            batch.reads_at(recipients.read_at);
            batch.push(env, frame, BodyPlace::Own, None)
        });
    }

    /// Adds a frame whose body took longer to inflate, or could not be inflated.
    pub fn push_inflated(
        &mut self,
        recipients: &mut Recipients,
        inflating: Inflating,
        failure: Option<inflate::Failure>,
    ) {
        let (frame, route) = inflating.finish(self.inflater, recipients, failure);
        self.select(recipients, route);
        let batch = self.batches.get(self.batches.current());
        batch.with(|env, batch| {
            batch.reads_at(recipients.read_at);
            batch.push_kept(env, frame);
        });
    }

    /// Makes the batch for frames that go by `route` the current one, and sends what has to come before. Whether a
    /// recipient is full then is looked at when there is more for it.
    fn select(&mut self, recipients: &mut Recipients, route: Option<Route>) {
        match self.batches.select(route) {
            SendFirst::Nothing => {}
            SendFirst::Current => {
                self.send(recipients, self.batches.current());
                self.batches.set_route(route);
            }
            SendFirst::All => {
                self.flush(recipients);
                self.batches.open(route);
            }
        }
    }

    /// Whether there are frames that were not sent.
    pub fn has_frames(&mut self) -> bool {
        self.batches.has_frames()
    }

    /// Delivers the CONNECTED frame, alone in its message, and returns it for the network.
    pub fn connected(
        &mut self,
        recipients: &mut Recipients,
        frame: stomp::Frame<'_, BinaryBody>,
    ) -> Term<'a> {
        self.push_last(recipients, frame);
        let batch = self.batches.get(self.batches.current());
        let frame =
            batch.with(|env, batch| batch.last(env).map(|last| last.in_env(self.caller.env())));
        self.flush(recipients);
        frame.encode(self.caller.env())
    }

    /// Delivers the frames for the recipient of the last frame, if they are enough for a message. If the
    /// connection has to wait for it, delivers the others' too.
    pub fn flush_enough(&mut self, recipients: &mut Recipients) -> Flushed {
        if !self.is_enough(recipients) {
            return Flushed::Done;
        }
        match self.send(recipients, self.batches.current()) {
            Flushed::Full => self.flush(recipients).max(Flushed::Full),
            flushed => flushed,
        }
    }

    fn is_enough(&mut self, recipients: &Recipients) -> bool {
        let at = self.batches.current();
        let batch = self.batches.get(at);
        batch.with(|_env, batch| batch.len() >= MESSAGE_FRAMES || batch.bytes() >= MESSAGE_BYTES)
            || self
                .recipient(self.batches.route(at))
                .is_some_and(|pid| recipients.is_full(pid))
    }

    /// The process that gets frames by `route`, if it is one of this node.
    fn recipient(&self, route: Option<Route>) -> Option<LocalPid> {
        route.map(|route| route.recipient).or(self.listener)
    }

    /// Delivers all frames, in a message for each recipient.
    pub fn flush(&mut self, recipients: &mut Recipients) -> Flushed {
        let mut worst = Flushed::Done;
        for at in 0..self.batches.len() {
            worst = worst.max(self.send(recipients, at));
        }
        self.batches.close();
        worst
    }

    /// Delivers the frames of a batch. They are counted before they are sent: whoever has got a frame
    /// finds it counted.
    fn send(&mut self, recipients: &mut Recipients, at: usize) -> Flushed {
        let (caller, sender) = (self.caller, self.to.sender);
        let env = caller.env();
        let route = self.batches.route(at);
        let recipient = self.recipient(route);
        let batch = self.batches.get(at);
        let (frames, bytes) = batch.with(|_env, batch| (batch.len(), batch.bytes()));
        if frames == 0 {
            return Flushed::Done;
        }
        recipients.stats.frames.add(frames);
        if let Some(tap) = recipients.tap() {
            self.copy_to(tap, at);
        }
        let batch = self.batches.get(at);
        let Some(recipient) = recipient else {
            let frames = batch.with(|env, batch| batch.list(env).in_env(caller.env()));
            batch.clear();
            let message = message(frames, sender);
            self.casts.push((self.to.listener, message).encode(env));
            return Flushed::Done;
        };
        let sent = batch.send(caller, &recipient, |env, batch| {
            let frames = batch.list(env);
            match route.map(|route| route.origin) {
                None => cast(message(frames, sender.in_env(env))),
                Some(Origin::Sender(pid)) => {
                    let read_at = batch.read_at().as_nanos() as u64;
                    let frames = (frames, pid, read_at);
                    cast((atoms::barytherium(), atoms::frames(), frames).encode(env))
                }
                Some(Origin::Subscription(client, number)) => {
                    let handle = (client, number);
                    (atoms::barytherium(), atoms::messages(), (frames, handle)).encode(env)
                }
            }
        });
        self.announce_first(recipients);
        match sent {
            true if recipients.sent(recipient, bytes) => Flushed::Full,
            true => Flushed::Done,
            false if recipient.is_alive(env) => Flushed::NoCaller,
            // A recipient that has ended takes nothing. Who made its route will know.
            false if route.is_some() => Flushed::Done,
            false => Flushed::NoListener,
        }
    }

    /// Sends a copy of the frames of a batch. Nothing waits for whoever gets it.
    fn copy_to(&mut self, tap: LocalPid, at: usize) {
        let (env, sender) = (self.caller.env(), self.to.sender);
        let batch = self.batches.get(at);
        let frames = batch.with(|batch_env, batch| batch.list(batch_env).in_env(env));
        let received = (atoms::received(), frames, sender);
        // If it has ended, nobody wants them.
        _ = env.send(&tap, (atoms::barytherium(), atoms::trace(), received));
    }

    /// Tells the listener by which routes a first message has come.
    fn announce_first(&self, recipients: &mut Recipients) {
        for route in recipients.take_first() {
            let env = self.caller.env();
            let route = binary(env, &route);
            let event = (atoms::barytherium(), atoms::first_message(), route);
            if let Some(listener) = self.listener {
                // If it has ended, the next message to it shows that.
                _ = env.send(&listener, (atoms::gen_cast(), event));
            }
        }
    }

    /// The answer to the caller: `next`, or `{:relay, casts, next}`.
    pub fn answer(self, next: Term<'a>) -> Term<'a> {
        if self.casts.is_empty() {
            return next;
        }
        (atoms::relay(), self.casts, next).encode(self.caller.env())
    }
}

fn cast(message: Term<'_>) -> Term<'_> {
    (atoms::gen_cast(), message).encode(message.get_env())
}

fn message<'a>(frames: Term<'a>, sender: Term<'a>) -> Term<'a> {
    (atoms::barytherium(), atoms::frames(), (frames, sender)).encode(frames.get_env())
}
