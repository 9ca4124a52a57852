//! What a connection reads from.

use crate::halt;
use crate::socket::{Ending, Socket};
use crate::tls::Tls;
use rustler::{Env, ResourceArc, Term};

/// A socket, and what decrypts its bytes.
pub struct Transport {
    pub socket: Socket,
    /// None for plain TCP.
    pub tls: Option<ResourceArc<Tls>>,
}

impl Transport {
    /// The descriptor was still that of `owner`, a socket, after it had been duplicated.
    pub fn confirm(&mut self, owner: Term) {
        self.socket.confirm();
        halt::watch(self.socket.descriptor(), owner);
    }

    /// What becomes of the socket after an orderly end.
    pub fn ending(&self, ending: Ending) -> Ending {
        match self.tls {
            // The owner still has to send an alert.
            Some(_) => Ending::LeftToOwner,
            None => ending,
        }
    }

    /// Has the duplicate closed.
    pub fn stop(self, env: Env, ending: Ending) {
        // It is open until then, so the number is not that of another connection.
        halt::forget(self.socket.descriptor());
        self.socket.stop(env, ending);
    }
}
