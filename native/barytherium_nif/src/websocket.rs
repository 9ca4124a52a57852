//! WebSockets as resources: shared by the connection that reads and by the sender that writes.

use crate::atoms;
use crate::next::{Failure, Next};
use crate::terms::binary;
use ::websocket::{
    Close, Decoder, End, NORMAL_CLOSURE, Reply, encode_close, encode_message, encode_reply,
};
use parking_lot::Mutex;
use rustler::{Encoder, Env, Error, NifResult, Term};
use std::panic::RefUnwindSafe;

/// Codes of a close frame that are no news: an orderly end, and a server that is shut down.
const ORDERLY: [u16; 2] = [NORMAL_CLOSURE, 1001];

/// A WebSocket after the opening handshake.
#[derive(Default)]
pub struct WebSocket {
    decoder: Mutex<Decoder>,
    /// It has a lock of its own, so that who writes does not wait until a read is decoded.
    owed: Mutex<Owed>,
}

/// What the peer has to be told by the next write.
#[derive(Default)]
struct Owed {
    reply: Option<Reply>,
    /// Whether [`WebSocket::owes`] has told.
    is_told: bool,
    /// Whether our close frame has been written.
    is_closed: bool,
}

// A panic ends the connection that meets it, so nobody uses what it left half done.
impl RefUnwindSafe for WebSocket {}

#[rustler::resource_impl]
impl rustler::Resource for WebSocket {}

impl WebSocket {
    /// One that begins with bytes that came behind the opening handshake.
    pub fn new(bytes: &[u8]) -> WebSocket {
        let websocket = WebSocket::default();
        // No payload is longer than its frame, so that all of it stays unread.
        let _none = websocket.read_some(bytes, bytes.len() + 1);
        websocket
    }

    /// Hands the payload in `bytes` to `take`. Returns the number of frames.
    pub fn decode(&self, bytes: &[u8], take: impl FnMut(&[u8])) -> usize {
        let mut decoder = self.decoder.lock();
        let frames = decoder.decode(bytes, take);
        self.owe(&mut decoder);
        frames
    }

    /// The payload that nobody has taken since the beginning, and that in `bytes`.
    pub fn start(&self, bytes: &[u8]) -> Vec<u8> {
        let mut payload = self.decoder.lock().take_unread();
        self.decode(bytes, |part| payload.extend_from_slice(part));
        payload
    }

    /// How the peer's data ended, if it has.
    pub fn end<'a>(&self) -> Option<Next<'a>> {
        self.decoder.lock().end().map(|end| match end {
            End::Closed(close) => match text(close) {
                None => Next::stop(atoms::closed()),
                Some(text) => Next::fail(atoms::closed(), Failure::WebSocket(text)),
            },
            End::Failed(violation) => {
                let text = violation.to_string();
                Next::fail(atoms::protocol_error(), Failure::WebSocket(text))
            }
        })
    }

    /// Whether there is something to write that was not asked for. It says so only once.
    pub fn owes(&self) -> bool {
        let mut owed = self.owed.lock();
        let owes = owed.reply.is_some() && !owed.is_told;
        owed.is_told |= owes;
        owes
    }

    fn owe(&self, decoder: &mut Decoder) {
        if let Some(reply) = decoder.take_reply() {
            let mut owed = self.owed.lock();
            // Whoever was told of the last one will write this instead.
            owed.is_told &= owed.reply.is_some();
            owed.reply = Some(reply);
        }
    }

    fn read_some(&self, bytes: &[u8], length: usize) -> Result<Option<Vec<u8>>, End> {
        let mut decoder = self.decoder.lock();
        let read = decoder.read(bytes, length).map_err(End::clone);
        self.owe(&mut decoder);
        read
    }

    /// Takes the frame that is owed. None can be written once that was a close frame.
    fn take_owed(&self) -> NifResult<Vec<u8>> {
        let mut owed = self.owed.lock();
        let mut out = Vec::new();
        if let Some(reply) = owed.reply.take()
            && !owed.is_closed
        {
            owed.is_closed = matches!(reply, Reply::Close(_));
            encode_reply(&reply, key()?, &mut out);
        }
        Ok(out)
    }

    fn is_closed(&self) -> bool {
        self.owed.lock().is_closed
    }
}

/// What the log says of a close frame.
fn text(close: &Close) -> Option<String> {
    let code = close.code.filter(|code| !ORDERLY.contains(code))?;
    Some(format!(
        "the server closed with code {code}: {:?}",
        close.reason
    ))
}

/// The frame that is owed, or nothing; `{:closed, frame}` if no other can follow.
pub fn owed<'a>(env: Env<'a>, websocket: &WebSocket) -> NifResult<Term<'a>> {
    let frame = binary(env, &websocket.take_owed()?);
    Ok(match websocket.is_closed() {
        true => (atoms::closed(), frame).encode(env),
        false => frame.encode(env),
    })
}

/// The close frame, unless one was taken before.
pub fn close<'a>(env: Env<'a>, websocket: &WebSocket) -> NifResult<Term<'a>> {
    let mut out = websocket.take_owed()?;
    let mut owed = websocket.owed.lock();
    if !std::mem::replace(&mut owed.is_closed, true) {
        encode_close(Some(NORMAL_CLOSURE), key()?, &mut out);
    }
    Ok(binary(env, &out).encode(env))
}

/// `data` as a message.
pub fn message<'a>(env: Env<'a>, data: &[u8]) -> NifResult<Term<'a>> {
    let mut out = Vec::new();
    encode_message(&[data], key()?, &mut out);
    Ok(binary(env, &out).encode(env))
}

/// `{:ok, payload}` of `length` bytes, or of any if it is 0; `:more` if more bytes of the connection are needed;
/// `:closed` or `:protocol_error` if there will be no more.
pub fn read<'a>(env: Env<'a>, websocket: &WebSocket, bytes: &[u8], length: usize) -> Term<'a> {
    match websocket.read_some(bytes, length) {
        Ok(Some(payload)) => {
            let ok = rustler::types::atom::ok();
            (ok, binary(env, &payload)).encode(env)
        }
        Ok(None) => atoms::more().encode(env),
        Err(End::Closed(_)) => atoms::closed().encode(env),
        Err(End::Failed(_)) => atoms::protocol_error().encode(env),
    }
}

/// So many masking keys.
pub fn keys(count: usize) -> NifResult<Vec<[u8; 4]>> {
    let mut keys = vec![[0; 4]; count];
    getrandom::fill(keys.as_flattened_mut()).map_err(|_| Error::RaiseAtom("getrandom"))?;
    Ok(keys)
}

fn key() -> NifResult<[u8; 4]> {
    Ok(keys(1)?[0])
}
