//! Frames to their recipients, as messages.
//!
//! A recipient on this node is sent its messages from here. Other nodes are out of `enif_send`'s
//! reach: messages to a listener there are handed back for the caller to cast.
//!
//! The frames that wait to be sent are for one recipient. A frame for another one sends them first, so
//! each process gets its frames in the order on the wire, whatever their subscriptions.

use crate::atoms;
use crate::recipients::Recipients;
use crate::routes::{Origin, Route};
use crate::stats::Stats;
use crate::terms::{Batch, BinaryBody, BodyPlace, MessageEnv, binary};
use rustler::{Encoder, Env, LocalPid, NifResult, Term};

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

/// What became of the frames that were to be delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// They are on their way, if there were any.
    Done,
    /// The same, and their recipient is too far behind for more.
    Full,
    /// There were some, and the listener is not there to get them.
    NoListener,
    /// Our own process has been killed. The VM sends nothing for it any more.
    NoCaller,
}

/// The messages of one slice.
pub struct Delivery<'a, 't> {
    caller: Env<'a>,
    sender: Term<'a>,
    listener: Listener<'a, 't>,
    recipients: &'t mut Recipients,
    stats: &'t Stats,
    /// Where the frames that were pushed go, if not to the listener.
    route: Option<Route>,
    /// Whether bodies may share a binary.
    share_bodies: bool,
}

enum Listener<'a, 't> {
    Local {
        pid: LocalPid,
        batch: &'t mut Batch<MessageEnv>,
    },
    Remote {
        name: Term<'a>,
        batch: Box<Batch<Env<'a>>>,
        /// `{listener, message}`, for the caller to cast in this order.
        casts: Vec<Term<'a>>,
    },
}

impl<'a, 't> Delivery<'a, 't> {
    /// `batch` is emptied first.
    pub fn new(
        caller: Env<'a>,
        to: Address<'a>,
        batch: &'t mut Batch<MessageEnv>,
        recipients: &'t mut Recipients,
        stats: &'t Stats,
        share_bodies: bool,
    ) -> Self {
        let listener = match to.local_listener() {
            Some(pid) => {
                batch.clear();
                Listener::Local { pid, batch }
            }
            None => Listener::Remote {
                name: to.listener,
                batch: Box::new(Batch::new(caller)),
                casts: Vec::new(),
            },
        };
        Delivery {
            caller,
            sender: to.sender,
            listener,
            recipients,
            stats,
            route: None,
            share_bodies,
        }
    }

    /// Adds a frame to the next message to its recipient. It had `size` bytes of the input, in which
    /// `following` more were left. Returns how many bytes of memory its new headers take.
    pub fn push(
        &mut self,
        frame: stomp::Frame<'_, BinaryBody>,
        size: usize,
        following: usize,
    ) -> usize {
        let route = self.recipients.route(&frame);
        if route != self.route {
            // Whether it is full is looked at when there is more for it.
            self.flush();
            self.route = route;
        }
        let is_last = self.pushed() + 1 >= MESSAGE_FRAMES;
        let place = BodyPlace::new(self.share_bodies && !is_last, size, following);
        match &mut self.listener {
            Listener::Local { batch, .. } => batch.push(frame, place),
            Listener::Remote { batch, .. } => batch.push(frame, place),
        }
    }

    /// How many frames were pushed since the last flush.
    pub fn pushed(&self) -> usize {
        match &self.listener {
            Listener::Local { batch, .. } => batch.len(),
            Listener::Remote { batch, .. } => batch.len(),
        }
    }

    fn bytes(&self) -> usize {
        match &self.listener {
            Listener::Local { batch, .. } => batch.bytes(),
            Listener::Remote { batch, .. } => batch.bytes(),
        }
    }

    /// Whether the frames that were pushed should be sent before more are pushed.
    pub fn is_enough(&self) -> bool {
        self.pushed() >= MESSAGE_FRAMES
            || self.bytes() >= MESSAGE_BYTES
            || self
                .recipient()
                .is_some_and(|pid| self.recipients.is_full(pid))
    }

    /// The process that gets the frames that were pushed, if it is one of this node.
    fn recipient(&self) -> Option<LocalPid> {
        match (&self.listener, self.route) {
            (_, Some(route)) => Some(route.recipient),
            (Listener::Local { pid, .. }, None) => Some(*pid),
            (Listener::Remote { .. }, None) => None,
        }
    }

    /// Delivers the CONNECTED frame, alone in its message, and returns it for the network.
    pub fn connected(&mut self, frame: stomp::Frame<'_, BinaryBody>) -> Term<'a> {
        self.push(frame, 0, 0);
        let frame = match &self.listener {
            Listener::Local { batch, .. } => batch.copy_last(self.caller),
            Listener::Remote { batch, .. } => batch.copy_last(self.caller),
        };
        self.flush();
        frame.encode(self.caller)
    }

    /// Delivers the frames that were pushed, in one message. They are counted before they are sent:
    /// whoever has got a frame finds it counted.
    pub fn flush(&mut self) -> Flushed {
        let frames = self.pushed();
        if frames == 0 {
            return Flushed::Done;
        }
        self.stats.frames.add(frames);
        let bytes = self.bytes();
        let (caller, sender, route) = (self.caller, self.sender, self.route);
        match &mut self.listener {
            Listener::Local { pid, batch } => {
                let recipient = route.map_or(*pid, |route| route.recipient);
                let sent = batch.send(caller, &recipient, |env, frames| {
                    match route.map(|route| route.origin) {
                        None => cast(message(env, frames, sender.in_env(env))),
                        Some(Origin::Sender(pid)) => cast(message(env, frames, pid.encode(env))),
                        Some(Origin::Subscription(client, number)) => {
                            let handle = (client, number);
                            (atoms::barytherium(), atoms::messages(), (frames, handle)).encode(env)
                        }
                    }
                });
                for route in self.recipients.take_first() {
                    announce(caller, pid, &route);
                }
                match sent {
                    true if self.recipients.sent(recipient, bytes) => Flushed::Full,
                    true => Flushed::Done,
                    false if recipient.is_alive(caller) => Flushed::NoCaller,
                    // A recipient that has ended takes nothing. Who made its route will know.
                    false if route.is_some() => Flushed::Done,
                    false => Flushed::NoListener,
                }
            }
            Listener::Remote { name, batch, casts } => {
                let message = message(caller, batch.take(), sender);
                casts.push((*name, message).encode(caller));
                Flushed::Done
            }
        }
    }

    /// There is nothing to deliver at the moment.
    pub fn rest(&mut self) {
        self.recipients.rest();
    }

    /// The slice's answer: `step`, or `{:relay, casts, step}`.
    pub fn answer(self, step: Term<'a>) -> Term<'a> {
        match self.listener {
            Listener::Remote { casts, .. } if !casts.is_empty() => {
                (atoms::relay(), casts, step).encode(self.caller)
            }
            _ => step,
        }
    }
}

fn cast(message: Term<'_>) -> Term<'_> {
    (atoms::gen_cast(), message).encode(message.get_env())
}

/// Tells the listener that a first message has come by a route.
fn announce(caller: Env, listener: &LocalPid, route: &[u8]) {
    let event = (
        atoms::barytherium(),
        atoms::first_message(),
        binary(caller, route),
    );
    // If it has ended, the next message to it shows that.
    _ = caller.send(listener, (atoms::gen_cast(), event));
}

fn message<'a>(env: Env<'a>, frames: Term<'a>, sender: Term<'a>) -> Term<'a> {
    (atoms::barytherium(), atoms::frames(), (frames, sender)).encode(env)
}
