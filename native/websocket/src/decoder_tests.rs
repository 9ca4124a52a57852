//! What servers send, and what they must not; and the frames of another implementation.

use super::*;
use crate::{NORMAL_CLOSURE, encode_close, encode_message, encode_reply};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Message, Utf8Bytes};

const KEY: [u8; 4] = [0xa5, 0, 0xff, 7];

/// What a server sends, as tungstenite writes it.
fn data(opcode: Data, payload: &[u8], is_final: bool) -> Vec<u8> {
    written(Frame::message(
        payload.to_vec(),
        OpCode::Data(opcode),
        is_final,
    ))
}

fn ping(payload: &[u8]) -> Vec<u8> {
    written(Frame::ping(payload.to_vec()))
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    let reason = Utf8Bytes::from(reason);
    let code = CloseCode::from(code);
    written(Frame::close(Some(CloseFrame { code, reason })))
}

fn written(frame: Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.format(&mut bytes).unwrap();
    bytes
}

/// Decodes pieces of `size` bytes.
fn decode(decoder: &mut Decoder, bytes: &[u8], size: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for piece in bytes.chunks(size) {
        decoder.decode(piece, |part| payload.extend_from_slice(part));
    }
    payload
}

/// How the data of a server ends that sends `bytes`, whichever way they arrive, and what it is told.
fn ending(bytes: &[u8]) -> (Option<End>, Option<Reply>) {
    let mut endings = [1, 3, usize::MAX].map(|size| {
        let mut decoder = Decoder::default();
        decode(&mut decoder, bytes, size);
        (decoder.end().cloned(), decoder.take_reply())
    });
    assert_eq!(endings[0], endings[1]);
    assert_eq!(endings[0], endings[2]);
    std::mem::take(&mut endings[0])
}

fn violation(bytes: &[u8]) -> Violation {
    match ending(bytes) {
        (Some(End::Failed(violation)), Some(Reply::Close(Some(PROTOCOL_ERROR | INVALID_DATA)))) => {
            violation
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn payload_of_any_length_arrives_in_any_pieces() {
    for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
        let body: Vec<u8> = (0..length).map(|at| at as u8).collect();
        for size in [1, 2, 7, 4096, usize::MAX] {
            let mut decoder = Decoder::default();
            for opcode in [Data::Binary, Data::Text] {
                let bytes = data(opcode, &body, true);
                assert_eq!(decode(&mut decoder, &bytes, size), body);
            }
            assert_eq!(decoder.end(), None);
        }
    }
}

#[test]
fn messages_in_several_frames_with_others_between_them() {
    let mut bytes = data(Data::Text, b"MESS", false);
    bytes.extend(ping(b"first"));
    bytes.extend(data(Data::Continue, b"", false));
    bytes.extend(ping(b"second"));
    bytes.extend(written(Frame::pong(b"unasked".to_vec())));
    bytes.extend(data(Data::Continue, b"AGE\n\n\0", true));
    bytes.extend(data(Data::Binary, b"\n\nMESSAGE", true));
    for size in [1, 5, usize::MAX] {
        let mut decoder = Decoder::default();
        let payload = decode(&mut decoder, &bytes, size);
        assert_eq!(payload, b"MESSAGE\n\n\0\n\nMESSAGE");
        assert_eq!(decoder.take_reply(), Some(Reply::Pong(b"second".to_vec())));
        assert_eq!(decoder.take_reply(), None);
    }
}

#[test]
fn frames_are_counted() {
    let mut bytes = data(Data::Text, b"MESS", true);
    bytes.extend(ping(b""));
    bytes.extend(data(Data::Text, b"", true));
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&bytes[..3], |_| ()), 1);
    assert_eq!(decoder.decode(&bytes[3..], |_| ()), 2);
}

#[test]
fn a_server_closes() {
    let closed = |code, reason: &str| {
        let reason = reason.to_owned();
        (
            Some(End::Closed(Close { code, reason })),
            Some(Reply::Close(code)),
        )
    };
    assert_eq!(ending(&close(1000, "")), closed(Some(1000), ""));
    assert_eq!(ending(&close(1001, "späť")), closed(Some(1001), "späť"));
    assert_eq!(ending(&close(4999, "x")), closed(Some(4999), "x"));
    assert_eq!(ending(&[0x88, 0]), closed(None, ""));
    // Nothing is read after it.
    let mut bytes = close(1000, "");
    bytes.extend(data(Data::Text, b"late", true));
    let mut decoder = Decoder::default();
    assert_eq!(decode(&mut decoder, &bytes, usize::MAX), b"");
}

#[test]
fn what_a_server_must_not_send() {
    for bit in [0x40, 0x20, 0x10] {
        assert_eq!(violation(&[0x82 | bit, 0]), Violation::ReservedBit);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(violation(&[0x80 | opcode, 0]), Violation::Opcode(opcode));
    }
    assert_eq!(violation(&[0x82, 0x81, 1, 2, 3, 4, 5]), Violation::Masked);
    assert_eq!(
        violation(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        Violation::Length
    );
    for opcode in [8, 9, 10] {
        assert_eq!(violation(&[opcode, 0]), Violation::Control);
        assert_eq!(violation(&[0x80 | opcode, 126, 0, 126]), Violation::Control);
    }
    assert_eq!(
        violation(&data(Data::Continue, b"x", true)),
        Violation::Continuation
    );
    let twice = [
        data(Data::Text, b"x", false),
        data(Data::Binary, b"y", true),
    ]
    .concat();
    assert_eq!(violation(&twice), Violation::Continuation);
    assert_eq!(violation(&[0x88, 1, 3]), Violation::CloseCode);
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535] {
        let [high, low] = code.to_be_bytes();
        assert_eq!(violation(&[0x88, 2, high, low]), Violation::CloseCode);
    }
    assert_eq!(
        violation(&[0x88, 4, 3, 232, 0xc3, 0x28]),
        Violation::CloseReason
    );
}

#[test]
fn what_came_before_a_violation_is_not_lost() {
    let mut bytes = data(Data::Text, b"MESSAGE\n\n\0", true);
    bytes.extend([0xff, 0xff]);
    let mut decoder = Decoder::default();
    assert_eq!(decode(&mut decoder, &bytes, usize::MAX), b"MESSAGE\n\n\0");
    assert_eq!(decoder.end(), Some(&End::Failed(Violation::Masked)));
}

#[test]
fn it_can_be_read_by_length() {
    let mut decoder = Decoder::default();
    let bytes = data(Data::Binary, b"0123456789", true);
    assert_eq!(decoder.read(&bytes[..1], 0), Ok(None));
    assert_eq!(decoder.read(&bytes[1..], 4), Ok(Some(b"0123".to_vec())));
    assert_eq!(decoder.read(b"", 7), Ok(None));
    assert_eq!(decoder.read(b"", 2), Ok(Some(b"45".to_vec())));
    assert_eq!(decoder.take_unread(), b"6789");
    assert!(decoder.read(&close(1000, ""), 0).is_err());
}

/// A server of tungstenite's that has got `bytes`.
fn server(bytes: Vec<u8>) -> WebSocket<std::io::Cursor<Vec<u8>>> {
    WebSocket::from_raw_socket(std::io::Cursor::new(bytes), Role::Server, None)
}

#[test]
fn what_is_encoded_can_be_read() {
    for length in [0, 1, 7, 8, 9, 125, 126, 65_535, 65_536, 100_003] {
        let body = "ž".repeat(length);
        let mut out = Vec::new();
        encode_message(&[b"SEND\n\n", body.as_bytes(), b"\0"], KEY, &mut out);
        encode_message(&[b"SEND\n\n", &vec![0xff; length], b"\0"], KEY, &mut out);
        encode_reply(&Reply::Pong(b"ping".to_vec()), KEY, &mut out);
        encode_close(Some(NORMAL_CLOSURE), KEY, &mut out);
        let mut server = server(out);
        let text = format!("SEND\n\n{body}\0");
        assert_eq!(server.read().unwrap(), Message::text(text));
        let binary = server.read().unwrap();
        assert!(length == 0 || binary.is_binary());
        assert_eq!(binary.len(), length + 7);
        assert_eq!(server.read().unwrap(), Message::Pong("ping".into()));
        assert!(
            matches!(server.read().unwrap(), Message::Close(Some(close)) if close.code == CloseCode::Normal)
        );
    }
}

#[test]
fn a_reply_to_a_close_frame_has_its_code() {
    let mut out = Vec::new();
    encode_reply(&Reply::Close(None), KEY, &mut out);
    assert_eq!(out, [&[0x88, 0x80], &KEY[..]].concat());
    assert_eq!(server(out).read().unwrap(), Message::Close(None));
}
