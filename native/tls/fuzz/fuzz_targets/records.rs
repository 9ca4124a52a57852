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
use tls_client::{Config, End, Ended, Handshake, Progress, Records, Session};

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
    let mut handshake = Handshake::new(config, NAME.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    loop {
        let (records, progress) = handshake.advance(&bytes);
        server.take(&records.into_bytes()).unwrap();
        handshake = match progress {
            Progress::Continue(handshake) => handshake,
            Progress::Established(session) => return (session, server),
            Progress::Failed(failure) => panic!("{failure}"),
        };
        bytes = server.records();
    }
}

/// The records of `data`, and whether it could be written.
fn write(session: &mut Session, data: &[u8]) -> (Vec<u8>, bool) {
    match session.writing(Records::default()) {
        Ok(mut writing) => {
            writing.encrypt(data).unwrap();
            (writing.finish().into_bytes(), true)
        }
        Err(Ended(owed)) => (owed.into_bytes(), false),
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [
        small_records,
        damage,
        position_high,
        position_low,
        piece,
        actions @ ..,
    ] = data
    else {
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
        if let Ok(reading) = session.reading() {
            let mut buffer = reading.partial().to_vec();
            buffer.extend_from_slice(bytes);
            reading.decrypt(&mut buffer, |part| plaintext.extend_from_slice(part));
        }
        let (written, all) = write(&mut session, b"data");
        match server.take(&written) {
            Ok(read) if all => assert_eq!(read, b"data"),
            // The server learns of the failure by an alert.
            other => assert!(damaged && (other.is_err() || !all)),
        }
    }
    assert!(sent.starts_with(&plaintext));
    if !damaged {
        assert_eq!(plaintext, sent);
        assert_eq!(session.reading().err(), closes.then_some(&End::Closed));
    }
    if let Ok(writing) = session.writing(Records::default()) {
        _ = writing.close();
    }
});
