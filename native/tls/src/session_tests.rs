//! Sessions against a server in memory.

use super::*;
use crate::test_server::{Authority, Issued, NAME, Server};
use crate::{Config, Failure, Handshake, Identity, Key, Progress, Settings, Trust, Version};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

const EACH: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

fn settings(authority: &Authority) -> Settings {
    Settings {
        trust: Trust::Authorities(vec![authority.certificate.clone()]),
        is_named: true,
        identity: None,
        versions: vec![Version::Tls12, Version::Tls13],
        ciphers: None,
    }
}

fn handshake(settings: &Settings, name: &'static str) -> Handshake {
    let config = Config::of(settings.clone()).unwrap();
    Handshake::new(&config, name.try_into().unwrap()).unwrap()
}

/// Moves the bytes of a handshake, in pieces of `piece` bytes.
fn shake_hands(
    handshake: Handshake,
    server: &mut Server,
    piece: usize,
) -> Result<Session, Failure> {
    shake_hands_and_tell(handshake, server, piece).map_err(|(failure, _told)| failure)
}

/// The same. With a failure, whether the server has learned of it.
fn shake_hands_and_tell(
    handshake: Handshake,
    server: &mut Server,
    piece: usize,
) -> Result<Session, (Failure, bool)> {
    let (mut progress, mut told) = advance(handshake, server, &[]);
    loop {
        for records in server.records().chunks(piece) {
            (progress, told) = match progress {
                Progress::Continue(handshake) => advance(handshake, server, records),
                ended => (ended, told),
            };
        }
        match progress {
            Progress::Continue(_) => {}
            Progress::Established(session) => return Ok(session),
            Progress::Failed(failure) => return Err((failure, told)),
        }
    }
}

/// Goes on, and whether the server has refused the records.
fn advance(handshake: Handshake, server: &mut Server, bytes: &[u8]) -> (Progress, bool) {
    let (records, progress) = handshake.advance(bytes);
    let refused = server.take(&records.into_bytes()).is_err();
    (progress, refused)
}

fn connected(versions: &[&'static SupportedProtocolVersion]) -> (Session, Server) {
    let authority = Authority::new();
    let mut server = Server::new(&authority.issue(|_| ()), versions);
    let handshake = handshake(&settings(&authority), NAME);
    let session = shake_hands(handshake, &mut server, usize::MAX).unwrap();
    (session, server)
}

/// Decrypts `bytes` as a reader does, that reads `piece` bytes at a time.
fn read(session: &mut Session, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut plaintext = session.take_plaintext();
    for bytes in bytes.chunks(piece) {
        let Ok(reading) = session.reading() else {
            return plaintext;
        };
        let mut buffer = reading.partial().to_vec();
        buffer.extend_from_slice(bytes);
        reading.decrypt(&mut buffer, |part| plaintext.extend_from_slice(part));
    }
    plaintext
}

fn encrypt(session: &mut Session, data: &[u8]) -> Vec<u8> {
    let mut writing = session.writing(Records::default()).unwrap();
    writing.encrypt(data).unwrap();
    writing.finish().into_bytes()
}

fn close(session: &mut Session) -> Vec<u8> {
    match session.writing(Records::default()) {
        Ok(writing) => writing.close().into_bytes(),
        Err(Ended(owed)) => owed.into_bytes(),
    }
}

/// What is owed by a session that cannot be written to.
fn owed(session: &mut Session) -> Vec<u8> {
    match session.writing(Records::default()) {
        Ok(_) => panic!("it can be written"),
        Err(Ended(owed)) => owed.into_bytes(),
    }
}

#[test]
fn both_sides_understand_each_other() {
    for versions in EACH {
        let (mut session, mut server) = connected(versions);
        for size in [1, 100, 16_384, 16_385, 1_000_000] {
            let data: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let records = server.send(&data);
            assert_eq!(read(&mut session, &records, usize::MAX), data);
            let records = encrypt(&mut session, &data);
            assert_eq!(server.take(&records).unwrap(), data);
        }
        assert!(!session.owes());
    }
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    for versions in EACH {
        for piece in [1, 2, 3, 5, 17, 100, 4096] {
            let authority = Authority::new();
            let mut server = Server::new(&authority.issue(|_| ()), versions);
            let handshake = handshake(&settings(&authority), NAME);
            let mut session = shake_hands(handshake, &mut server, piece).unwrap();
            let mut records = server.send(b"first");
            for byte in b"one byte in each record" {
                records.extend(server.send(&[*byte]));
            }
            records.extend(server.send(&[b'x'; 20_000]));
            let plaintext = read(&mut session, &records, piece);
            assert_eq!(&plaintext[..28], b"firstone byte in each record");
            assert_eq!(plaintext.len(), 20_028);
            assert_eq!(session.partial, b"");
        }
    }
}

#[test]
fn every_cut_of_a_record_is_the_same() {
    for versions in EACH {
        let (_session, mut server) = connected(versions);
        let length = server.send(b"a record").len();
        for cut in 1..length {
            let (mut session, mut server) = connected(versions);
            let records = server.send(b"a record");
            let (first, second) = records.split_at(cut);
            let mut plaintext = read(&mut session, first, usize::MAX);
            plaintext.extend(read(&mut session, second, usize::MAX));
            assert_eq!(plaintext, b"a record");
        }
    }
}

#[test]
fn keys_can_be_updated() {
    let (mut session, mut server) = connected(&[&TLS13]);
    for _ in 0..3 {
        let mut records = server.update_keys();
        records.extend(server.send(b"with new keys"));
        assert_eq!(read(&mut session, &records, 7), b"with new keys");
        // The answer goes before what is written next (RFC 8446, 4.6.3).
        assert!(!session.owes());
        let records = encrypt(&mut session, b"answered");
        assert_eq!(server.take(&records).unwrap(), b"answered");
    }
}

#[test]
fn the_peer_closes() {
    for versions in EACH {
        let (mut session, mut server) = connected(versions);
        let mut records = server.send(b"last");
        records.extend(server.close());
        records.extend(b"what follows is not read");
        assert_eq!(read(&mut session, &records, usize::MAX), b"last");
        assert_eq!(session.reading().err(), Some(&End::Closed));
        server.take(&close(&mut session)).unwrap();
        assert!(server.client_has_closed());
    }
}

#[test]
fn closing_takes_one_alert() {
    for versions in EACH {
        let (mut session, mut server) = connected(versions);
        let mut records = encrypt(&mut session, b"last");
        records.extend(close(&mut session));
        assert_eq!(server.take(&records).unwrap(), b"last");
        assert!(server.client_has_closed());
        assert!(close(&mut session).is_empty());
        assert!(owed(&mut session).is_empty());
    }
}

#[test]
fn a_damaged_record_fails_after_those_before_it() {
    for versions in EACH {
        let (mut session, mut server) = connected(versions);
        let mut records = server.send(b"good");
        let damaged = records.len();
        records.extend(server.send(b"damaged"));
        records[damaged + 12] ^= 1;
        assert_eq!(read(&mut session, &records, usize::MAX), b"good");
        let Err(End::Failed(failure)) = session.reading() else {
            panic!("it has not failed");
        };
        assert_eq!(failure.reason, "bad_record_mac");
        // The server gets the alert.
        assert!(session.owes());
        assert!(!session.owes());
        let error = server.take(&owed(&mut session)).unwrap_err();
        assert_eq!(Failure::from(error).reason, "bad_record_mac");
    }
}

fn refusal(settings: &Settings, issued: &Issued, name: &'static str) -> &'static str {
    let mut reasons = EACH.map(|versions| {
        let mut server = Server::new(issued, versions);
        let handshake = handshake(settings, name);
        let failed = shake_hands_and_tell(handshake, &mut server, usize::MAX).err();
        let (failure, told) = failed.unwrap();
        assert!(told);
        failure.reason
    });
    reasons.sort();
    assert_eq!(reasons[0], reasons[1]);
    reasons[0]
}

#[test]
fn a_server_is_verified() {
    let authority = Authority::new();
    let issued = authority.issue(|_| ());
    let trusting = settings(&authority);
    assert_eq!(
        refusal(&settings(&Authority::new()), &issued, NAME),
        "unknown_ca"
    );
    let namesake = settings(&authority.namesake());
    assert_eq!(refusal(&namesake, &issued, NAME), "unknown_ca");
    assert_eq!(
        refusal(&trusting, &issued, "other.example"),
        "hostname_check_failed"
    );
    assert_eq!(
        refusal(&trusting, &issued, "127.0.0.1"),
        "hostname_check_failed"
    );
    let expired = authority.issue(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    assert_eq!(refusal(&trusting, &expired, NAME), "certificate_expired");
    let future = authority.issue(|params| params.not_before = rcgen::date_time_ymd(2999, 1, 1));
    assert_eq!(refusal(&trusting, &future, NAME), "certificate_expired");
}

#[test]
fn less_can_be_verified() {
    let authority = Authority::new();
    let issued = authority.issue(|_| ());
    let accepts = |trust, is_named, name| {
        let settings = Settings {
            trust,
            is_named,
            ..settings(&authority)
        };
        EACH.iter().all(|versions| {
            let mut server = Server::new(&issued, versions);
            shake_hands(handshake(&settings, name), &mut server, usize::MAX).is_ok()
        })
    };
    assert!(accepts(Trust::Anyone, true, "other.example"));
    let authorities = Trust::Authorities(vec![authority.certificate.clone()]);
    assert!(!accepts(authorities.clone(), true, "other.example"));
    assert!(accepts(authorities, false, "other.example"));
    let others = Trust::Authorities(vec![Authority::new().certificate]);
    assert!(!accepts(others, false, NAME));
}

#[test]
fn no_version_or_cipher_in_common() {
    let authority = Authority::new();
    let issued = authority.issue(|_| ());
    let only = |versions| Settings {
        versions,
        ..settings(&authority)
    };
    let mut server = Server::new(&issued, &[&TLS12]);
    let handshake = handshake(&only(vec![Version::Tls13]), NAME);
    let failure = shake_hands(handshake, &mut server, usize::MAX).err();
    // The server fails first, and has told the client.
    assert_eq!(failure.unwrap().reason, "protocol_version");
}

#[test]
fn a_client_certificate() {
    let authority = Authority::new();
    let issued = authority.issue(|_| ());
    let client = authority.issue(|_| ());
    let stranger = Authority::new().issue(|_| ());
    let with = |issued: &Issued| Settings {
        identity: Some(Identity {
            chain: vec![issued.certificate.clone()],
            key: Key::Pkcs8(issued.key.clone()),
        }),
        ..settings(&authority)
    };
    for versions in EACH {
        let outcome = |settings: &Settings| {
            let mut server = Server::with_client_authority(&issued, versions, &authority);
            let handshake = handshake(settings, NAME);
            let mut session = match shake_hands(handshake, &mut server, usize::MAX) {
                Ok(session) => session,
                Err(failure) => return failure.reason,
            };
            // In TLS 1.3 the alert comes after the client's handshake.
            let records = server.records();
            read(&mut session, &records, usize::MAX);
            match session.reading() {
                Err(End::Failed(failure)) => failure.reason,
                _ => "accepted",
            }
        };
        let missing = outcome(&settings(&authority));
        assert!(["certificate_required", "handshake_failure"].contains(&missing));
        assert_eq!(outcome(&with(&client)), "accepted");
        assert_eq!(outcome(&with(&stranger)), "unknown_ca");
    }
}

#[test]
fn a_peer_that_does_not_speak_tls() {
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"ERROR\nmessage:hello\n\n\0",
    ] {
        let handshake = handshake(&settings(&Authority::new()), NAME);
        let (_records, Progress::Continue(handshake)) = handshake.advance(&[]) else {
            panic!("it has not begun");
        };
        let (_records, Progress::Failed(failure)) = handshake.advance(answer) else {
            panic!("it has not failed");
        };
        assert_eq!(failure.reason, "unexpected_message");
    }
}

#[test]
fn data_that_comes_with_the_end_of_the_handshake_is_kept() {
    let authority = Authority::new();
    let mut server = Server::new(&authority.issue(|_| ()), &[&TLS13]);
    let handshake = handshake(&settings(&authority), NAME);
    let (Progress::Continue(handshake), _) = advance(handshake, &mut server, &[]) else {
        panic!("it has not begun");
    };
    // A server may send before it has the client's last message.
    let mut records = server.records();
    records.extend(server.send(b"early"));
    let (Progress::Established(mut session), _) = advance(handshake, &mut server, &records) else {
        panic!("it has not ended");
    };
    let records = server.send(b", later");
    assert_eq!(read(&mut session, &records, usize::MAX), b"early, later");
}

#[test]
fn it_can_be_written_while_a_handshake_message_is_incomplete() {
    let authority = Authority::new();
    let mut server = Server::with_records_of(64, &authority.issue(|_| ()));
    let handshake = handshake(&settings(&authority), NAME);
    let mut session = shake_hands(handshake, &mut server, usize::MAX).unwrap();
    // The server's tickets for later sessions, in several records each.
    let records = server.records();
    let (mut plaintext, mut written) = (Vec::new(), 0);
    for piece in records.chunks(40) {
        plaintext.extend(read(&mut session, piece, usize::MAX));
        let data = encrypt(&mut session, b"data");
        assert_eq!(server.take(&data).unwrap(), b"data");
        written += 1;
    }
    assert!(written > 3);
    plaintext.extend(read(&mut session, &server.send(b"end"), usize::MAX));
    assert_eq!(plaintext, b"end");
}

#[test]
fn it_can_be_read_by_length() {
    let (mut session, mut server) = connected(&[&TLS13]);
    let records = server.send(b"0123456789");
    assert_eq!(session.read(&records[..10], 0), Ok(None));
    assert_eq!(session.read(&records[10..], 4), Ok(Some(b"0123".to_vec())));
    assert_eq!(session.read(b"", 7), Ok(None));
    assert_eq!(session.read(b"", 2), Ok(Some(b"45".to_vec())));
    let records = server.send(b"abc");
    assert_eq!(session.read(&records, 0), Ok(Some(b"6789abc".to_vec())));
    assert_eq!(session.read(&server.close(), 0), Err(&End::Closed));
}
