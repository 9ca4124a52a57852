//! Frames to the listener, as messages.
//!
//! A listener on this node is sent its messages from here. Other nodes are out of `enif_send`'s
//! reach: messages to them are handed back for the caller to cast.

use crate::atoms;
use crate::terms::{Batch, BinaryBody, BodyPlace, MessageEnv};
use rustler::{Encoder, Env, LocalPid, NifResult, Term};

/// The most frames in one message. With common headers they are 100 KiB of terms. A few messages
/// that are much larger make the listener's garbage collections so long that the VM moves each of
/// them to another thread.
const MESSAGE_FRAMES: usize = 256;

/// A message with this many bytes of terms and bodies is large enough, however few frames it has.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// Who gets the frames, and which sender is sent along with them.
#[derive(Clone, Copy)]
pub struct Recipients<'a> {
    listener: Term<'a>,
    sender: Term<'a>,
}

impl Recipients<'_> {
    /// The listener, if it is a process of this node.
    pub fn local_listener(&self) -> Option<LocalPid> {
        self.listener.decode().ok()
    }
}

impl<'a> rustler::Decoder<'a> for Recipients<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (listener, sender) = term.decode()?;
        Ok(Recipients { listener, sender })
    }
}

/// What became of the frames that were to be delivered.
pub enum Flushed {
    /// There were none.
    Nothing,
    /// They are on their way, and take this many bytes of memory.
    Sent(usize),
    /// There were some, and nobody is there to get them.
    NoListener,
    /// Our own process has been killed. The VM sends nothing for it any more.
    NoCaller,
}

/// The messages of one slice.
pub struct Delivery<'a, 't> {
    caller: Env<'a>,
    sender: Term<'a>,
    listener: Listener<'a, 't>,
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
        to: Recipients<'a>,
        batch: &'t mut Batch<MessageEnv>,
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
            share_bodies,
        }
    }

    /// Adds a frame to the next message to the listener. It had `size` bytes of the input, in which
    /// `following` more were left. Returns how many bytes of memory its new headers take.
    pub fn push(
        &mut self,
        frame: stomp::Frame<'_, BinaryBody>,
        size: usize,
        following: usize,
    ) -> usize {
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
        self.pushed() >= MESSAGE_FRAMES || self.bytes() >= MESSAGE_BYTES
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

    /// Delivers the frames that were pushed, in one message.
    pub fn flush(&mut self) -> Flushed {
        if self.pushed() == 0 {
            return Flushed::Nothing;
        }
        let bytes = self.bytes();
        let (caller, sender) = (self.caller, self.sender);
        match &mut self.listener {
            Listener::Local { pid, batch } => {
                let sent = batch.send(caller, pid, |env, frames| {
                    (atoms::gen_cast(), message(env, frames, sender)).encode(env)
                });
                match sent {
                    true => {}
                    false if pid.is_alive(caller) => return Flushed::NoCaller,
                    false => return Flushed::NoListener,
                }
            }
            Listener::Remote { name, batch, casts } => {
                let message = message(caller, batch.take(), sender);
                casts.push((*name, message).encode(caller));
            }
        }
        Flushed::Sent(bytes)
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

fn message<'a>(env: Env<'a>, frames: Term<'a>, sender: Term) -> Term<'a> {
    let frames = (frames, sender.in_env(env));
    (atoms::barytherium(), atoms::frames(), frames).encode(env)
}
