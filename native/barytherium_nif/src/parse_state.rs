//! The state of `parse_all/2` between two calls: the decoder of a partial frame, in a resource, or
//! what is needed to make a new one.

use crate::lock::lock;
use crate::options::Limits;
use crate::terms::BinaryBody;
use rustler::{
    Binary, Decoder as TermDecoder, Encoder, Env, Error, NifMap, NifResult, ResourceArc, Term,
};
use std::sync::Mutex;
use stomp::{Decoder, Dialect, Server, Version};

/// A partial frame with a larger head, or more headers, is completed on a dirty thread: all headers are
/// unescaped and made into terms at once.
const SMALL_HEAD: usize = 64 * 1024;
const SMALL_HEADERS: usize = 2048;

/// A larger body without a length is completed on a dirty thread: it is copied whenever its buffer grows.
const SMALL_BODY: usize = 256 * 1024;

/// Whether the partial frame that `decoder` has may be completed on an ordinary scheduler.
pub fn is_small(decoder: &Decoder<BinaryBody>) -> bool {
    decoder.buffered_head() <= SMALL_HEAD
        && decoder.buffered_headers() <= SMALL_HEADERS
        && decoder.buffered_without_length() <= SMALL_BODY
}

/// A decoder with part of a frame. The next call takes it out.
pub struct Partial(Mutex<Option<Decoder<BinaryBody>>>);

#[rustler::resource_impl]
impl rustler::Resource for Partial {}

impl Partial {
    fn with<T>(&self, access: impl FnOnce(&mut Option<Decoder<BinaryBody>>) -> T) -> T {
        access(&mut lock(&self.0))
    }
}

/// A dialect as a term: the name of the version, or nil before one is negotiated. With a server that has a
/// dialect of its own, `{version, server}`; any server may be named.
#[derive(Clone, Copy)]
pub struct Negotiated(pub Option<Dialect>);

impl<'a> TermDecoder<'a> for Negotiated {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let (name, server): (Option<&str>, Option<Binary>) = match term.decode() {
            Ok((name, server)) => (Some(name), Some(server)),
            Err(_) => (term.decode()?, None),
        };
        let Some(name) = name else {
            return Ok(Negotiated(None));
        };
        Ok(Negotiated(Some(Dialect {
            version: Version::parse(name.as_bytes()).ok_or(Error::BadArg)?,
            server: server.and_then(|name| Server::of_name(&name)),
        })))
    }
}

impl Encoder for Negotiated {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let Some(Dialect { version, server }) = self.0 else {
            return rustler::types::atom::nil().encode(env);
        };
        let version = version.as_str();
        server.map_or_else(
            || version.encode(env),
            |server| (version, server.name()).encode(env),
        )
    }
}

/// A `t:Barytherium.Frame.parse_state/0`.
#[derive(NifMap)]
pub struct ParseState {
    /// None between frames.
    decoder: Option<ResourceArc<Partial>>,
    version: Negotiated,
    /// The position in the stream.
    offset: u64,
    limits: Limits,
}

impl ParseState {
    /// The decoder to continue with. None if this state was used before.
    pub fn take(&self) -> Option<Decoder<BinaryBody>> {
        self.take_or_new(self.version.0)
    }

    /// The same for a connection: `connected`, or one whose version is not yet negotiated.
    pub fn take_for_connection(&self, connected: bool) -> Option<Decoder<BinaryBody>> {
        let version = self.version.0.unwrap_or(Version::V1_2.into());
        self.take_or_new(connected.then_some(version))
    }

    fn take_or_new(&self, dialect: Option<Dialect>) -> Option<Decoder<BinaryBody>> {
        match &self.decoder {
            Some(partial) => partial.with(Option::take),
            None => Some(Decoder::new(dialect, self.limits.options()).starting_at(self.offset)),
        }
    }

    /// Whether bodies may share a binary.
    pub fn shares_bodies(&self) -> bool {
        self.limits.share_bodies
    }

    /// Whether an ordinary scheduler may continue with it.
    pub fn is_small(&self) -> bool {
        let partial = self.decoder.as_ref();
        partial.is_none_or(|partial| partial.with(|decoder| decoder.as_ref().is_none_or(is_small)))
    }

    /// Whether this state was used before.
    pub fn is_used(&self) -> bool {
        let partial = self.decoder.as_ref();
        partial.is_some_and(|partial| partial.with(|decoder| decoder.is_none()))
    }

    /// The state after `decoder` has taken all of its input.
    pub fn after(self, decoder: Decoder<BinaryBody>) -> ParseState {
        let version = Negotiated(decoder.dialect());
        let offset = decoder.offset();
        let partial = decoder
            .in_frame()
            .then(|| Partial(Mutex::new(Some(decoder))));
        ParseState {
            decoder: partial.map(ResourceArc::new),
            version,
            offset,
            limits: self.limits,
        }
    }
}
