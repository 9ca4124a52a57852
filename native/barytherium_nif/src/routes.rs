//! Which process gets the messages of which subscription, and which of them it has not acknowledged.
//!
//! A client sets the routes of its connection before it writes SUBSCRIBE, from its own process. The
//! table is locked only to look something up or to change one entry. A receive loop looks at a counter to see
//! whether what it knows is still true, and remembers the route of its last message.

use crate::feed::{Counting, Feed};
use crate::lock::lock;
use rustler::{Binary, LocalPid, NifResult, ResourceArc, Term};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stomp::{Command, Frame, Unacknowledged};

/// Where the messages of a subscription go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub recipient: LocalPid,
    pub origin: Origin,
    /// Whether bodies are inflated; None: as the connection's option says.
    pub inflate: Option<bool>,
}

/// What the message to the recipient says about where its frames come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A cast that names the sender, as every message of a connection, and when the first frame was read.
    Sender(LocalPid),
    /// A plain message that names the subscription: its client, and its number there.
    Subscription(LocalPid, u64),
}

impl<'a> rustler::Decoder<'a> for Origin {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let pid = term.decode().map(Origin::Sender);
        pid.or_else(|_| {
            let (client, number) = term.decode()?;
            Ok(Origin::Subscription(client, number))
        })
    }
}

/// Which of several recipients gets a message: messages with the same key go to the same one.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// The value of a header. Messages without it have the same key.
    Header(Box<[u8]>),
    /// A part of the body. A body that ends before has what it has of it.
    Body { at: usize, length: usize },
}

impl<'a> rustler::Decoder<'a> for Key {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        if let Ok((at, length)) = term.decode() {
            return Ok(Key::Body { at, length });
        }
        let name: Binary = term.decode()?;
        Ok(Key::Header(name.as_slice().into()))
    }
}

/// Several processes that share the messages of a subscription.
pub struct Partition {
    pids: Vec<LocalPid>,
    key: Key,
}

impl Partition {
    /// `pids` has some.
    pub fn new(pids: Vec<LocalPid>, key: Key) -> Partition {
        Partition { pids, key }
    }

    /// The route of a message with this body, if that decides.
    pub fn by_body(&self, mut route: Route, body: &[u8]) -> Route {
        if let Key::Body { at, length } = self.key {
            let part = body.get(at..).unwrap_or_default();
            route.recipient = self.recipient(&part[..part.len().min(length)]);
        }
        route
    }

    fn recipient(&self, key: &[u8]) -> LocalPid {
        let mut hasher = DefaultHasher::new();
        hasher.write(key);
        self.pids[(hasher.finish() % self.pids.len() as u64) as usize]
    }
}

/// A note of the messages that were delivered and not acknowledged.
#[derive(Clone)]
struct Notes {
    /// The header of a message that an acknowledgement names.
    header: &'static [u8],
    ids: Arc<Mutex<Unacknowledged>>,
}

#[derive(Clone)]
struct Entry {
    route: Route,
    /// Who gets the messages, if there are several.
    partition: Option<Arc<Partition>>,
    notes: Option<Notes>,
    counting: Option<Counting>,
    /// Whether a message has come.
    used: bool,
}

impl Entry {
    fn recipients(&self) -> &[LocalPid] {
        match &self.partition {
            Some(partition) => &partition.pids,
            None => std::slice::from_ref(&self.route.recipient),
        }
    }
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<Box<[u8]>, Entry>,
    /// How many routes a recipient has.
    recipients: BTreeMap<LocalPid, usize>,
    /// Recipients that have lost their last route since the receive loop looked.
    gone: Vec<LocalPid>,
    /// A subscription's notes outlive its route.
    notes: BTreeMap<Box<[u8]>, Notes>,
}

impl Table {
    fn insert(&mut self, subscription: &[u8], entry: Entry) {
        for &pid in entry.recipients() {
            *self.recipients.entry(pid).or_default() += 1;
        }
        if let Some(notes) = &entry.notes {
            self.notes.insert(subscription.into(), notes.clone());
        }
        if let Some(old) = self.entries.insert(subscription.into(), entry) {
            self.left(&old);
        }
    }

    fn remove(&mut self, subscription: &[u8]) {
        if let Some(old) = self.entries.remove(subscription) {
            self.left(&old);
        }
    }

    /// Its recipients have one route less.
    fn left(&mut self, entry: &Entry) {
        for &recipient in entry.recipients() {
            if let Some(count) = self.recipients.get_mut(&recipient) {
                *count -= 1;
                if *count == 0 {
                    self.recipients.remove(&recipient);
                    self.gone.push(recipient);
                }
            }
        }
    }
}

/// The routes of a connection, by the value of the header `subscription`. Messages without one are
/// looked up by their `destination`.
#[derive(Default)]
pub struct Routes {
    table: Mutex<Table>,
    /// How often the table was changed.
    changes: AtomicU64,
    /// Whether somebody waits for a frame that is no message: a receipt, for example.
    urgent: AtomicBool,
    /// Whether nothing is read because a recipient is behind.
    paused: AtomicBool,
    /// Who gets a copy of every frame. Whether there is one is looked at first, for each message.
    tap: Mutex<Option<LocalPid>>,
    is_tapped: AtomicBool,
}

#[rustler::resource_impl]
impl rustler::Resource for Routes {}

impl Routes {
    /// The messages with one of these values of the header take `route`. `partition`: who gets them, if there are
    /// several. `noted`: the header whose values are noted until
    /// they are acknowledged. `feed`: what counts them.
    pub fn put(
        &self,
        subscription: &[&[u8]],
        route: Route,
        partition: Option<Partition>,
        noted: Option<&'static [u8]>,
        feed: Option<ResourceArc<Feed>>,
    ) {
        let notes = noted.map(|header| Notes {
            header,
            ids: Arc::default(),
        });
        let entry = Entry {
            route,
            partition: partition.map(Arc::new),
            notes,
            counting: feed.map(Counting::begin),
            used: false,
        };
        self.change(|table| {
            for key in subscription {
                table.insert(key, entry.clone());
            }
        });
    }

    pub fn delete(&self, subscription: &[u8]) {
        self.change(|table| table.remove(subscription));
    }

    /// Whether `recipient` has a route.
    pub fn has_recipient(&self, recipient: LocalPid) -> bool {
        lock(&self.table).recipients.contains_key(&recipient)
    }

    /// Calls `f` with the messages of a subscription that were not acknowledged, if they are noted.
    pub fn unacknowledged<T>(
        &self,
        subscription: &[u8],
        f: impl FnOnce(&mut Unacknowledged) -> T,
    ) -> Option<T> {
        let notes = lock(&self.table).notes.get(subscription).cloned()?;
        Some(f(&mut lock(&notes.ids)))
    }

    /// The subscription has ended: nothing is noted any more.
    pub fn forget(&self, subscription: &[u8]) {
        lock(&self.table).notes.remove(subscription);
    }

    pub fn set_tap(&self, tap: Option<LocalPid>) {
        let mut place = lock(&self.tap);
        self.is_tapped.store(tap.is_some(), Ordering::Relaxed);
        *place = tap;
    }

    /// Who gets a copy of every frame.
    pub fn tap(&self) -> Option<LocalPid> {
        match self.is_tapped.load(Ordering::Relaxed) {
            true => *lock(&self.tap),
            false => None,
        }
    }

    pub fn set_urgent(&self, urgent: bool) {
        self.urgent.store(urgent, Ordering::Relaxed);
    }

    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        change(&mut lock(&self.table));
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// What a receive loop knows of the table.
#[derive(Default)]
pub struct Known {
    changes: u64,
    has_routes: bool,
    /// The subscription of the last message.
    subscription: Vec<u8>,
    entry: Option<Entry>,
    first: Vec<Box<[u8]>>,
}

impl Known {
    /// Looks whether the table has changed. Returns the recipients that have no routes any more.
    pub fn refresh(&mut self, routes: &Routes) -> Vec<LocalPid> {
        let changes = routes.changes.load(Ordering::Acquire);
        if changes == self.changes {
            return Vec::new();
        }
        let mut table = lock(&routes.table);
        self.changes = changes;
        self.has_routes = !table.entries.is_empty();
        self.subscription.clear();
        self.entry = None;
        let mut gone = std::mem::take(&mut table.gone);
        gone.retain(|pid| !table.recipients.contains_key(pid));
        gone
    }

    /// Whether there are routes.
    pub fn has_routes(&self) -> bool {
        self.has_routes
    }

    /// Where the frame, which was read at `time`, goes, if not to the listener. Some 1.0 servers pad their headers, or leave this one out.
    pub fn route<B: AsRef<[u8]>>(
        &mut self,
        routes: &Routes,
        frame: &Frame<'_, B>,
        time: Duration,
    ) -> Option<Route> {
        if !self.has_routes || frame.command() != Command::Message {
            return None;
        }
        let header = frame.header(b"subscription");
        let header = header.or_else(|| frame.header(b"destination"))?;
        let subscription = header.trim_ascii();
        if self.subscription != subscription || self.entry.is_none() {
            self.look_up(routes, subscription);
        }
        let entry = self.entry.as_ref()?;
        if let Some(counting) = &entry.counting {
            counting.message(frame, time);
        }
        if let Some(notes) = &entry.notes
            && let Some(id) = frame.header(notes.header)
        {
            lock(&notes.ids).delivered(&id);
        }
        let mut route = entry.route;
        if let Some(partition) = &entry.partition
            && let Key::Header(name) = &partition.key
        {
            route.recipient = partition.recipient(&frame.header(name).unwrap_or_default());
        }
        Some(route)
    }

    /// Those who share the messages of the last message's subscription.
    pub fn partition(&self) -> Option<&Arc<Partition>> {
        self.entry.as_ref()?.partition.as_ref()
    }

    fn look_up(&mut self, routes: &Routes, subscription: &[u8]) {
        let mut table = lock(&routes.table);
        let entry = table.entries.get_mut(subscription);
        if let Some(entry) = &entry
            && !entry.used
        {
            self.first.push(subscription.into());
        }
        self.entry = entry.map(|entry| {
            entry.used = true;
            entry.clone()
        });
        self.subscription.clear();
        self.subscription.extend_from_slice(subscription);
    }

    /// The routes by which a first message has come since the last call.
    pub fn take_first(&mut self) -> Vec<Box<[u8]>> {
        std::mem::take(&mut self.first)
    }
}
