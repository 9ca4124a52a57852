//! Frames and verdicts to the processes that want them.
//!
//! A process on this node is sent its message from here. Another node, or a name, is out of
//! `enif_send`'s reach: what goes there is handed back for the caller to cast.

use crate::atoms;
use crate::terms::{BinaryBody, FrameTerms, MessageEnv};
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, Term};
use stomp::ParseError;

/// Who gets what: frames go to the listener, along with the sender; a disconnect goes to the
/// network.
#[derive(Clone, Copy)]
pub struct Recipients<'a> {
    listener: Term<'a>,
    network: Term<'a>,
    sender: Term<'a>,
}

impl<'a> rustler::Decoder<'a> for Recipients<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (listener, network, sender) = term.decode()?;
        Ok(Recipients {
            listener,
            network,
            sender,
        })
    }
}

/// What the process that runs the loop is to do next.
pub enum Step<'a> {
    /// Call again: there is more to do.
    Again,
    /// Call again, inline, when others had their turn.
    Yield,
    /// Call again when the socket is ready, or after so many milliseconds.
    Wait(Option<u64>),
    /// Look at the listener's mailbox.
    Full,
    /// Tell the network of this CONNECTED frame, and us what it agreed on.
    Connected(Term<'a>),
    /// It is over. An error is for the log.
    Stop(Option<Failure>),
}

/// Why a connection was ended from this side, other than for silence.
pub enum Failure {
    /// The peer broke the protocol.
    Parse(ParseError),
    /// We did something wrong: a bug, which ends the connection that met it.
    Panic,
}

/// What became of the frames that were to be delivered.
#[derive(PartialEq, Eq)]
pub enum Flushed {
    /// There were none.
    Nothing,
    /// They are on their way.
    Sent,
    /// There were some, and nobody is there to get them.
    NoListener,
}

/// One slice's messages.
pub struct Delivery<'a, 't> {
    caller: Env<'a>,
    recipients: Recipients<'a>,
    listener: Option<LocalPid>,
    terms: &'t mut FrameTerms,
    message: Option<MessageEnv>,
    /// `{server, message}`, for the caller to cast in this order.
    relay: Vec<Term<'a>>,
}

impl<'a, 't> Delivery<'a, 't> {
    pub fn new(caller: Env<'a>, recipients: Recipients<'a>, terms: &'t mut FrameTerms) -> Self {
        terms.begin();
        Delivery {
            caller,
            recipients,
            listener: recipients.listener.decode().ok(),
            terms,
            message: None,
            relay: Vec::new(),
        }
    }

    /// Adds a frame to the next message to the listener.
    pub fn push(&mut self, frame: stomp::Frame<'_, BinaryBody>) {
        match self.listener {
            Some(_) => {
                let message = self.message.get_or_insert_with(MessageEnv::new);
                self.terms.push(message.env(), frame);
            }
            None => self.terms.push(self.caller, frame),
        }
    }

    /// Delivers the CONNECTED frame, alone in its message, and returns it for the network.
    pub fn connected(&mut self, frame: stomp::Frame<'_, BinaryBody>) -> Term<'a> {
        self.push(frame);
        let frame = match &self.message {
            Some(message) => {
                let frame = self.terms.last(message.env());
                frame.map(|frame| frame.in_env(self.caller))
            }
            None => self.terms.last(self.caller),
        };
        self.flush();
        frame.encode(self.caller)
    }

    /// How many frames were pushed since the last flush.
    pub fn pushed(&self) -> usize {
        self.terms.len()
    }

    /// Delivers the frames that were pushed, in one message.
    pub fn flush(&mut self) -> Flushed {
        if self.pushed() == 0 {
            return Flushed::Nothing;
        }
        let delivered = match (self.listener, self.message.take()) {
            (Some(listener), Some(message)) => message.send(self.caller, &listener, |env| {
                frames_cast(env, self.terms, self.recipients.sender)
            }),
            // Its environment is gone, and so are the frames.
            (Some(_), None) => true,
            (None, _) => {
                let message = frames_message(self.caller, self.terms, self.recipients.sender);
                let listener = self.recipients.listener;
                self.relay.push((listener, message).encode(self.caller));
                true
            }
        };
        self.terms.begin();
        match delivered {
            true => Flushed::Sent,
            false => Flushed::NoListener,
        }
    }

    /// Whether the length of the listener's mailbox can be known, and so limited.
    pub fn listener_is_local(&self) -> bool {
        self.listener.is_some()
    }

    /// Tells the network that the connection is over.
    pub fn disconnect(&mut self, reason: Atom) {
        let message = (atoms::barytherium(), atoms::disconnect(), reason).encode(self.caller);
        let network = self.recipients.network;
        match network.decode::<LocalPid>() {
            // A network that is gone does not care. Frames that are still here go first.
            Ok(pid) if self.relay.is_empty() => {
                _ = self.caller.send(&pid, (atoms::gen_cast(), message))
            }
            _ => self.relay.push((network, message).encode(self.caller)),
        }
    }

    /// The slice's answer.
    pub fn answer(self, step: Step<'a>) -> Term<'a> {
        let step = encode_step(self.caller, step);
        if self.relay.is_empty() {
            return step;
        }
        (atoms::relay(), self.relay, step).encode(self.caller)
    }
}

fn frames_message<'a>(env: Env<'a>, terms: &FrameTerms, sender: Term) -> Term<'a> {
    let frames = (terms.list(env), sender.in_env(env));
    (atoms::barytherium(), atoms::frames(), frames).encode(env)
}

fn frames_cast<'a>(env: Env<'a>, terms: &FrameTerms, sender: Term) -> Term<'a> {
    (atoms::gen_cast(), frames_message(env, terms, sender)).encode(env)
}

fn encode_step<'a>(env: Env<'a>, step: Step<'a>) -> Term<'a> {
    match step {
        Step::Again => atoms::again().encode(env),
        Step::Yield => atoms::r#yield().encode(env),
        Step::Full => atoms::full().encode(env),
        Step::Wait(Some(millis)) => (atoms::wait(), millis).encode(env),
        Step::Wait(None) => (atoms::wait(), atoms::infinity()).encode(env),
        Step::Connected(frame) => (atoms::connected_frame(), frame).encode(env),
        Step::Stop(None) => (atoms::stop(), atoms::nil()).encode(env),
        Step::Stop(Some(Failure::Panic)) => (atoms::stop(), atoms::panic()).encode(env),
        Step::Stop(Some(Failure::Parse(error))) => {
            (atoms::stop(), parse_error(env, &error)).encode(env)
        }
    }
}

/// `{rule, offset, excerpt, description}`.
pub fn parse_error<'a>(env: Env<'a>, error: &ParseError) -> Term<'a> {
    let excerpt = rustler::NewBinary::from_slice(env, &error.excerpt);
    let excerpt = rustler::Binary::from(excerpt);
    let rule = atoms::of_rule(error.rule);
    (rule, error.offset, excerpt, error.rule.to_string()).encode(env)
}
