//! Those about the routes of a connection, and what is counted and noted of their messages.

use crate::feed::{Feed, Report, Sequence};
use crate::routes::{Key, Origin, Partition, Route, Routes};
use crate::terms::binary;
use rustler::{Atom, Binary, Env, Error, LocalPid, NifMap, NifResult, ResourceArc, Term};
use std::sync::Arc;

/// A table of routes for a connection.
#[rustler::nif]
fn new_routes() -> ResourceArc<Routes> {
    ResourceArc::new(Routes::default())
}

/// Where messages go, and what becomes of them on the way.
#[derive(NifMap)]
#[rustler(decode)]
struct RouteOptions {
    /// One, or several with a key.
    recipients: Vec<LocalPid>,
    key: Option<Key>,
    /// Where the messages to them say that they come from.
    origin: Origin,
    /// The header whose values are noted until they are acknowledged.
    noted: Option<Noted>,
    /// None: as the connection's option says.
    inflate: Option<bool>,
    /// What counts them.
    feed: Option<ResourceArc<Feed>>,
}

/// Messages whose header has one of the values in `subscription` take this route.
#[rustler::nif]
fn put_route(
    routes: ResourceArc<Routes>,
    subscription: Vec<Binary>,
    options: RouteOptions,
) -> NifResult<Atom> {
    let noted = options.noted.map(|noted| match noted {
        Noted::Ack => b"ack".as_slice(),
        Noted::MessageId => b"message-id".as_slice(),
    });
    let route = Route {
        recipient: *options.recipients.first().ok_or(Error::BadArg)?,
        origin: options.origin,
        inflate: options.inflate,
    };
    let partition = options
        .key
        .map(|key| Partition::new(options.recipients, key));
    let keys: Vec<&[u8]> = subscription.iter().map(|key| key.as_slice()).collect();
    routes.put(&keys, route, partition, noted, options.feed);
    Ok(rustler::types::atom::ok())
}

/// What counts the messages of a subscription. `timestamp` is the header with the time when it was sent,
/// `sequence` the one with numbers, and how many there are before they begin again.
#[rustler::nif]
fn new_feed(
    timestamp: Option<Binary>,
    sequence: Option<(Binary, u64)>,
) -> NifResult<ResourceArc<Feed>> {
    let sequence = sequence.map(|(header, numbers)| match numbers {
        1..=Sequence::NUMBERS_MAX => Ok(Sequence {
            header: header.as_slice().into(),
            numbers,
        }),
        _ => Err(Error::BadArg),
    });
    let timestamp = timestamp.map(|header| header.as_slice().into());
    Ok(ResourceArc::new(Feed::new(
        timestamp,
        sequence.transpose()?,
    )))
}

#[rustler::nif]
fn feed(counters: ResourceArc<Feed>) -> Report {
    counters.report()
}

#[derive(rustler::NifUnitEnum)]
enum Noted {
    Ack,
    MessageId,
}

#[rustler::nif]
fn delete_route(routes: ResourceArc<Routes>, subscription: Binary) -> Atom {
    routes.delete(&subscription);
    rustler::types::atom::ok()
}

/// A message of `subscription` was acknowledged.
#[rustler::nif]
fn acknowledged(routes: ResourceArc<Routes>, subscription: Binary, id: Binary) -> Atom {
    routes.unacknowledged(&subscription, |noted| noted.acknowledged(&id));
    rustler::types::atom::ok()
}

/// The id of the oldest message of `subscription` that was not acknowledged, or nil.
#[rustler::nif]
fn first_unacknowledged<'a>(
    env: Env<'a>,
    routes: ResourceArc<Routes>,
    subscription: Binary,
) -> Option<Term<'a>> {
    let first = routes.unacknowledged(&subscription, |noted| noted.first());
    first.flatten().map(|id| binary(env, &id))
}

/// Whether a message of `subscription` is noted as not acknowledged.
#[rustler::nif]
fn is_unacknowledged(routes: ResourceArc<Routes>, subscription: Binary, id: Binary) -> bool {
    let noted = routes.unacknowledged(&subscription, |noted| noted.contains(&id));
    noted.unwrap_or(false)
}

/// The ids of a message of `subscription` and of those before it that were not acknowledged, the oldest
/// first.
#[rustler::nif]
fn unacknowledged_through<'a>(
    env: Env<'a>,
    routes: ResourceArc<Routes>,
    subscription: Binary,
    id: Binary,
) -> Vec<Term<'a>> {
    let ids = routes.unacknowledged(&subscription, |noted| noted.through(&id));
    binaries(env, &ids.unwrap_or_default())
}

/// `subscription` has ended: the ids of its messages that were not acknowledged, the oldest first.
#[rustler::nif]
fn take_unacknowledged<'a>(
    env: Env<'a>,
    routes: ResourceArc<Routes>,
    subscription: Binary,
) -> Vec<Term<'a>> {
    let ids = routes.unacknowledged(&subscription, |noted| noted.take_all());
    routes.forget(&subscription);
    binaries(env, &ids.unwrap_or_default())
}

fn binaries<'a>(env: Env<'a>, ids: &[Arc<[u8]>]) -> Vec<Term<'a>> {
    ids.iter().map(|id| binary(env, id)).collect()
}

/// Whether somebody waits for a frame that is no message.
#[rustler::nif]
fn set_urgent(routes: ResourceArc<Routes>, urgent: bool) -> Atom {
    routes.set_urgent(urgent);
    rustler::types::atom::ok()
}

/// Sends a copy of every frame that is delivered to `tap`, a process of this node, or to nobody.
#[rustler::nif]
fn set_tap(routes: ResourceArc<Routes>, tap: Option<LocalPid>) -> Atom {
    routes.set_tap(tap);
    rustler::types::atom::ok()
}

/// Whether nothing is read because a recipient is behind.
#[rustler::nif]
fn paused(routes: ResourceArc<Routes>) -> bool {
    routes.is_paused()
}
