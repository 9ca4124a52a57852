//! Bodies from a peer that may mean harm: any bytes, and compressed ones with a damage. What is inflated is what other
//! code makes of it, no more than allowed, and what other code inflates is inflated.
#![no_main]

use flate2::bufread::GzDecoder;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use flate2::{Decompress, FlushDecompress, Status};
use inflate::{Coding, Failure, Inflater, Progress};
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};

const MAX: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let [choice, at, change, rest @ ..] = input else {
        return;
    };
    let said = [None, Some("gzip"), Some("deflate")][usize::from(choice % 3)];
    match choice / 3 % 4 {
        0 => compare(rest, said),
        format => {
            // Some of it repeats, so that there are matches.
            let data = rest.repeat(1 + usize::from(choice / 12));
            let mut body = compress(format, &data);
            let at = usize::from(*at) * body.len() / 256;
            body[at] ^= change;
            compare(&body, said);
        }
    }
});

fn compress(format: u8, data: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match format {
        1 => finish(GzEncoder::new(Vec::new(), level), data, GzEncoder::finish),
        2 => finish(
            ZlibEncoder::new(Vec::new(), level),
            data,
            ZlibEncoder::finish,
        ),
        _ => finish(
            DeflateEncoder::new(Vec::new(), level),
            data,
            DeflateEncoder::finish,
        ),
    }
}

fn finish<E: Write>(
    mut encoder: E,
    data: &[u8],
    finish: impl FnOnce(E) -> std::io::Result<Vec<u8>>,
) -> Vec<u8> {
    encoder.write_all(data).unwrap();
    finish(encoder).unwrap()
}

fn compare(body: &[u8], said: Option<&str>) {
    let Some(coding) = Coding::of(body, || said.map(|said| said.as_bytes().into())) else {
        return;
    };
    let ours = inflate(body, coding);
    let others = others(body, said);
    match (&ours, &others) {
        (Ok(data), Some(other)) => assert!(data == other),
        (Ok(_), None) => panic!("only we can inflate it"),
        (Err(_), None) => {}
        (Err(Failure::TooLarge), Some(other)) => assert!(other.len() > MAX || claims_much(body)),
        // The other code does not check the lengths and the header of gzip as strictly, and no check sum of zlib when it
        // is built for a fuzzer.
        (Err(failure), Some(_)) => assert!(is_gzip(body) || is_zlib(body), "{failure:?}"),
    }
}

fn is_gzip(body: &[u8]) -> bool {
    body.starts_with(&[0x1f, 0x8b])
}

fn is_zlib(body: &[u8]) -> bool {
    body.len() > 1 && body[0] == 0x78 && u16::from_be_bytes([body[0], body[1]]).is_multiple_of(31)
}

fn claims_much(body: &[u8]) -> bool {
    let end = body.last_chunk::<4>().copied().unwrap_or_default();
    u32::from_le_bytes(end) as usize > MAX
}

fn inflate(body: &[u8], coding: Coding) -> Result<Vec<u8>, Failure> {
    thread_local!(static INFLATER: std::cell::RefCell<Inflater> = Default::default());
    INFLATER.with_borrow_mut(|inflater| {
        inflater.start(body, coding, MAX as u64)?;
        let mut data = Vec::new();
        loop {
            let progress = inflater.next(body)?;
            data.extend_from_slice(inflater.piece());
            assert!(data.len() <= MAX);
            if progress == Progress::Done {
                return Ok(data);
            }
        }
    })
}

/// What `flate2` makes of all of the body. A little more than the limit is enough.
fn others(body: &[u8], said: Option<&str>) -> Option<Vec<u8>> {
    if is_gzip(body) || said == Some("gzip") {
        let mut data = Vec::new();
        let mut decoder = GzDecoder::new(body).take(MAX as u64 + 1);
        decoder.read_to_end(&mut data).ok()?;
        let rest = decoder.into_inner().into_inner();
        return (data.len() > MAX || rest.is_empty()).then_some(data);
    }
    let mut data = Vec::with_capacity(MAX + 1);
    let mut decoder = Decompress::new(is_zlib(body));
    let status = decoder.decompress_vec(body, &mut data, FlushDecompress::Finish);
    let is_whole = status.ok()? == Status::StreamEnd && decoder.total_in() == body.len() as u64;
    (data.len() > MAX || is_whole).then_some(data)
}
