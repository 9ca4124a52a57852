use super::*;
use crate::{Options, Version};

const START: Duration = Duration::from_secs(1000);
const CONNECTED: &[u8] = b"CONNECTED\nversion:1.1\n\n\0";

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn decoder() -> Decoder {
    Decoder::new(None, Options::default())
}

fn session() -> Session {
    Session::new(decoder(), Timing::default(), START)
}

fn connect(session: &mut Session, heartbeat: Duration) {
    let event = session.next(&mut &CONNECTED[..]).unwrap();
    assert!(matches!(event, Some(Event::Connected(_))));
    session.agree(heartbeat, START);
}

#[test]
fn connected_sets_the_version_of_the_frames_after_it() {
    let mut session = session();
    let bytes = [CONNECTED, b"MESSAGE\nk:a\\nb\r\n\n\0"].concat();
    let mut input = &bytes[..];
    let Some(Event::Connected(frame)) = session.next(&mut input).unwrap() else {
        panic!("no CONNECTED");
    };
    assert_eq!(frame.command(), Command::Connected);
    session.agree(Duration::ZERO, START);
    let Some(Event::Frame(frame)) = session.next(&mut input).unwrap() else {
        panic!("no MESSAGE");
    };
    assert_eq!(frame.header(b"k").unwrap(), &b"a\nb\r"[..]);
}

#[test]
fn after_an_error_as_first_frame_nothing_is_read() {
    let mut session = session();
    let mut input = &b"ERROR\nmessage:no\n\n\0CONNECTED\n\n\0GARBAGE"[..];
    let Some(Event::Refused(frame)) = session.next(&mut input).unwrap() else {
        panic!("not refused");
    };
    assert_eq!(frame.header(b"message").unwrap(), &b"no"[..]);
    assert!(session.next(&mut input).unwrap().is_none());
    assert!(input.is_empty());
    assert_eq!(session.deadline(), None);
}

#[test]
fn after_the_receipt_of_the_disconnect_nothing_is_read() {
    let mut session = session();
    connect(&mut session, Duration::ZERO);
    session.ends_with(b"last");
    let mut input = &b"RECEIPT\nreceipt-id:x\n\n\0RECEIPT\nreceipt-id: last\n\n\0GARBAGE"[..];
    assert!(matches!(
        session.next(&mut input),
        Ok(Some(Event::Frame(_)))
    ));
    assert!(matches!(
        session.next(&mut input),
        Ok(Some(Event::Closed(_)))
    ));
    assert!(session.next(&mut input).unwrap().is_none());
    assert!(input.is_empty());
}

#[test]
fn an_error_without_a_blank_line_has_a_message() {
    let message = |bytes: &[u8]| {
        let mut decoder = decoder();
        assert!(decoder.next(&mut &bytes[..]).unwrap().is_none());
        let message = decoder.unfinished_error()?.to_vec();
        Some(String::from_utf8(message).unwrap())
    };
    let no = Some("no".to_string());
    assert_eq!(message(b"ERROR\nmessage: no\0"), no);
    assert_eq!(message(b"ERROR\ncode:1\nmessage: no\n\0"), no);
    assert_eq!(message(b"ERROR\r\nmessage:no\r\n"), no);
    assert_eq!(message(b"ERROR\nno\0"), no);
    assert_eq!(message(b"ERROR"), None);
    assert_eq!(message(b"MESSAGE\nmessage: no\0"), None);
    assert_eq!(message(b"ERROR\nmessage:no\n\nbody"), None);
}

#[test]
fn any_other_first_frame_is_an_error_at_its_first_byte() {
    for cut in 0..6 {
        let mut session = session();
        let (mut left, mut right) = b"\n\nMESSAGE\n\nhi\0".split_at(cut);
        assert!(session.next(&mut left).unwrap().is_none());
        let error = session.next(&mut right).map(|_| ()).unwrap_err();
        assert_eq!((error.rule, error.offset), (Rule::UnexpectedFirstFrame, 2));
    }
}

#[test]
fn an_unexpected_first_frame_is_an_error_for_good() {
    let mut session = session();
    let mut input = &b"MESSAGE\n\nhi\0CONNECTED\n\n\0"[..];
    let first = session.next(&mut input).map(|_| ()).unwrap_err();
    let again = session.next(&mut input).map(|_| ()).unwrap_err();
    assert_eq!(first, again);
}

#[test]
fn a_session_continues_a_frame_that_its_decoder_has_begun() {
    let mut decoder: Decoder =
        Decoder::new(Some(Version::V1_2.into()), Options::default()).starting_at(100);
    assert!(decoder.next(&mut &b"MESSAGE\n\nhal"[..]).unwrap().is_none());
    let mut session = Session::connected(decoder, Timing::default(), START);
    let Some(Event::Frame(frame)) = session.next(&mut &b"f\0"[..]).unwrap() else {
        panic!("no MESSAGE");
    };
    assert_eq!((frame.body.as_ref(), frame.offset), (&b"half"[..], 100));
}

#[test]
fn connected_has_to_arrive_within_five_seconds_whatever_else_arrives() {
    let mut session = session();
    session.touch(START + ms(4000));
    assert_eq!(session.deadline(), Some(START + ms(5000)));
}

#[test]
fn there_is_no_deadline_while_negotiating_or_without_heartbeats() {
    let mut session = session();
    assert!(session.next(&mut &CONNECTED[..]).unwrap().is_some());
    assert_eq!(session.deadline(), None);
    session.agree(Duration::ZERO, START);
    assert_eq!(session.deadline(), None);
}

#[test]
fn the_deadline_is_twice_the_heartbeat_and_the_slack_after_the_last_byte() {
    let mut session = session();
    connect(&mut session, ms(300));
    assert_eq!(session.deadline(), Some(START + ms(600) + HEARTBEAT_SLACK));
    session.touch(START + ms(500));
    assert_eq!(session.deadline(), Some(START + ms(1100) + HEARTBEAT_SLACK));
}

#[test]
fn the_allowance_is_an_option() {
    let timing = Timing {
        heartbeat_allowance: Some(ms(50)),
        ..Timing::default()
    };
    let mut session: Session = Session::new(decoder(), timing, START);
    connect(&mut session, ms(300));
    assert_eq!(session.deadline(), Some(START + ms(350)));
}
