//! Whatever arrives instead of a server's handshake, the session fails or waits for more, and its
//! answer to the server can be taken. Nobody is trusted.
#![no_main]

#[path = "../src/settings.rs"]
mod settings;
#[path = "../../src/test_server.rs"]
#[allow(dead_code)]
mod test_server;

use test_server::{Authority, NAME};
use tls::{Config, Handshake, Session};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    thread_local!(static CONFIG: Config = settings::config(&Authority::new()));
    let Some((&piece, data)) = data.split_first() else {
        return;
    };
    let config = CONFIG.with(Config::clone);
    let mut session = Session::new(&config, NAME.try_into().unwrap()).unwrap();
    assert_eq!(session.handshake(&[]), Ok(Handshake::Continue));
    assert!(!session.take_owed().is_empty());
    for bytes in data.chunks(usize::from(piece) + 1) {
        match session.handshake(bytes) {
            Ok(state) => assert_eq!(state, Handshake::Continue),
            Err(_) => {
                assert!(session.encrypt(b"data", &mut Vec::new()).is_err());
                return;
            }
        }
    }
    assert!(session.encrypt(b"data", &mut Vec::new()).is_err());
});
