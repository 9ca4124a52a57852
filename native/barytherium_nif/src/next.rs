//! What comes next: the answer of every call of a connection.
//!
//! Each has one name: here, as an atom, and as a state of `Barytherium.Network.ReceiveLoop`.

use crate::atoms;
use crate::socket::Ending;
use crate::terms::binary;
use pacing::Turn;
use rustler::{Atom, Encoder, Env, LocalPid, Term};
use std::time::Duration;
use stomp::ParseError;

/// What the process of a connection does next.
pub enum Next<'a> {
    /// Read on a dirty I/O thread: there is a lot to read.
    ReadDirty,
    /// Read on the ordinary scheduler, when others had their turn.
    ReadInline,
    /// Read inline when this connection gets a turn: too many others have a lot to read.
    AwaitTurn,
    /// Read inline when the socket is ready, or after this time.
    AwaitInput(Option<Duration>),
    /// Look how many messages this process has in its mailbox: it may be too far behind.
    Look(LocalPid),
    /// Look again when woken, or after this time: a recipient is too far behind.
    AwaitRoom(Duration),
    /// Tell the network of this CONNECTED frame, and tell us which heart-beats it agreed on.
    ConnectedFrame(Term<'a>),
    /// Stop: the connection is over.
    Stop(End),
}

impl From<Turn> for Next<'_> {
    /// Where a connection with this turn reads.
    fn from(turn: Turn) -> Self {
        match turn {
            Turn::Alone => Next::ReadDirty,
            Turn::Crowded => Next::ReadInline,
            Turn::Queued => Next::AwaitTurn,
        }
    }
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
    /// The WebSocket has failed, or was closed for a reason that this text tells.
    WebSocket(String),
    /// The peer closed its TLS connection without saying so (`close_notify`).
    Truncated,
    /// A bug of ours. It ends the connection that met it.
    Panic,
}

impl Next<'_> {
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
        if let Next::Stop(end) = self
            && matches!(end.failure, None | Some(Failure::Truncated))
            && end.socket == Ending::Shutdown
        {
            end.failure = Some(failure);
        }
    }

    fn end(reason: Atom, failure: Option<Failure>, socket: Ending) -> Self {
        Next::Stop(End {
            reason,
            failure,
            socket,
        })
    }
}

impl<'a> Next<'a> {
    pub fn encode(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Next::ReadDirty => atoms::read_dirty().encode(env),
            Next::ReadInline => atoms::read_inline().encode(env),
            Next::AwaitTurn => atoms::await_turn().encode(env),
            Next::AwaitInput(None) => (atoms::await_input(), atoms::infinity()).encode(env),
            Next::AwaitInput(Some(time)) => (atoms::await_input(), millis(*time)).encode(env),
            Next::Look(pid) => (atoms::look(), pid).encode(env),
            Next::AwaitRoom(time) => (atoms::await_room(), millis(*time)).encode(env),
            Next::ConnectedFrame(frame) => (atoms::connected_frame(), frame).encode(env),
            Next::Stop(end) => {
                let failure = end.failure.as_ref().map(|failure| failure.encode(env));
                (atoms::stop(), end.reason, failure).encode(env)
            }
        }
    }
}

/// Rounded up: a process that wakes too early would only wait again.
fn millis(time: Duration) -> u64 {
    let millis = time.as_nanos().div_ceil(1_000_000);
    millis.try_into().unwrap_or(u64::MAX)
}

impl Failure {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Failure::Panic => atoms::panic().encode(env),
            Failure::Truncated => atoms::truncated().encode(env),
            Failure::Tls(details) => (atoms::tls(), details).encode(env),
            Failure::WebSocket(details) => (atoms::websocket(), details).encode(env),
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
