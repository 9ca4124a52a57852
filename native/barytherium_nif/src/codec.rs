//! Parsing and formatting without a connection, for `Barytherium.Frame`.

use crate::atoms;
use crate::delivery::parse_error;
use crate::options::Limits;
use crate::terms::{BinaryBody, FrameTerms};
use rustler::{Atom, Binary, Encoder, Env, NewBinary, Term};
use stomp::{Command, Decoder, EncodeError, Escapes, UndefinedEscapes, Version};

/// Decodes all of `data`: `{frames, version, taken, nil | parse_error}`, where `taken` is how
/// much of `data` the frames and what stands between them took up.
pub fn parse<'a>(env: Env<'a>, data: &[u8], version: Option<Version>, limits: &Limits) -> Term<'a> {
    let mut decoder: Decoder<BinaryBody> = Decoder::new(version, limits.options());
    let mut terms = FrameTerms::default();
    terms.begin();
    let (mut input, mut taken, mut negotiated) = (data, 0, version);
    let error = loop {
        match decoder.next(&mut input) {
            Ok(Some(frame)) => {
                let version = (frame.command() == Command::Connected)
                    .then(|| Version::of_connected(frame.header(b"version").as_deref()));
                terms.push(env, frame);
                taken = data.len() - input.len();
                if let Some(version) = version {
                    negotiated = Some(version);
                    decoder.set_version(version);
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(parse_error(env, &error)),
        }
    };
    if error.is_none() && !decoder.in_frame() {
        taken = data.len();
    }
    (
        terms.list(env),
        negotiated.map(Version::as_str),
        taken,
        error,
    )
        .encode(env)
}

/// The bytes of a frame before its body: `{:ok, head}` or `{:error, reason}`.
pub fn encode_head<'a>(
    env: Env<'a>,
    command: Command,
    headers: &[(Binary, Binary)],
    body_length: usize,
    version: Option<Version>,
) -> Result<Term<'a>, Atom> {
    let mut head = Vec::new();
    let headers = headers.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
    stomp::encode_head(command, headers, body_length, version, &mut head).map_err(|error| {
        match error {
            EncodeError::EmptyHeaderName => atoms::empty_header_name(),
            EncodeError::Unescapable => atoms::unescapable(),
        }
    })?;
    Ok(binary(env, &head))
}

/// 1.2's escapes decoded; undefined ones stay as they are.
pub fn unescape<'a>(env: Env<'a>, text: &[u8]) -> Term<'a> {
    let lenient = Escapes::V1_2(UndefinedEscapes::Keep);
    let decoded = stomp::unescape(text, lenient);
    binary(env, decoded.as_deref().unwrap_or(text))
}

/// Escaped as in 1.2.
pub fn escape<'a>(env: Env<'a>, text: &[u8]) -> Term<'a> {
    let mut escaped = Vec::with_capacity(text.len());
    stomp::escape(text, Escapes::V1_2(UndefinedEscapes::Keep), &mut escaped);
    binary(env, &escaped)
}

fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    Binary::from(NewBinary::from_slice(env, bytes)).encode(env)
}
