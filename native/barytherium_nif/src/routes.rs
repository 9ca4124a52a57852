//! Which process gets the messages of which subscription.
//!
//! A client sets the routes of its connection before it writes SUBSCRIBE, from its own process. The
//! receive loop must not wait for it, nor it for the receive loop. So the table is replaced as a whole, and
//! a slice looks at a counter to see whether it has to fetch it again.

use rustler::LocalPid;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stomp::{Command, Frame};

/// Where the messages of a subscription go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub recipient: LocalPid,
    /// The process that is named in the message as the one that they come from.
    pub sender: LocalPid,
}

type Table = BTreeMap<Box<[u8]>, Route>;

/// The routes of a connection, by the value of the header `subscription`.
#[derive(Default)]
pub struct Routes {
    table: Mutex<Arc<Table>>,
    /// How often the table was replaced.
    changes: AtomicU64,
    /// Whether somebody waits for a frame that is no message: a receipt, for example.
    urgent: AtomicBool,
}

#[rustler::resource_impl]
impl rustler::Resource for Routes {}

impl Routes {
    pub fn put(&self, subscription: &[u8], route: Route) {
        self.change(|table| _ = table.insert(subscription.into(), route));
    }

    pub fn delete(&self, subscription: &[u8]) {
        self.change(|table| _ = table.remove(subscription));
    }

    pub fn set_urgent(&self, urgent: bool) {
        self.urgent.store(urgent, Ordering::Relaxed);
    }

    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.lock();
        change(Arc::make_mut(&mut table));
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A receive loop's copy of the table.
#[derive(Default)]
pub struct Snapshot {
    table: Arc<Table>,
    changes: u64,
}

impl Snapshot {
    /// Fetches the table, if it was replaced. Whether it was.
    pub fn refresh(&mut self, routes: &Routes) -> bool {
        let changes = routes.changes.load(Ordering::Acquire);
        if changes == self.changes {
            return false;
        }
        self.changes = changes;
        self.table = Arc::clone(&routes.lock());
        true
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether a subscription's messages go to `recipient`.
    pub fn has(&self, recipient: LocalPid) -> bool {
        self.table
            .values()
            .any(|route| route.recipient == recipient)
    }

    /// Where the frame goes, if not to the listener. Some 1.0 servers pad their headers.
    pub fn of<B>(&self, frame: &Frame<'_, B>) -> Option<Route> {
        if self.table.is_empty() || frame.command() != Command::Message {
            return None;
        }
        let subscription = frame.header(b"subscription")?;
        self.table.get(subscription.trim_ascii()).copied()
    }
}
