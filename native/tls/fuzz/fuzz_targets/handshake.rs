//! Whatever arrives instead of a server's handshake, it fails or waits for more. Nobody is trusted.
#![no_main]

#[path = "../src/settings.rs"]
mod settings;
#[path = "../../src/test_server.rs"]
#[allow(dead_code)]
mod test_server;

use test_server::{Authority, NAME};
use tls_client::{Config, Handshake, Progress};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    thread_local!(static CONFIG: Config = settings::config(&Authority::new()));
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let config = CONFIG.with(Config::clone);
    let mut handshake = Handshake::new(&config, NAME.try_into().unwrap()).unwrap();
    for bytes in std::iter::once(&[][..]).chain(data.chunks(usize::from(piece) + 1)) {
        let (records, progress) = handshake.advance(bytes);
        // It begins with a record of its own.
        assert!(!bytes.is_empty() || !records.into_bytes().is_empty());
        handshake = match progress {
            Progress::Continue(handshake) => handshake,
            Progress::Established(_) => panic!("with a server that nobody trusts"),
            Progress::Failed(_) => return,
        };
    }
});
