//! Decoding takes linear time however the input is cut: each byte is examined a fixed number of
//! times, by the searches for the end of a line, for the colon, for special bytes in a header, and
//! for the end of a body. The tests count, so they cannot fail on a slow machine.

use crate::scan::count;
use crate::{Decoder, Options, Version};

/// The most searches that examine one byte of a header: for LF, for the colon and for special bytes.
/// The byte that ends one search may also begin the next.
const SEARCHES: usize = 4;

/// The same if there are escapes: also for CR, for a backslash, and by the check of the escapes.
const SEARCHES_WITH_ESCAPES: usize = 8;

fn examined(input: &[u8], piece: usize) -> usize {
    let mut decoder: Decoder = Decoder::new(Some(Version::V1_2.into()), Options::default());
    count::take();
    for mut piece in input.chunks(piece) {
        while decoder.next(&mut piece).unwrap().is_some() {}
    }
    count::take()
}

fn assert_linear(part: &[u8], times: usize, end: &[u8], searches: usize) {
    let input = [b"MESSAGE\n", &part.repeat(times)[..], end].concat();
    for piece in [1, 2, 3, 7, 64, 1000, 4096, input.len()] {
        let examined = examined(&input, piece);
        assert!(
            examined <= searches * input.len(),
            "{examined} bytes examined of {} in pieces of {piece}",
            input.len()
        );
    }
}

#[test]
fn many_frames() {
    let frame = b"MESSAGE\nsubscription:0\nmessage-id:1\ncontent-length:5\n\nhello\0\n";
    assert_linear(b"a:b\n", 1, b"\n\0", SEARCHES);
    let input = frame.repeat(2000);
    for piece in [1, 2, 60, 61, 62, 63, 4096, input.len()] {
        assert!(examined(&input, piece) <= SEARCHES * input.len());
    }
}

#[test]
fn frames_that_are_almost_equal() {
    // Each line differs from that of the frame before in its last byte or in its first.
    for line in ["name:an almost alike value ", "", "x"] {
        let frame = |n: usize| {
            let lines: String = (0..50).map(|at| format!("h{at}:{line}{n}\n")).collect();
            format!(
                "MESSAGE\n{}content-length:{}\n{lines}\n\0",
                "a:b\n".repeat(n % 3),
                0
            )
        };
        let input: String = (0..100).map(frame).collect();
        for piece in [1, 63, 4096, input.len()] {
            assert!(examined(input.as_bytes(), piece) <= SEARCHES * input.len());
        }
    }
}

#[test]
fn a_long_line() {
    assert_linear(b"x", 60_000, b":1\n\n\0", SEARCHES);
}

#[test]
fn many_lines() {
    assert_linear(b"a:b\n", 1000, b"\n\0", SEARCHES);
}

#[test]
fn many_escapes() {
    assert_linear(b"\\n", 30_000, b":1\n\n\0", SEARCHES_WITH_ESCAPES);
    assert_linear(b"a\\c:\\\\\n", 1000, b"\n\0", SEARCHES_WITH_ESCAPES);
}

#[test]
fn a_long_body_up_to_its_nul() {
    assert_linear(
        b"",
        0,
        &[b"\n", &[b'x'; 200_000][..], b"\0"].concat(),
        SEARCHES,
    );
}

#[test]
fn a_long_body_of_known_length_is_not_examined_at_all() {
    let head = b"MESSAGE\ncontent-length:200000\n\n";
    let input = [&head[..], &[b'x'; 200_000][..], b"\0"].concat();
    for piece in [1, 1000, input.len()] {
        assert!(examined(&input, piece) <= SEARCHES * head.len());
    }
}

#[test]
fn heart_beats_need_no_search() {
    assert_eq!(examined(&[b'\n'; 10_000], 1), 0);
}
