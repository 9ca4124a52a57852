//! What each listener has not taken yet. All connections to one listener share an account.

use crate::atoms;
use rustler::{Env, LocalPid};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stomp::{Backlog, Member, Resume};

type Shared = Arc<Mutex<Backlog<LocalPid>>>;

/// The backlog of each listener that has connections, and the number of its connections.
static ACCOUNTS: Mutex<BTreeMap<LocalPid, (Shared, usize)>> = Mutex::new(BTreeMap::new());

/// One connection's part in its listener's account.
pub struct Account {
    listener: LocalPid,
    backlog: Shared,
    /// The process of this connection.
    owner: LocalPid,
    /// The number of messages in the listener's mailbox at which to pause.
    mark: usize,
    member: Member,
    /// The value of the last `Resume::Look`.
    look: u64,
}

impl Account {
    pub fn open(listener: LocalPid, owner: LocalPid, mark: usize) -> Account {
        let mut accounts = lock(&ACCOUNTS);
        let (backlog, connections) = accounts.entry(listener).or_default();
        *connections += 1;
        Account {
            listener,
            backlog: Arc::clone(backlog),
            owner,
            mark,
            member: Member::default(),
            look: 0,
        }
    }

    /// Accounts for a message of `bytes` bytes of memory. Whether another one may be sent.
    pub fn sent(&mut self, bytes: usize) -> bool {
        lock(&self.backlog).sent(bytes, &mut self.member, self.mark)
    }

    /// What to do when `sent` returned false, after a pause, or when woken.
    pub fn resume(&mut self, now: Duration) -> Resume {
        let resume = lock(&self.backlog).resume(self.owner, &mut self.member, self.mark, now);
        if let Resume::Look(sent) = resume {
            self.look = sent;
        }
        resume
    }

    /// Whether a connection that somebody waits for may go on although the listener is behind. It then waits
    /// for it no longer.
    pub fn use_reserve(&mut self, env: Env) -> bool {
        let has_reserve = lock(&self.backlog).has_reserve(self.mark);
        if has_reserve && let Some(next) = self.leave() {
            wake(env, &next);
        }
        has_reserve
    }

    /// Whether there is a reserve.
    pub fn has_reserve(&self) -> bool {
        lock(&self.backlog).has_reserve(self.mark)
    }

    /// What to do after `Look`, with `queued` messages in the listener's mailbox.
    pub fn looked(&mut self, env: Env, queued: usize, now: Duration) -> Resume {
        let mut woken = Vec::new();
        let resume = lock(&self.backlog).looked(
            self.owner,
            &mut self.member,
            self.mark,
            (self.look, queued),
            now,
            &mut woken,
        );
        woken.iter().for_each(|owner| wake(env, owner));
        resume
    }

    /// There is nothing to send at the moment.
    pub fn rest(&mut self) {
        if self.member.has_grant() {
            lock(&self.backlog).give_back(&mut self.member);
        }
    }

    /// The connection is over.
    pub fn close(mut self, env: Env) {
        if let Some(next) = self.leave() {
            wake(env, &next);
        }
    }

    fn leave(&mut self) -> Option<LocalPid> {
        lock(&self.backlog).leave(self.owner, &mut self.member)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.leave();
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

/// Tells a paused connection to ask again. If its process is gone, it has left the account. Nothing is
/// sent if our own process has been killed meanwhile. The other one asks by itself then, after a while.
fn wake(env: Env, owner: &LocalPid) {
    _ = env.send(owner, (atoms::barytherium(), atoms::resume()));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
