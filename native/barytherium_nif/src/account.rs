//! What each listener has not taken yet. All connections to one listener share an account.

use crate::atoms;
use crate::clock::now;
use crate::lock::lock;
use pacing::{Backlog, Member, Pace};
use rustler::{Env, LocalPid};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

type Shared = Arc<Mutex<Backlog<LocalPid>>>;

/// The backlog of each listener that has connections, and the number of its connections.
static ACCOUNTS: Mutex<BTreeMap<LocalPid, (Shared, usize)>> = Mutex::new(BTreeMap::new());

/// One connection's part in its listener's account.
pub struct Account {
    listener: LocalPid,
    backlog: Shared,
    member: Member,
}

impl Account {
    /// An account for the connection of the process `owner`. It pauses at `mark` messages in the listener's
    /// mailbox.
    pub fn open(listener: LocalPid, owner: LocalPid, mark: usize) -> Account {
        let mut accounts = lock(&ACCOUNTS);
        let (backlog, connections) = accounts.entry(listener).or_default();
        *connections += 1;
        let backlog = Arc::clone(backlog);
        drop(accounts);
        let member = lock(&backlog).join(owner, mark);
        Account {
            listener,
            backlog,
            member,
        }
    }

    /// Accounts for a message of `bytes` bytes of memory. Whether another one may be sent.
    pub fn sent(&mut self, bytes: usize) -> bool {
        lock(&self.backlog).sent(self.member, bytes)
    }

    /// Whether a large message may be begun, which is then [reserved](Self::reserve).
    pub fn may_begin(&self) -> bool {
        lock(&self.backlog).may_begin(self.member)
    }

    /// A message is being made that takes `bytes` bytes by now.
    pub fn reserve(&mut self, bytes: usize) {
        lock(&self.backlog).reserve(self.member, bytes);
    }

    /// What to do when `sent` returned false, after a pause, or when woken.
    pub fn poll(&mut self) -> Pace {
        lock(&self.backlog).poll(self.member, now())
    }

    /// Whether there is a reserve for a connection that somebody waits for.
    pub fn has_reserve(&self) -> bool {
        lock(&self.backlog).has_reserve(self.member)
    }

    /// The connection waits no longer. If it was the first that did, the next one is woken.
    pub fn withdraw(&mut self, env: Env) {
        self.and_wake(env, |backlog, member| backlog.withdraw(member));
    }

    /// What to do after `Look`, with `queued` messages in the listener's mailbox.
    pub fn looked(&mut self, env: Env, queued: usize) -> Pace {
        self.and_wake(env, |backlog, member| backlog.looked(member, queued, now()))
    }

    /// There is nothing to send at the moment.
    pub fn give_back(&mut self) {
        lock(&self.backlog).give_back(self.member);
    }

    /// Changes the backlog, and tells the paused connections that this concerns to ask again. One whose
    /// process is gone has left the account. Nothing is sent if our own process has been killed meanwhile. The
    /// others ask by themselves then, after a while.
    fn and_wake<T>(&self, env: Env, change: impl FnOnce(&mut Backlog<LocalPid>, Member) -> T) -> T {
        let mut backlog = lock(&self.backlog);
        let result = change(&mut backlog, self.member);
        let woken = backlog.take_woken();
        drop(backlog);
        for owner in woken {
            _ = env.send(&owner, (atoms::barytherium(), atoms::room()));
        }
        result
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        lock(&self.backlog).leave(self.member);
        let mut accounts = lock(&ACCOUNTS);
        if let Some((_, connections)) = accounts.get_mut(&self.listener) {
            *connections -= 1;
            if *connections == 0 {
                accounts.remove(&self.listener);
            }
        }
    }
}

/// The number of listeners that have an account.
pub fn count() -> usize {
    lock(&ACCOUNTS).len()
}
