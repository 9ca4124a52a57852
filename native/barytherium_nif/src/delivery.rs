//! Frames to the listener, and to the calling process what it has to do next.
//!
//! A listener on this node is sent its messages from here. Another node is out of `enif_send`'s
//! reach: what goes there is handed back for the caller to cast.

use crate::atoms;
use crate::terms::{BinaryBody, FrameTerms, MessageEnv};
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, Term};
use stomp::{ParseError, Resume};

/// Frames that are sent in one message, at most: with common headers 100 KiB of terms. Of much
/// larger messages a few in the mailbox make the listener's garbage collections so long that the
/// VM moves each of them to another thread.
const MESSAGE_FRAMES: usize = 256;

/// Octets of terms and bodies that are enough for a message, however few frames they are.
const MESSAGE_OCTETS: usize = 1024 * 1024;

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

/// What the process that runs the loop is to do next.
pub enum Step<'a> {
    /// Call again, on a dirty thread: there is much to do.
    Again,
    /// Call again, on an ordinary scheduler, when others had their turn.
    Yield,
    /// Call again when the socket is ready, or after so many milliseconds.
    Wait(Option<u64>),
    /// The listener may be too far behind: ask to resume.
    Full,
    /// Tell the network of this CONNECTED frame, and us what it agreed on.
    Connected(Term<'a>),
    /// It is over, for this reason. An error is for the log.
    Stop(Atom, Option<Failure>),
}

/// Why a connection was ended from this side, other than for silence.
pub enum Failure {
    /// The peer broke the protocol.
    Parse(ParseError),
    /// The peer answered CONNECT with an ERROR, whose `message` header this is.
    Refused(Vec<u8>),
    /// We did something wrong: a bug, which ends the connection that met it.
    Panic,
}

/// What became of the frames that were to be delivered.
pub enum Flushed {
    /// There were none.
    Nothing,
    /// They are on their way, and take up so many octets.
    Sent(usize),
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
    /// `{listener, message}`, for the caller to cast in this order.
    relay: Vec<Term<'a>>,
}

impl<'a, 't> Delivery<'a, 't> {
    pub fn new(caller: Env<'a>, recipients: Recipients<'a>, terms: &'t mut FrameTerms) -> Self {
        terms.begin();
        Delivery {
            caller,
            recipients,
            listener: recipients.local_listener(),
            terms,
            message: None,
            relay: Vec::new(),
        }
    }

    /// Adds a frame to the next message to the listener. How many headers had to be made for it.
    pub fn push(&mut self, frame: stomp::Frame<'_, BinaryBody>) -> usize {
        let before = self.terms.made();
        match self.listener {
            Some(_) => {
                let message = self.message.get_or_insert_with(MessageEnv::new);
                self.terms.push(message.env(), frame);
            }
            None => self.terms.push(self.caller, frame),
        }
        self.terms.made() - before
    }

    /// Whether what was pushed should be sent before there is more of it.
    pub fn is_enough(&self) -> bool {
        self.pushed() >= MESSAGE_FRAMES || self.terms.octets() >= MESSAGE_OCTETS
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
        let octets = self.terms.octets();
        self.terms.begin();
        match delivered {
            true => Flushed::Sent(octets),
            false => Flushed::NoListener,
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
        Step::Stop(reason, failure) => {
            let failure = failure.map(|failure| encode_failure(env, &failure));
            (atoms::stop(), reason, failure).encode(env)
        }
    }
}

/// The answer to a connection that was full; `turn` if it may go on.
pub fn encode_resume<'a>(env: Env<'a>, resume: Resume, turn: Step<'a>) -> Term<'a> {
    match resume {
        Resume::Go => encode_step(env, turn),
        Resume::Look(_) => atoms::look().encode(env),
        Resume::Wait(None) => (atoms::pause(), atoms::infinity()).encode(env),
        Resume::Wait(Some(time)) => (atoms::pause(), time.as_millis() as u64).encode(env),
    }
}

fn encode_failure<'a>(env: Env<'a>, failure: &Failure) -> Term<'a> {
    match failure {
        Failure::Panic => atoms::panic().encode(env),
        Failure::Parse(error) => parse_error(env, error),
        Failure::Refused(message) => {
            let message = rustler::NewBinary::from_slice(env, message);
            (atoms::refused(), rustler::Binary::from(message)).encode(env)
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
