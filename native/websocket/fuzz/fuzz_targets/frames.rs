//! Any bytes of a server: what is handed on does not depend on how they are cut, and begins with the messages that
//! other code reads in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::Cursor;
use tungstenite::protocol::{Role, WebSocket};
use websocket::{Decoder, End, Reply};

fuzz_target!(|input: &[u8]| {
    let Some((&size, bytes)) = input.split_first() else {
        return;
    };
    let whole = decode(bytes, usize::MAX);
    assert_eq!(whole, decode(bytes, usize::from(size) + 1));
    assert!(whole.0.len() <= bytes.len());
    let messages = messages(bytes);
    assert_eq!(whole.0.get(..messages.len()), Some(&messages[..]));
});

/// The payload, how it ended, and what the server has to be told.
fn decode(bytes: &[u8], size: usize) -> (Vec<u8>, Option<End>, Option<Reply>) {
    let (mut decoder, mut payload) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(size) {
        decoder.decode(piece, |part| payload.extend_from_slice(part));
    }
    (payload, decoder.end().cloned(), decoder.take_reply())
}

/// The data of the messages up to the first that tungstenite refuses.
fn messages(bytes: &[u8]) -> Vec<u8> {
    let server = Cursor::new(bytes.to_vec());
    let mut websocket = WebSocket::from_raw_socket(server, Role::Client, None);
    let mut data = Vec::new();
    while let Ok(message) = websocket.read() {
        if message.is_text() || message.is_binary() {
            data.extend_from_slice(&message.into_data());
        }
    }
    data
}
