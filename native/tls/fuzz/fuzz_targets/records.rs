//! A server's records after the handshake: the input says what it sends, how that is cut, and which
//! byte is damaged on its way. What the session returns is what was sent, up to the damage, however it
//! was cut. What it writes meanwhile can be read by the server.
#![no_main]

#[path = "../src/settings.rs"]
mod settings;
#[path = "../../src/test_server.rs"]
#[allow(dead_code)]
mod test_server;

use std::cell::OnceCell;
use test_server::{Authority, Issued, NAME, Server};
use tls::{Config, End, Handshake, Session};

struct Fixture {
    config: Config,
    issued: Issued,
}

fn fixture() -> &'static Fixture {
    thread_local!(static FIXTURE: OnceCell<&'static Fixture> = const { OnceCell::new() });
    FIXTURE.with(|fixture| {
        *fixture.get_or_init(|| {
            let authority = Authority::new();
            let config = settings::config(&authority);
            let issued = authority.issue(|_| ());
            Box::leak(Box::new(Fixture { config, issued }))
        })
    })
}

fn connected(small_records: bool) -> (Session, Server) {
    let Fixture { config, issued } = fixture();
    let mut server = match small_records {
        true => Server::with_records_of(64, issued),
        false => Server::new(issued, rustls::ALL_VERSIONS),
    };
    let mut session = Session::new(config, NAME.try_into().unwrap()).unwrap();
    let mut state = session.handshake(&[]).unwrap();
    while state == Handshake::Continue {
        server.take(&session.take_owed()).unwrap();
        state = session.handshake(&server.records()).unwrap();
    }
    server.take(&session.take_owed()).unwrap();
    (session, server)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [small_records, damage, position_high, position_low, piece, actions @ ..] = data else {
        return;
    };
    let (mut session, mut server) = connected(small_records & 1 == 1);
    let mut records = server.records();
    let mut sent = Vec::new();
    for action in actions.chunks(8) {
        match action[0] % 8 {
            0 => records.extend(server.update_keys()),
            1 => {
                let large = vec![action[0]; 20_000];
                records.extend(server.send(&large));
                sent.extend(large);
            }
            _ => {
                records.extend(server.send(action));
                sent.extend(action);
            }
        }
    }
    let closes = actions.len() % 2 == 1;
    if closes {
        records.extend(server.close());
    }
    let position = usize::from(u16::from_be_bytes([*position_high, *position_low]));
    let damaged = *damage != 0 && position < records.len();
    if damaged {
        records[position] ^= damage;
    }

    let mut plaintext = session.take_plaintext();
    for bytes in records.chunks(usize::from(*piece) * 100 + 1) {
        let mut buffer = session.partial().to_vec();
        buffer.extend_from_slice(bytes);
        session.decrypt(&mut buffer, |part| plaintext.extend_from_slice(part));
        let mut written = Vec::new();
        let result = session.encrypt(b"data", &mut written);
        match server.take(&written) {
            Ok(read) if result.is_ok() => assert_eq!(read, b"data"),
            // The server learns of the failure by an alert.
            other => assert!(damaged && (other.is_err() || result.is_err())),
        }
    }
    assert!(sent.starts_with(&plaintext));
    if !damaged {
        assert_eq!(plaintext, sent);
        assert_eq!(session.end(), closes.then_some(&End::Closed));
    }
    session.close(&mut Vec::new());
});
