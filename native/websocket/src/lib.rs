//! The client side of WebSocket (RFC 6455) after the opening handshake, sans I/O.
//!
//! To STOMP a WebSocket is a stream of bytes: STOMP frames end by themselves, so it does not matter how a server
//! divides them into messages, or messages into frames. A [`Decoder`] hands on what arrives, collects nothing but
//! control frames, which have 125 bytes at most, and needs no limit for anything larger. [`encode_message`] makes a
//! message, masked.
//!
//! ```
//! use websocket::{Decoder, encode_message};
//!
//! let mut out = Vec::new();
//! encode_message(&[b"SEND\n\n", b"late", b"\0"], [1, 2, 3, 4], &mut out);
//! assert_eq!(out[..2], [0x81, 0x80 | 11], "a text message, masked");
//!
//! let mut decoder = Decoder::default();
//! let mut payload = Vec::new();
//! decoder.decode(b"\x82\x05\0\x0aMES", |part| payload.extend_from_slice(part));
//! assert_eq!(payload, b"\0\x0aMES");
//! ```
//!
//! Text is not checked to be UTF-8, as RFC 6455 (8.1) wants it: brokers send bodies of any bytes in text messages,
//! and STOMP knows where they end.
#![forbid(unsafe_code)]

mod close;
mod decoder;
mod encoder;
mod header;

pub use close::Close;
pub use decoder::{Decoder, End, Reply};
pub use encoder::{NORMAL_CLOSURE, encode_close, encode_message, encode_reply};
pub use header::Violation;
