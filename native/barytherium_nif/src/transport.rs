//! What a connection reads from.

use crate::halt;
use crate::socket::{Ending, Socket};
use crate::tls::Tls;
use crate::websocket::WebSocket;
use rustler::{Env, ResourceArc, Term};

/// A socket that is read here.
pub struct Transport {
    pub socket: Socket,
    /// The socket option: a reset is a reason of its own, and not `closed`.
    pub show_econnreset: bool,
}

impl Transport {
    /// The descriptor was still that of `owner`, a socket, after it had been duplicated.
    pub fn confirm(&mut self, owner: Term) {
        self.socket.confirm();
        halt::watch(self.socket.descriptor(), owner);
    }

    /// Has the duplicate closed.
    pub fn stop(self, env: Env, ending: Ending) {
        // It is open until then, so the number is not that of another connection.
        halt::forget(self.socket.descriptor());
        self.socket.stop(env, ending);
    }
}

/// What is between the bytes that are read and STOMP. `:ssl` of OTP is not among it.
pub struct Layers {
    pub tls: Option<ResourceArc<Tls>>,
    /// In TLS, if there is both.
    pub websocket: Option<ResourceArc<WebSocket>>,
}

impl Layers {
    pub fn is_empty(&self) -> bool {
        self.tls.is_none() && self.websocket.is_none()
    }

    /// The payload of what was read before: of `pending`, or of the records that came with the end of the handshake.
    pub fn start(&self, pending: &[u8]) -> Vec<u8> {
        let bytes = match &self.tls {
            None => pending.to_vec(),
            Some(tls) => tls.take_plaintext(),
        };
        match &self.websocket {
            None => bytes,
            Some(websocket) => websocket.start(&bytes),
        }
    }

    /// What becomes of the socket after an orderly end.
    pub fn ending(&self, ending: Ending) -> Ending {
        match self.is_empty() {
            true => ending,
            // The owner still has to send an alert, or a close frame.
            false => Ending::LeftToOwner,
        }
    }
}
