//! What the process of a connection does next: the answer of a slice.

use crate::atoms;
use crate::socket::Ending;
use crate::terms::binary;
use rustler::{Atom, Encoder, Env, LocalPid, Term};
use stomp::{ParseError, Resume, Turn};

/// The next step of the process that runs the loop.
pub enum Step<'a> {
    /// Read more. The turn says where and when.
    Turn(Turn),
    /// Read a little on an ordinary scheduler, when others had their turn.
    Look,
    /// Read when the socket is ready, or after this many milliseconds.
    Wait(Option<u64>),
    /// Ask to resume: the listener may be too far behind.
    Full,
    /// Tell the network of this CONNECTED frame, and tell us which heart-beats it agreed on.
    Connected(Term<'a>),
    /// Stop: the connection is over.
    Stop(End),
}

/// How a connection ended.
pub struct End {
    pub reason: Atom,
    /// For the log.
    pub failure: Option<Failure>,
    /// What becomes of its socket.
    pub socket: Ending,
}

/// Why this side ended a connection, other than for silence.
pub enum Failure {
    /// The peer broke the protocol.
    Parse(ParseError),
    /// The peer answered CONNECT with an ERROR: its `message` header, and the first line of its body.
    Refused(Vec<u8>, Vec<u8>),
    /// The peer sent a part of an ERROR that says this.
    UnfinishedError(Vec<u8>),
    /// The TLS connection has failed, for a reason that this text explains.
    Tls(String),
    /// The peer closed its TLS connection without saying so (`close_notify`).
    Truncated,
    /// A bug of ours. It ends the connection that met it.
    Panic,
}

impl Step<'_> {
    /// Stop for `reason`.
    pub fn stop(reason: Atom) -> Self {
        Self::end(reason, None, Ending::Shutdown)
    }

    /// Stop for `reason`, because of `failure`.
    pub fn fail(reason: Atom, failure: Failure) -> Self {
        Self::end(reason, Some(failure), Ending::Shutdown)
    }

    /// Stop because nobody listens. The socket's owner may still have to write something.
    pub fn no_listener() -> Self {
        Self::end(atoms::no_listener(), None, Ending::LeftToOwner)
    }

    /// What the peer sent last says why it has ended the connection.
    pub fn explain(&mut self, failure: Failure) {
        if let Step::Stop(end) = self
            && matches!(end.failure, None | Some(Failure::Truncated))
            && end.socket == Ending::Shutdown
        {
            end.failure = Some(failure);
        }
    }

    fn end(reason: Atom, failure: Option<Failure>, socket: Ending) -> Self {
        Step::Stop(End {
            reason,
            failure,
            socket,
        })
    }
}

impl<'a> Step<'a> {
    pub fn encode(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Step::Turn(Turn::Alone) => atoms::again().encode(env),
            Step::Turn(Turn::Crowded) | Step::Look => atoms::r#yield().encode(env),
            Step::Turn(Turn::Queued) => atoms::queue().encode(env),
            Step::Full => atoms::full().encode(env),
            Step::Wait(Some(millis)) => (atoms::wait(), millis).encode(env),
            Step::Wait(None) => (atoms::wait(), atoms::infinity()).encode(env),
            Step::Connected(frame) => (atoms::connected_frame(), frame).encode(env),
            Step::Stop(end) => {
                let failure = end.failure.as_ref().map(|failure| failure.encode(env));
                (atoms::stop(), end.reason, failure).encode(env)
            }
        }
    }
}

impl Failure {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Failure::Panic => atoms::panic().encode(env),
            Failure::Truncated => atoms::truncated().encode(env),
            Failure::Tls(details) => (atoms::tls(), details).encode(env),
            Failure::Parse(error) => parse_error(env, error),
            Failure::Refused(message, line) => {
                (atoms::refused(), binary(env, message), binary(env, line)).encode(env)
            }
            Failure::UnfinishedError(message) => {
                (atoms::unfinished_error(), binary(env, message)).encode(env)
            }
        }
    }
}

/// `{rule, offset, excerpt, description}`.
pub fn parse_error<'a>(env: Env<'a>, error: &ParseError) -> Term<'a> {
    let excerpt = binary(env, &error.excerpt);
    let rule = atoms::of_rule(error.rule);
    (rule, error.offset, excerpt, error.rule.to_string()).encode(env)
}

/// The answer to a connection that waits for the process `awaited`.
pub fn encode_resume<'a>(env: Env<'a>, resume: Resume, awaited: Option<LocalPid>) -> Term<'a> {
    match resume {
        Resume::Go => Step::Look.encode(env),
        Resume::Look(_) => (atoms::look(), awaited).encode(env),
        Resume::Wait(time) => (atoms::pause(), time.as_millis() as u64).encode(env),
    }
}
