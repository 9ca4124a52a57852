//! The functions of `Barytherium.Native`.
//!
//! What may take a millisecond or more runs on a dirty scheduler. What reads or decodes only a
//! little has a second function, which runs on the caller's scheduler.

mod routes;

use crate::account;
use crate::atoms;
use crate::call::State;
use crate::clock::now;
use crate::codec::{self, FrameTerm, Framing};
use crate::connection::Connection;
use crate::delivery::Address;
use crate::file_lock::FileLock;
use crate::options::ConnectionOptions;
use crate::parse_state::{Negotiated, ParseState};
use crate::recipients::Recipients;
use crate::socket::{self, Ending, Socket};
use crate::stats::{Counters, Stats};
use crate::terms::Caller;
use crate::tls::{self, Tls, TlsHandshake, TlsSettings};
use crate::transport::{Layers, Transport};
use crate::turn::{self, Place};
use crate::websocket::{self, WebSocket};
use rustler::{Atom, Binary, Env, NifResult, Reference, ResourceArc, Term};
use std::time::Duration;

/// Nanoseconds of the clock by which frames are read.
#[rustler::nif]
fn clock() -> u64 {
    now().as_nanos() as u64
}

#[rustler::nif]
fn is_abandoned(descriptor: i32) -> bool {
    socket::is_abandoned(descriptor)
}

/// `{:ok, lock}` on a file that exists, `{:error, :locked}` or `{:error, :enolck}`. It ends with the calling process.
#[rustler::nif(schedule = "DirtyIo")]
fn lock_file(env: Env, path: &str) -> Result<ResourceArc<FileLock>, Atom> {
    FileLock::new(env, path.as_ref())
}

/// `{:ok, connection}`, `{:error, posix}`, or `{:error, :used}` if `parse_state` was used before.
/// `descriptor` is the socket's, or nil. `pending` are bytes without TLS that were already
/// read from it.
#[rustler::nif]
fn open<'a>(
    env: Env<'a>,
    descriptor: Option<i32>,
    pending: Binary,
    parse_state: ParseState,
    options: ConnectionOptions,
    to: Address<'a>,
    stats: ResourceArc<Stats>,
) -> Result<ResourceArc<Connection>, Atom> {
    let socket = descriptor.map(Socket::duplicate).transpose();
    let socket = socket.map_err(|error| descriptor_error(&error))?;
    let Some(decoder) = parse_state.take_for_connection(options.is_connected()) else {
        if let Some(socket) = socket {
            socket.stop(env, Ending::LeftToOwner);
        }
        return Err(atoms::used());
    };
    let layers = Layers {
        tls: options.tls.clone(),
        websocket: options.websocket.clone(),
    };
    let undecoded = layers.start(&pending);
    let listener = to.local_listener();
    let place = listener.and(socket.as_ref());
    let place = place.map(|_| Place::new(env.pid()));
    let recipients = Recipients::new(
        env.pid(),
        listener,
        options.high_water_mark,
        options.routes.clone(),
        stats.clone(),
        parse_state.shares_bodies(),
        (options.inflate, options.max_inflated),
    );
    let state = State::new(
        options.session(decoder, now()),
        socket.map(|socket| Transport {
            socket,
            show_econnreset: options.show_econnreset,
        }),
        layers,
        undecoded,
        recipients,
        place,
        stats,
    );
    let connection = ResourceArc::new(Connection::new(state));
    env.monitor(&connection, &env.pid());
    Ok(connection)
}

#[rustler::nif]
fn confirm(connection: ResourceArc<Connection>, socket: Term) -> Atom {
    connection.change(|state| state.confirm(socket));
    rustler::types::atom::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn read_dirty<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    reference: Reference,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| call.read_dirty(reference))
}

/// The same on the caller's scheduler, for what takes well under a millisecond.
#[rustler::nif]
fn read_inline<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    reference: Reference,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| call.read_inline(reference))
}

#[rustler::nif(schedule = "DirtyIo")]
fn feed_dirty<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    bytes: Binary,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| Ok(call.feed_dirty(&bytes)))
}

/// The same on the caller's scheduler, for few bytes: it takes well under a millisecond.
#[rustler::nif]
fn feed_inline<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    bytes: Binary,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| Ok(call.feed_inline(&bytes)))
}

/// Whether to look at the mailbox of a recipient, after a wait for room in it.
#[rustler::nif]
fn poll_room<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| Ok(call.poll_room()))
}

/// There are `queued` messages in the mailbox that was looked at.
#[rustler::nif]
fn looked<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    queued: usize,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| Ok(call.looked(queued)))
}

/// A lot may have to be decoded first.
#[rustler::nif(schedule = "DirtyIo")]
fn disconnect<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    reason: Atom,
    to: Address<'a>,
) -> NifResult<Term<'a>> {
    connection.call(caller(env), to, |call| Ok(call.disconnect(reason)))
}

#[rustler::nif]
fn agree(connection: ResourceArc<Connection>, interval: u64) -> Atom {
    connection.change(|state| state.agree(Duration::from_millis(interval)));
    rustler::types::atom::ok()
}

/// A TLS handshake with the server `name`: `{:ok, handshake}` or `{:error, {reason, details}}`. Loading the
/// authorities takes milliseconds.
#[rustler::nif(schedule = "DirtyCpu")]
fn tls_open(
    env: Env,
    settings: TlsSettings,
    name: &str,
) -> Result<ResourceArc<TlsHandshake>, (Atom, String)> {
    tls::open(env, settings, name)
}

#[rustler::nif]
fn tls_knows_cipher(name: &str) -> bool {
    tls_client::knows_cipher(name)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn tls_handshake<'a>(
    env: Env<'a>,
    handshake: ResourceArc<TlsHandshake>,
    bytes: Binary,
) -> Term<'a> {
    tls::handshake(env, &handshake, &bytes)
}

/// On the caller's scheduler: takes well under a millisecond, or is refused with `:busy`.
#[rustler::nif]
fn tls_encrypt<'a>(env: Env<'a>, tls: ResourceArc<Tls>, data: Term<'a>) -> NifResult<Term<'a>> {
    let data = Binary::from_iolist(data)?;
    Ok(tls::encrypt(env, &tls, &data, false))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn tls_encrypt_large<'a>(
    env: Env<'a>,
    tls: ResourceArc<Tls>,
    data: Term<'a>,
) -> NifResult<Term<'a>> {
    let data = Binary::from_iolist(data)?;
    Ok(tls::encrypt(env, &tls, &data, true))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn tls_close<'a>(env: Env<'a>, tls: ResourceArc<Tls>) -> Term<'a> {
    tls::close(env, &tls)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn tls_read<'a>(env: Env<'a>, tls: ResourceArc<Tls>, bytes: Binary, length: usize) -> Term<'a> {
    tls::read(env, &tls, &bytes, length)
}

/// A WebSocket that begins with bytes that came behind the opening handshake.
#[rustler::nif]
fn websocket_open(bytes: Binary) -> ResourceArc<WebSocket> {
    ResourceArc::new(WebSocket::new(&bytes))
}

#[rustler::nif]
fn websocket_owed<'a>(env: Env<'a>, websocket: ResourceArc<WebSocket>) -> NifResult<Term<'a>> {
    websocket::owed(env, &websocket)
}

#[rustler::nif]
fn websocket_close<'a>(env: Env<'a>, websocket: ResourceArc<WebSocket>) -> NifResult<Term<'a>> {
    websocket::close(env, &websocket)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn websocket_message<'a>(env: Env<'a>, data: Term<'a>) -> NifResult<Term<'a>> {
    websocket::message(env, &Binary::from_iolist(data)?)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn websocket_read<'a>(
    env: Env<'a>,
    websocket: ResourceArc<WebSocket>,
    bytes: Binary,
    length: usize,
) -> Term<'a> {
    websocket::read(env, &websocket, &bytes, length)
}

#[rustler::nif]
fn new_stats() -> ResourceArc<Stats> {
    ResourceArc::new(Stats::default())
}

#[rustler::nif]
fn stats(counters: ResourceArc<Stats>) -> Counters {
    counters.read(now())
}

/// The number of connections that were opened and not yet freed, in the whole VM.
#[rustler::nif]
fn live_connections() -> usize {
    Connection::live()
}

/// The number of listeners with an account, in the whole VM.
#[rustler::nif]
fn live_accounts() -> usize {
    account::count()
}

/// The number of connections that have a turn or wait for one, in the whole VM.
#[rustler::nif]
fn live_turns() -> usize {
    turn::count()
}

/// Whether this state was used before.
#[rustler::nif]
fn is_used(state: ParseState) -> bool {
    state.is_used()
}

#[rustler::nif(schedule = "DirtyCpu")]
fn parse<'a>(env: Env<'a>, data: Binary<'a>, state: ParseState) -> Term<'a> {
    codec::parse(env, data, state)
}

/// The same on the caller's scheduler, for few bytes: it takes well under a millisecond.
#[rustler::nif]
fn parse_inline<'a>(env: Env<'a>, data: Binary<'a>, state: ParseState) -> Term<'a> {
    codec::parse_inline(env, data, state)
}

/// The bytes of frames: `{:ok, iodata}` or `{:error, {frame, reason, header}}`, with indices.
#[rustler::nif]
fn encode<'a>(
    env: Env<'a>,
    frames: Vec<FrameTerm<'a>>,
    version: Negotiated,
    framing: Framing,
) -> NifResult<Result<Vec<Term<'a>>, (usize, Atom, usize)>> {
    codec::encode(env, &frames, version.0, framing)
}

/// The same on a dirty scheduler, for frames that take a millisecond or more.
#[rustler::nif(schedule = "DirtyCpu")]
fn encode_large<'a>(
    env: Env<'a>,
    frames: Vec<FrameTerm<'a>>,
    version: Negotiated,
    framing: Framing,
) -> NifResult<Result<Vec<Term<'a>>, (usize, Atom, usize)>> {
    codec::encode(env, &frames, version.0, framing)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn escape<'a>(env: Env<'a>, text: Binary) -> Term<'a> {
    codec::escape(env, &text)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn unescape<'a>(env: Env<'a>, text: Binary) -> Term<'a> {
    codec::unescape(env, &text)
}

/// For the environment of a NIF, and no other.
fn caller(env: Env<'_>) -> Caller<'_> {
    // SAFETY: only the functions above call this, with their own.
    unsafe { Caller::new(env) }
}

fn descriptor_error(error: &std::io::Error) -> Atom {
    match error.raw_os_error() {
        Some(libc::EMFILE) => atoms::emfile(),
        _ => atoms::ebadf(),
    }
}
