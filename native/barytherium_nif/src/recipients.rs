//! Who gets a connection's frames: its listener, and the processes that have a route. Each has an account
//! of what it has not taken.

use crate::account::Account;
use crate::routes::{Known, Partition, Route, Routes};
use crate::stats::Stats;
use pacing::Pace;
use rustler::{Env, LocalPid, ResourceArc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stomp::Frame;

/// The recipients of one connection.
pub struct Recipients {
    /// Counts what was delivered.
    pub stats: ResourceArc<Stats>,
    /// Whether bodies may share a binary.
    pub share_bodies: bool,
    /// Whether bodies are inflated for those whose route does not say, and how many bytes one may become.
    inflate: bool,
    pub max_inflated: u64,
    /// The process of the connection, and the number of messages at which it pauses; None for no
    /// back-pressure.
    owner: LocalPid,
    mark: Option<usize>,
    /// None if it is not a process of this node.
    listener: Option<LocalPid>,
    routes: Option<ResourceArc<Routes>>,
    known: Known,
    /// When something was read last.
    pub read_at: Duration,
    /// The accounts of those that have been sent something.
    accounts: BTreeMap<LocalPid, Member>,
    /// Those that this connection may send more to because it has waited.
    granted: BTreeSet<LocalPid>,
    /// The recipient that the connection waits for.
    awaited: Option<LocalPid>,
    /// Whether it waits for nobody any more.
    is_ending: bool,
}

struct Member {
    account: Account,
    /// Whether it is too far behind for another message.
    is_full: bool,
}

impl Recipients {
    pub fn new(
        owner: LocalPid,
        listener: Option<LocalPid>,
        mark: Option<usize>,
        routes: Option<ResourceArc<Routes>>,
        stats: ResourceArc<Stats>,
        share_bodies: bool,
        (inflate, max_inflated): (bool, u64),
    ) -> Recipients {
        Recipients {
            stats,
            share_bodies,
            inflate,
            max_inflated,
            owner,
            mark: listener.and(mark),
            listener,
            routes,
            known: Known::default(),
            read_at: Duration::ZERO,
            accounts: BTreeMap::new(),
            granted: BTreeSet::new(),
            awaited: None,
            is_ending: false,
        }
    }

    /// Where the frame goes, if not to the listener.
    pub fn route<B: AsRef<[u8]>>(&mut self, frame: &Frame<'_, B>) -> Option<Route> {
        self.refresh();
        self.known
            .route(self.routes.as_deref()?, frame, self.read_at)
    }

    /// Those who share the messages of the last message's subscription, which has gone by a route.
    pub fn partition(&self) -> Option<Arc<Partition>> {
        self.known.partition().cloned()
    }

    /// The route of the last message, whose body this is, if that decides.
    pub fn by_body(&self, route: Option<Route>, body: &[u8]) -> Option<Route> {
        match (route, self.known.partition()) {
            (Some(route), Some(partition)) => Some(partition.by_body(route, body)),
            _ => route,
        }
    }

    /// Whether the bodies of messages that go by `route` are inflated.
    pub fn inflates(&self, route: Option<Route>) -> bool {
        route
            .and_then(|route| route.inflate)
            .unwrap_or(self.inflate)
    }

    /// The routes by which a first message has come since the last call.
    pub fn take_first(&mut self) -> Vec<Box<[u8]>> {
        self.known.take_first()
    }

    /// Looks whether the routes have changed.
    fn refresh(&mut self) {
        let Some(routes) = &self.routes else {
            return;
        };
        // These keep nothing of us: those that have ended do not need it, and those whose subscription
        // has ended get nothing more.
        for gone in self.known.refresh(routes) {
            if Some(gone) != self.listener {
                self.accounts.remove(&gone);
            }
        }
    }

    /// Who gets a copy of every frame.
    pub fn tap(&self) -> Option<LocalPid> {
        self.routes.as_ref()?.tap()
    }

    /// Whether somebody waits for what may come behind messages.
    fn is_urgent(&self) -> bool {
        self.routes
            .as_ref()
            .is_some_and(|routes| routes.is_urgent())
    }

    /// Says that the connection has paused, or goes on.
    pub fn set_paused(&self, paused: bool) {
        if let Some(routes) = &self.routes {
            routes.set_paused(paused);
        }
    }

    /// Whether there are several recipients. One that is full then does not stop the others' frames, until
    /// one for it comes.
    fn are_several(&self) -> bool {
        self.known.has_routes()
    }

    /// Accounts for a message of `bytes` bytes of memory to `recipient`. Whether the connection has to
    /// wait for it.
    pub fn sent(&mut self, recipient: LocalPid, bytes: usize) -> bool {
        let (several, urgent, is_ending) = (self.are_several(), self.is_urgent(), self.is_ending);
        let Some(member) = self.member(recipient) else {
            return false;
        };
        let was_full = std::mem::replace(&mut member.is_full, !member.account.sent(bytes));
        let reads_on = urgent && member.account.has_reserve();
        let waits = member.is_full && (was_full || !several) && !reads_on && !is_ending;
        if waits {
            self.awaited = Some(recipient);
        }
        waits
    }

    /// A large message to the process that `route` leads to is about to be made. Whether there is room; otherwise
    /// the connection has to wait for that process.
    pub fn may_begin(&mut self, route: Option<Route>) -> bool {
        let is_ending = self.is_ending;
        let Some(recipient) = self.recipient(route) else {
            return true;
        };
        let may_begin = |member: &mut Member| is_ending || member.account.may_begin();
        let may_begin = self.member(recipient).is_none_or(may_begin);
        if !may_begin {
            self.awaited = Some(recipient);
        }
        may_begin
    }

    /// The message takes `bytes` bytes by now, or none any more.
    pub fn reserve(&mut self, route: Option<Route>, bytes: usize) {
        if let Some(recipient) = self.recipient(route)
            && let Some(member) = self.member(recipient)
        {
            member.account.reserve(bytes);
        }
    }

    /// The process that `route` leads to, if it is one of this node.
    fn recipient(&self, route: Option<Route>) -> Option<LocalPid> {
        route.map(|route| route.recipient).or(self.listener)
    }

    /// The account of a process, if what it has not taken counts.
    fn member(&mut self, recipient: LocalPid) -> Option<&mut Member> {
        let mark = self.mark?;
        // Where there are routes, the listener gets few frames, which nothing must hold up, and its mailbox
        // is full of what others ask of it.
        if self.routes.is_some() && Some(recipient) == self.listener {
            return None;
        }
        if !self.accounts.contains_key(&recipient) && !self.may_get_more(recipient) {
            return None;
        }
        let owner = self.owner;
        Some(self.accounts.entry(recipient).or_insert_with(|| Member {
            account: Account::open(recipient, owner, mark),
            is_full: false,
        }))
    }

    /// Whether `recipient` still has a route, if there are routes. Frames may have waited for it since it had.
    fn may_get_more(&self, recipient: LocalPid) -> bool {
        let routes = self.routes.as_ref();
        routes.is_none_or(|routes| routes.has_recipient(recipient))
    }

    /// Whether `recipient` may not get a message more than the next one.
    pub fn is_full(&self, recipient: LocalPid) -> bool {
        self.are_several()
            && !self.is_ending
            && self
                .accounts
                .get(&recipient)
                .is_some_and(|member| member.is_full)
    }

    fn awaited(&mut self) -> Option<&mut Member> {
        self.accounts.get_mut(&self.awaited?)
    }

    /// The process that the connection waits for.
    pub fn awaited_pid(&self) -> Option<LocalPid> {
        self.awaited
    }

    /// Whether the connection may go on after it had to wait. It does not wait for a process that has no
    /// route any more.
    pub fn poll(&mut self, env: Env) -> Pace {
        self.refresh();
        let urgent = self.is_urgent();
        let pace = match self.awaited() {
            None => Pace::Go,
            Some(Member { account, .. }) if urgent && account.has_reserve() => {
                account.withdraw(env);
                Pace::Go
            }
            Some(Member { account, .. }) => account.poll(),
        };
        self.note(pace)
    }

    /// The same, with `queued` messages in the mailbox of the process that it waits for.
    pub fn looked(&mut self, env: Env, queued: usize) -> Pace {
        let looked = |member: &mut Member| member.account.looked(env, queued);
        let pace = self.awaited().map_or(Pace::Go, looked);
        self.note(pace)
    }

    fn note(&mut self, pace: Pace) -> Pace {
        if pace == Pace::Go {
            if let Some(member) = self.awaited() {
                member.is_full = false;
            }
            self.granted.extend(self.awaited.take());
        }
        pace
    }

    /// There is nothing to send at the moment.
    pub fn rest(&mut self) {
        for pid in std::mem::take(&mut self.granted) {
            if let Some(member) = self.accounts.get_mut(&pid) {
                member.account.give_back();
            }
        }
    }

    /// The connection is about to end: it waits for nobody from here on.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Whether these frames are the last ones.
    pub fn are_last(&self) -> bool {
        self.is_ending
    }

    /// The connection is over.
    pub fn close(self, env: Env) {
        for mut member in self.accounts.into_values() {
            member.account.withdraw(env);
        }
    }
}
