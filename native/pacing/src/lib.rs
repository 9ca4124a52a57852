//! Which of many connections may go on, and when, sans I/O.
//!
//! Times go in, decisions come out. There is no thread, no clock and no process in this crate, so what is hard
//! about sharing is tested without a VM:
//!
//! * [`Slots`]: which of the connections that have a lot to read may read now;
//! * [`Backlog`]: when a recipient is too far behind, and which connection to it goes on first.
//!
//! Both keep what they know of each connection themselves. A connection asks by `poll`, and does what the answer
//! says. An answer to one connection may concern others: these are in `take_woken`, and have to poll.
#![forbid(unsafe_code)]

mod backlog;
mod slots;

pub use backlog::{Backlog, Member, Pace};
pub use slots::{Slots, Turn};
