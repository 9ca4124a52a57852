//! What comes out of bodies, and what is said of those that are not what they should be.

use super::*;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use std::io::Write;

const NO_LIMIT: u64 = u64::MAX;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Text that does not compress too well.
fn text(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (state >> 28) as u8
    };
    std::iter::repeat_with(letter).take(length).collect()
}

fn inflate_with(
    inflater: &mut Inflater,
    body: &[u8],
    said: Option<&str>,
    max: u64,
) -> Result<Vec<u8>, Failure> {
    let coding = Coding::of(body, || said.map(|value| value.as_bytes().into()))
        .expect("it looks compressed");
    inflater.start(body, coding, max)?;
    let mut data = Vec::new();
    loop {
        let progress = inflater.next(body)?;
        assert!(inflater.piece().len() <= PIECE);
        data.extend_from_slice(inflater.piece());
        if progress == Progress::Done {
            return Ok(data);
        }
    }
}

fn inflate(body: &[u8]) -> Result<Vec<u8>, Failure> {
    inflate_with(&mut Inflater::new(), body, None, NO_LIMIT)
}

#[test]
fn what_was_compressed_comes_out() {
    let mut inflater = Inflater::new();
    for length in [
        0,
        1,
        100,
        3_000,
        PIECE - 1,
        PIECE,
        PIECE + 1,
        3 * PIECE,
        1_000_000,
    ] {
        let data = text(length);
        for (body, said) in [
            (gzip(&data), None),
            (zlib(&data), None),
            (zlib(&data), Some("deflate")),
            (deflate(&data), Some("deflate")),
        ] {
            // One inflater for all: nothing of a body is left for the next.
            let inflated = inflate_with(&mut inflater, &body, said, length as u64);
            assert!(inflated == Ok(data.clone()), "{length} bytes, {said:?}");
        }
    }
}

#[test]
fn the_length_that_gzip_claims_is_a_hint() {
    let mut inflater = Inflater::new();
    let hint = |inflater: &mut Inflater, body: &[u8]| {
        let coding = Coding::of(body, || None).unwrap();
        inflater.start(body, coding, NO_LIMIT).unwrap();
        inflater.size_hint(body)
    };
    let mut body = gzip(&text(1_000));
    assert_eq!(hint(&mut inflater, &body), 1_000);
    assert_eq!(hint(&mut inflater, &zlib(&text(1_000))), 0);
    let end = body.len() - 4;
    body[end..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(hint(&mut inflater, &body), 0);
    assert_eq!(inflate(&body), Err(Failure::Damaged));
}

#[test]
fn no_more_comes_out_than_allowed() {
    for data in [text(300_000), vec![0; 300_000]] {
        for (body, said) in [
            (gzip(&data), None),
            (zlib(&data), None),
            (deflate(&data), Some("deflate")),
        ] {
            let with = |max| inflate_with(&mut Inflater::new(), &body, said, max);
            assert_eq!(with(299_999), Err(Failure::TooLarge));
            assert_eq!(with(0), Err(Failure::TooLarge));
            assert!(with(300_000).is_ok());
        }
    }
    assert_eq!(
        inflate_with(&mut Inflater::new(), &gzip(b""), None, 0),
        Ok(vec![])
    );
}

#[test]
fn a_bomb_that_hides_its_size_is_given_up_at_the_limit() {
    let mut body = gzip(&vec![0; 10_000_000]);
    let end = body.len() - 4;
    body[end..].copy_from_slice(&1_000_u32.to_le_bytes());
    let coding = Coding::of(&body, || None).unwrap();
    let mut inflater = Inflater::new();
    inflater.start(&body, coding, 1_000_000).unwrap();
    let mut pieces = 0;
    let failure = loop {
        match inflater.next(&body) {
            Ok(progress) => assert_eq!(progress, Progress::More),
            Err(failure) => break failure,
        }
        pieces += 1;
    };
    assert_eq!(failure, Failure::TooLarge);
    assert!(
        pieces <= 1_000_000 / PIECE + body.len() / INPUT,
        "{pieces} pieces"
    );
}

#[test]
fn no_more_is_read_at_once_than_allowed() {
    // Blocks of text that is not compressed, with nothing in them, and at the end a last one.
    let mut body = [0, 0, 0, 0xff, 0xff].repeat(100_000);
    body.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    let coding = Coding::of(&body, || Some(b"deflate".into())).unwrap();
    let mut inflater = Inflater::new();
    inflater.start(&body, coding, NO_LIMIT).unwrap();
    let mut pieces = 1;
    while inflater.next(&body).unwrap() == Progress::More {
        assert!(inflater.piece().is_empty());
        pieces += 1;
    }
    assert_eq!(pieces, body.len().div_ceil(INPUT));
}

#[test]
fn every_cut_and_every_changed_byte_is_noticed() {
    let data = text(200);
    for body in [gzip(&data), zlib(&data)] {
        // The check sum of zlib is its last four bytes, that of gzip stands before four bytes of its length.
        for end in 1..=4 {
            let mut changed = body.clone();
            let at = body.len() - end;
            changed[at] ^= 1;
            assert!(inflate(&changed).is_err(), "byte {at}");
        }
        for length in 3..body.len() {
            let cut = inflate(&body[..length]);
            assert!(
                matches!(cut, Err(Failure::Damaged | Failure::NotCompressed)),
                "{length} bytes"
            );
        }
        // Time, level and system in the header of gzip may be anything, and so may the bits behind the data in its
        // last byte.
        for at in (0..body.len()).filter(|at| !(3..10).contains(at)) {
            let mut changed = body.clone();
            changed[at] ^= 0x10;
            if Coding::of(&changed, || None).is_some() {
                let inflated = inflate(&changed);
                assert!(
                    inflated.is_err() || inflated == Ok(data.clone()),
                    "byte {at}"
                );
            }
        }
    }
}

#[test]
fn what_follows_is_told() {
    let (one, other) = (gzip(b"one"), gzip(b"other"));
    assert_eq!(
        inflate(&[&one[..], &other].concat()),
        Err(Failure::SeveralMembers)
    );
    assert_eq!(
        inflate(&[&one[..], &one].concat()),
        Err(Failure::SeveralMembers)
    );
    // The same end again.
    let end = &one[one.len() - gzip::TRAILER..];
    for junk in [&b"\0"[..], b"junkjunk", end] {
        assert_eq!(
            inflate(&[&one[..], junk].concat()),
            Err(Failure::TrailingBytes)
        );
    }
    let said = Some("deflate");
    for body in [zlib(b"one"), deflate(b"one")] {
        let body = [&body[..], b"junk"].concat();
        let inflated = inflate_with(&mut Inflater::new(), &body, said, NO_LIMIT);
        assert_eq!(inflated, Err(Failure::TrailingBytes));
    }
}

#[test]
fn text_that_begins_as_zlib_does_is_not_compressed() {
    assert_eq!(inflate(b"x^2 + y^2 = z^2"), Err(Failure::NotCompressed));
    // What a header says is believed.
    let said = |body, said| inflate_with(&mut Inflater::new(), body, Some(said), NO_LIMIT);
    assert_eq!(said(b"x^2 + y^2 = z^2", "deflate"), Err(Failure::Damaged));
    assert_eq!(said(b"<xml/>", "gzip"), Err(Failure::Damaged));
    // A dictionary that nobody has.
    assert_eq!(
        said(&[0x78, 0x20, 0, 0, 0, 1, 3, 0], "deflate"),
        Err(Failure::Damaged)
    );
}
