//! Frames of a client.

use crate::decoder::Reply;
use crate::header::Opcode;

/// The code of an orderly end (RFC 6455, 7.4.1).
pub const NORMAL_CLOSURE: u16 = 1000;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Appends a message of `parts` in one frame: a text message if each of the parts is UTF-8, because some brokers
/// read no other, and otherwise one of bytes. `key` has to be unpredictable (RFC 6455, 5.3).
pub fn encode_message(parts: &[&[u8]], key: [u8; 4], out: &mut Vec<u8>) {
    let is_text = parts.iter().all(|part| str::from_utf8(part).is_ok());
    let opcode = if is_text {
        Opcode::Text
    } else {
        Opcode::Binary
    };
    encode(opcode, parts, key, out);
}

/// Appends the frame that answers the peer.
pub fn encode_reply(reply: &Reply, key: [u8; 4], out: &mut Vec<u8>) {
    match reply {
        Reply::Pong(payload) => encode(Opcode::Pong, &[payload], key, out),
        Reply::Close(code) => encode_close(*code, key, out),
    }
}

/// Appends a close frame.
pub fn encode_close(code: Option<u16>, key: [u8; 4], out: &mut Vec<u8>) {
    let code = code.map(u16::to_be_bytes);
    let payload = code.as_ref().map_or(&[][..], |code| code);
    encode(Opcode::Close, &[payload], key, out);
}

fn encode(opcode: Opcode, parts: &[&[u8]], key: [u8; 4], out: &mut Vec<u8>) {
    let length = parts.iter().map(|part| part.len()).sum();
    out.reserve(length + 14);
    out.push(FINAL | opcode as u8);
    push_length(length, out);
    out.extend_from_slice(&key);
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    mask(key, &mut out[start..]);
}

fn push_length(length: usize, out: &mut Vec<u8>) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ 0..126), _) => out.push(MASKED | length),
        (_, Ok(length)) => {
            out.push(MASKED | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Masks `payload` (RFC 6455, 5.3), eight bytes at once.
fn mask(key: [u8; 4], payload: &mut [u8]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}
