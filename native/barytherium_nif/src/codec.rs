//! Parsing and formatting without a connection, for `Barytherium.Frame`.

use crate::atoms;
use crate::next::parse_error;
use crate::parse_state::ParseState;
use crate::terms::{Batch, BinaryBody, BodyPlace, binary};
use crate::websocket;
use ::websocket::encode_message;
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, NifStruct, NifUnitEnum, Term};
use stomp::{
    Command, Decoder, Dialect, EncodeError, Escapes, Escaping, ParseError, UndefinedEscapes,
};

/// A body of this size or more is not copied if it is at least half of the data. Whoever keeps it
/// keeps at most twice its size in memory.
const PART_MIN: usize = 64 * 1024;

/// Decodes all of `data`: `{frames, state, nil | parse_error}`, or `:used` if the state was used
/// before.
pub fn parse<'a>(env: Env<'a>, data: Binary<'a>, state: ParseState) -> Term<'a> {
    let Some(mut decoder) = state.take() else {
        return atoms::used().encode(env);
    };
    let mut batch = Batch::default();
    let failure = decode(env, data, &mut decoder, &mut batch, state.shares_bodies()).err();
    let failure = failure.map(|error| parse_error(env, &error));
    (batch.list(env), state.after(decoder), failure).encode(env)
}

/// The same on an ordinary scheduler, or `:dirty` if that would take too long.
pub fn parse_inline<'a>(env: Env<'a>, data: Binary<'a>, state: ParseState) -> Term<'a> {
    if state.is_small() {
        parse(env, data, state)
    } else {
        atoms::dirty().encode(env)
    }
}

fn decode<'a>(
    env: Env<'a>,
    data: Binary<'a>,
    decoder: &mut Decoder<BinaryBody>,
    batch: &mut Batch<'a>,
    share_bodies: bool,
) -> Result<(), ParseError> {
    let mut input = data.as_slice();
    loop {
        let before = input.len();
        let Some(frame) = decoder.next(&mut input)? else {
            return Ok(());
        };
        let dialect =
            (frame.command() == Command::Connected).then(|| Dialect::of_connected(&frame));
        let end = data.len() - input.len() - 1;
        match part_of(data, &frame.body, end) {
            Some(body) => batch.push_with_body(env, &frame, body),
            None => {
                let size = before - input.len();
                let place = BodyPlace::new(share_bodies, size, input.len());
                batch.push(env, frame, place, None);
            }
        }
        if let Some(dialect) = dialect {
            decoder.set_dialect(dialect);
        }
    }
}

/// The body that ends at `end`, as a part of `data` if it is large enough for that.
fn part_of<'a>(
    data: Binary<'a>,
    body: &stomp::Body<'_, BinaryBody>,
    end: usize,
) -> Option<Binary<'a>> {
    match body {
        stomp::Body::Borrowed(bytes)
            if bytes.len() >= PART_MIN && bytes.len() >= data.len() / 2 =>
        {
            data.make_subbinary(end - bytes.len(), bytes.len()).ok()
        }
        _ => None,
    }
}

/// A body of this size or more is not copied when frames are encoded.
const SEPARATE_BODY: usize = 4 * 1024;

/// A `Barytherium.Frame` to encode.
#[derive(NifStruct)]
#[module = "Barytherium.Frame"]
pub struct FrameTerm<'a> {
    command: Atom,
    headers: Vec<(Binary<'a>, Binary<'a>)>,
    body: Binary<'a>,
}

/// Why frames cannot be encoded: the index of the frame, the reason, the index of its header.
type Refused = (usize, Atom, usize);

/// How frames are sent.
#[derive(Clone, Copy, NifUnitEnum)]
pub enum Framing {
    /// One after the other.
    Stream,
    /// Each in a message of a WebSocket: some brokers read one frame of a message.
    Messages,
}

/// The bytes of all frames, as iodata.
pub fn encode<'a>(
    env: Env<'a>,
    frames: &[FrameTerm<'a>],
    dialect: Option<Dialect>,
    framing: Framing,
) -> NifResult<Result<Vec<Term<'a>>, Refused>> {
    match framing {
        Framing::Stream => encode_stream(env, frames, dialect),
        Framing::Messages => encode_messages(env, frames, dialect),
    }
}

fn encode_head(
    index: usize,
    frame: &FrameTerm,
    dialect: Option<Dialect>,
    out: &mut Vec<u8>,
) -> NifResult<Result<(), Refused>> {
    let command = atoms::to_command(frame.command).ok_or(Error::BadArg)?;
    let headers = frame.headers.iter();
    let headers = headers.map(|(name, value)| (name.as_slice(), value.as_slice()));
    let encoded = stomp::encode_head(command, headers, frame.body.len(), dialect, out);
    Ok(encoded.map_err(|error| refused(index, error)))
}

fn encode_messages<'a>(
    env: Env<'a>,
    frames: &[FrameTerm<'a>],
    dialect: Option<Dialect>,
) -> NifResult<Result<Vec<Term<'a>>, Refused>> {
    let (mut head, mut bytes) = (Vec::new(), Vec::new());
    let keys = websocket::keys(frames.len())?;
    for (index, (frame, key)) in frames.iter().zip(keys).enumerate() {
        head.clear();
        if let Err(refused) = encode_head(index, frame, dialect, &mut head)? {
            return Ok(Err(refused));
        }
        encode_message(&[&head, &frame.body, b"\0"], key, &mut bytes);
    }
    Ok(Ok(vec![binary(env, &bytes)]))
}

fn encode_stream<'a>(
    env: Env<'a>,
    frames: &[FrameTerm<'a>],
    dialect: Option<Dialect>,
) -> NifResult<Result<Vec<Term<'a>>, Refused>> {
    let (mut parts, mut bytes) = (Vec::new(), Vec::new());
    for (index, frame) in frames.iter().enumerate() {
        if let Err(refused) = encode_head(index, frame, dialect, &mut bytes)? {
            return Ok(Err(refused));
        }
        let length = frame.body.len();
        if length < SEPARATE_BODY {
            bytes.extend_from_slice(&frame.body);
        } else {
            parts.push(binary(env, &std::mem::take(&mut bytes)));
            parts.push(frame.body.to_term(env));
        }
        bytes.push(0);
    }
    parts.push(binary(env, &bytes));
    Ok(Ok(parts))
}

fn refused(frame: usize, error: EncodeError) -> Refused {
    match error {
        EncodeError::EmptyHeaderName(header) => (frame, atoms::empty_header_name(), header),
        EncodeError::Unescapable(header) => (frame, atoms::unescapable(), header),
    }
}

/// Decodes the escapes of STOMP 1.2. Undefined ones stay as they are.
pub fn unescape<'a>(env: Env<'a>, text: &[u8]) -> Term<'a> {
    let lenient = Escapes::Decoded(UndefinedEscapes::Keep);
    let decoded = stomp::unescape(text, lenient);
    binary(env, decoded.as_deref().unwrap_or(text))
}

/// Escapes as in STOMP 1.2.
pub fn escape<'a>(env: Env<'a>, text: &[u8]) -> Term<'a> {
    let mut escaped = Vec::with_capacity(text.len());
    stomp::escape(text, Escaping::All, &mut escaped);
    binary(env, &escaped)
}
