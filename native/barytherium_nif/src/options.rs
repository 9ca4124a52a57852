//! Options as they come from `Barytherium.Network.Options`.

use crate::routes::Routes;
use crate::tls::Tls;
use crate::websocket::WebSocket;
use rustler::{NifMap, ResourceArc};
use std::time::Duration;
use stomp::{Decoder, Options, Session, Timing, UndefinedEscapes};

/// What a peer may send, and how it is kept.
#[derive(NifMap)]
pub struct Limits {
    max_header_line: usize,
    max_headers: usize,
    max_body: u64,
    keep_undefined_escapes: bool,
    pub share_bodies: bool,
}

impl Limits {
    pub fn options(&self) -> Options {
        Options {
            max_header_line: self.max_header_line,
            max_headers: self.max_headers,
            max_body: self.max_body,
            undefined_escapes: match self.keep_undefined_escapes {
                true => UndefinedEscapes::Keep,
                false => UndefinedEscapes::Refuse,
            },
        }
    }
}

/// How a connection behaves. Times are in milliseconds.
#[derive(NifMap)]
pub struct ConnectionOptions {
    /// The socket option: a reset is a reason of its own, and not `closed`.
    pub show_econnreset: bool,
    first_frame_timeout: u64,
    /// `None`: the default.
    heartbeat_receive_allowance: Option<u64>,
    /// The number of messages in the listener's mailbox at which to pause; `None` for no limit.
    pub high_water_mark: Option<usize>,
    /// The agreed interval, `None` before CONNECTED.
    hb_recv: Option<u64>,
    /// The `receipt` header of the DISCONNECT that ends the connection, if one ever will.
    last_receipt: Option<String>,
    /// Whether compressed bodies are inflated, and how many bytes one may become.
    pub inflate: bool,
    pub max_inflated: u64,
    /// Where the messages of subscriptions go; `None`: all to the listener.
    pub routes: Option<ResourceArc<Routes>>,
    /// The TLS session of the socket; `None` for plain TCP.
    pub tls: Option<ResourceArc<Tls>>,
    /// The WebSocket that is spoken on it; `None` for plain STOMP.
    pub websocket: Option<ResourceArc<WebSocket>>,
}

impl ConnectionOptions {
    /// Whether CONNECTED has been received.
    pub fn is_connected(&self) -> bool {
        self.hb_recv.is_some()
    }

    /// A session in the state that these options describe. It continues with `decoder`.
    pub fn session<B: stomp::BodyBuffer>(&self, decoder: Decoder<B>, now: Duration) -> Session<B> {
        let timing = Timing {
            first_frame_timeout: Duration::from_millis(self.first_frame_timeout),
            heartbeat_allowance: self.heartbeat_receive_allowance.map(Duration::from_millis),
        };
        let mut session = match self.hb_recv {
            None => Session::new(decoder, timing, now),
            Some(interval) => {
                let mut session = Session::connected(decoder, timing, now);
                session.agree(Duration::from_millis(interval), now);
                session
            }
        };
        if let Some(receipt) = &self.last_receipt {
            session.ends_with(receipt.as_bytes());
        }
        session
    }
}
