//! The client side of TLS (RFC 5246, RFC 8446), sans I/O: it has no socket, no clock of its own and no
//! BEAM. rustls does the protocol and the cryptography.
//!
//! * [`Config`]: whom to trust and who we are; configurations are shared between connections;
//! * [`Handshake`]: a connection that is being set up;
//! * [`Session`]: one that is, until its end;
//! * [`Failure`]: why it failed, by the name of its TLS alert.
#![forbid(unsafe_code)]

mod config;
mod failure;
mod handshake;
mod machine;
mod session;
#[cfg(test)]
mod test_server;
mod verifier;

pub use config::{Config, Identity, Key, ServerName, Settings, Trust, Version, knows_cipher};
pub use failure::Failure;
pub use handshake::{Handshake, Progress};
pub use machine::{End, Records};
pub use session::{Ended, Exhausted, Reading, Session, Writing};
