//! The functions of `Barytherium.Native`.
//!
//! Whatever reads, decodes or sends runs on a dirty scheduler: decoding a full buffer takes
//! longer than the millisecond that an ordinary one may be held.

use crate::atoms;
use crate::codec;
use crate::connection::Connection;
use crate::delivery::Recipients;
use crate::options::{ConnectionOptions, Limits};
use crate::socket::Socket;
use crate::state::now;
use crate::stats::Stats;
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Reference, ResourceArc, Term};
use std::time::Duration;
use stomp::Version;

/// `{:ok, connection}` or `{:error, posix}`. `descriptor` is the socket's, or nil.
#[rustler::nif]
fn open<'a>(
    env: Env<'a>,
    descriptor: Option<i32>,
    pending: Binary,
    version: Option<&str>,
    limits: Limits,
    options: ConnectionOptions,
    stats: ResourceArc<Stats>,
) -> NifResult<Term<'a>> {
    let session = options.session(parse_version(version)?, &limits, now());
    let socket = match descriptor.map(Socket::duplicate).transpose() {
        Ok(socket) => socket,
        Err(error) => return Ok(env.error_tuple(descriptor_error(&error))),
    };
    let connection = Connection::new(session, socket, pending.to_vec(), &options, stats);
    let connection = ResourceArc::new(connection);
    env.monitor(&connection, &env.pid());
    Ok((rustler::types::atom::ok(), connection).encode(env))
}

#[rustler::nif]
fn confirm(connection: ResourceArc<Connection>) -> Atom {
    connection.confirm();
    rustler::types::atom::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn receive_slice<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    reference: Reference,
    to: Recipients<'a>,
) -> Term<'a> {
    connection.receive(env, reference, to, false)
}

/// The same on the caller's scheduler, for what takes well under a millisecond.
#[rustler::nif]
fn receive_inline<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    reference: Reference,
    to: Recipients<'a>,
) -> Term<'a> {
    connection.receive(env, reference, to, true)
}

#[rustler::nif(schedule = "DirtyIo")]
fn feed<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    bytes: Binary,
    to: Recipients<'a>,
) -> Term<'a> {
    connection.feed(env, &bytes, to)
}

/// The same on the caller's scheduler, for so few bytes that it takes well under a millisecond.
#[rustler::nif]
fn feed_inline<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    bytes: Binary,
    to: Recipients<'a>,
) -> Term<'a> {
    connection.feed(env, &bytes, to)
}

#[rustler::nif]
fn disconnect<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    reason: Atom,
    to: Recipients<'a>,
) -> Term<'a> {
    connection.disconnect(env, reason, to)
}

#[rustler::nif]
fn agree(connection: ResourceArc<Connection>, interval: u64) -> Atom {
    connection.agree(Duration::from_millis(interval));
    rustler::types::atom::ok()
}

/// Whether to go on, with `queued` messages in the listener's mailbox: `:again` or `:full`.
#[rustler::nif]
fn resume(connection: ResourceArc<Connection>, queued: usize) -> Atom {
    match connection.resume(queued) {
        true => atoms::again(),
        false => atoms::full(),
    }
}

#[rustler::nif]
fn new_stats() -> ResourceArc<Stats> {
    ResourceArc::new(Stats::default())
}

#[rustler::nif]
fn stats<'a>(env: Env<'a>, counters: ResourceArc<Stats>) -> Term<'a> {
    counters.to_term(env, now())
}

/// Connections that were opened and not yet freed, in the whole VM.
#[rustler::nif]
fn live_connections() -> usize {
    Connection::live()
}

#[rustler::nif(schedule = "DirtyCpu")]
fn parse<'a>(
    env: Env<'a>,
    data: Binary,
    version: Option<&str>,
    limits: Limits,
) -> NifResult<Term<'a>> {
    Ok(codec::parse(env, &data, parse_version(version)?, &limits))
}

#[rustler::nif]
fn encode_head<'a>(
    env: Env<'a>,
    command: Atom,
    headers: Vec<(Binary, Binary)>,
    body_length: usize,
    version: Option<&str>,
) -> NifResult<Result<Term<'a>, Atom>> {
    encode(env, command, &headers, body_length, version)
}

/// The same for headers so large that it takes a millisecond or more.
#[rustler::nif(schedule = "DirtyCpu")]
fn encode_large_head<'a>(
    env: Env<'a>,
    command: Atom,
    headers: Vec<(Binary, Binary)>,
    body_length: usize,
    version: Option<&str>,
) -> NifResult<Result<Term<'a>, Atom>> {
    encode(env, command, &headers, body_length, version)
}

fn encode<'a>(
    env: Env<'a>,
    command: Atom,
    headers: &[(Binary, Binary)],
    body_length: usize,
    version: Option<&str>,
) -> NifResult<Result<Term<'a>, Atom>> {
    let command = atoms::to_command(command).ok_or(Error::BadArg)?;
    let version = parse_version(version)?;
    Ok(codec::encode_head(
        env,
        command,
        headers,
        body_length,
        version,
    ))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn escape<'a>(env: Env<'a>, text: Binary) -> Term<'a> {
    codec::escape(env, &text)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn unescape<'a>(env: Env<'a>, text: Binary) -> Term<'a> {
    codec::unescape(env, &text)
}

fn parse_version(version: Option<&str>) -> NifResult<Option<Version>> {
    let parse = |version: &str| Version::parse(version.as_bytes()).ok_or(Error::BadArg);
    version.map(parse).transpose()
}

fn descriptor_error(error: &std::io::Error) -> Atom {
    match error.raw_os_error() {
        Some(libc::EMFILE) => atoms::emfile(),
        _ => atoms::ebadf(),
    }
}
