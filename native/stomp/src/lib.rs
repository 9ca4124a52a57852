//! The STOMP protocol (1.0, 1.1 and 1.2), sans I/O.
//!
//! Bytes and times go in, frames and decisions come out. There is no socket, no clock and no `unsafe`
//! in this crate, so everything that is hard about the protocol is tested without a VM:
//!
//! * [`Decoder`]: bytes to frames, incrementally, borrowing from the input;
//! * [`encode_head`]: a frame's command and headers to bytes;
//! * [`Session`]: the first frame, the negotiated version, and when silence is a time-out;
//! * [`Unacknowledged`]: which messages of a subscription wait for their acknowledgement.
#![forbid(unsafe_code)]

mod command;
mod decoder;
mod encoder;
mod error;
mod escape;
mod frame;
mod head;
mod options;
mod scan;
mod session;
mod unacknowledged;
mod version;

pub use command::Command;
pub use decoder::{BodyBuffer, Decoder};
pub use encoder::{EncodeError, encode_head};
pub use error::{ParseError, Rule};
pub use escape::{Escapes, Escaping, escape, unescape};
pub use frame::{Body, Frame, Header};
pub use head::Same;
pub use options::{
    DEFAULT_MAX_BODY, DEFAULT_MAX_HEADER_LINE, DEFAULT_MAX_HEADERS, Options, UndefinedEscapes,
};
pub use session::{DEFAULT_FIRST_FRAME_TIMEOUT, Event, HEARTBEAT_SLACK, Session, Timing};
pub use unacknowledged::Unacknowledged;
pub use version::{Dialect, Server, Version};

#[cfg(test)]
mod linear_tests;
