use super::*;
use crate::{Server, UndefinedEscapes, Version};

type Headers = Vec<(String, String)>;
type Decoded = (Vec<(Command, Headers, Vec<u8>)>, Option<(Rule, u64)>);

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn feed<'a>(mut decoder: Decoder, pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let mut frames = Vec::new();
    for mut piece in pieces {
        loop {
            match decoder.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let headers = frame.headers();
                    let headers = headers.map(|h| (text(&h.name()), text(&h.value())));
                    let body = frame.body.as_ref().to_vec();
                    frames.push((frame.command(), headers.collect(), body));
                }
                Err(error) => return (frames, Some((error.rule, error.offset))),
            }
        }
    }
    (frames, None)
}

fn decoder(version: Version) -> Decoder {
    Decoder::new(Some(version.into()), Options::default())
}

/// Decodes `bytes` whole, byte by byte and cut at every point. All results have to be equal.
fn decode_with(new: impl Fn() -> Decoder, bytes: &[u8]) -> Decoded {
    let whole = feed(new(), [bytes]);
    assert_eq!(feed(new(), bytes.chunks(1)), whole, "byte by byte");
    for cut in 0..=bytes.len() {
        let (left, right) = bytes.split_at(cut);
        assert_eq!(feed(new(), [left, right]), whole, "cut at {cut}");
    }
    whole
}

fn decode(version: Version, bytes: &str) -> Decoded {
    decode_with(|| decoder(version), bytes.as_bytes())
}

fn message(headers: &[(&str, &str)], body: &str) -> (Command, Headers, Vec<u8>) {
    let headers = headers.iter().map(|(n, v)| (n.to_string(), v.to_string()));
    (Command::Message, headers.collect(), body.into())
}

fn assert_frames(bytes: &str, expected: &[(Command, Headers, Vec<u8>)]) {
    assert_eq!(
        decode(Version::V1_2, bytes),
        (expected.to_vec(), None),
        "{bytes:?}"
    );
}

fn assert_fault(bytes: &str, rule: Rule, offset: u64) {
    let (frames, fault) = decode(Version::V1_2, bytes);
    assert_eq!((frames, fault), (vec![], Some((rule, offset))), "{bytes:?}");
}

#[test]
fn every_command_and_an_empty_frame() {
    for &command in Command::ALL {
        let bytes = format!("{}\n\n\0", command.as_str());
        let (frames, fault) = decode(Version::V1_2, &bytes);
        assert_eq!((frames, fault), (vec![(command, vec![], vec![])], None));
    }
}

#[test]
fn eols_and_nuls_between_frames_are_skipped() {
    let hi = message(&[], "hi");
    assert_frames("\n\nMESSAGE\n\nhi\0", std::slice::from_ref(&hi));
    assert_frames("\r\n\n\r\nMESSAGE\n\nhi\0\n\r\n", std::slice::from_ref(&hi));
    assert_frames(
        "\0\0MESSAGE\n\nhi\0\0\n\0MESSAGE\n\nhi\0",
        &[hi.clone(), hi],
    );
}

#[test]
fn a_line_feed_at_the_end_of_a_body_belongs_to_the_body() {
    assert_frames("MESSAGE\n\nhi\n\0", &[message(&[], "hi\n")]);
}

#[test]
fn line_ends_may_be_mixed() {
    assert_frames("MESSAGE\nk:v\n\r\nhi\0", &[message(&[("k", "v")], "hi")]);
    assert_frames("MESSAGE\r\nk:v\r\n\nhi\0", &[message(&[("k", "v")], "hi")]);
}

#[test]
fn a_carriage_return_without_line_feed_is_fatal_in_1_2() {
    assert_fault("\rMESSAGE\n\n\0", Rule::BareCarriageReturn, 0);
    assert_fault("\n\r\rMESSAGE\n\n\0", Rule::BareCarriageReturn, 1);
    assert_fault("MESS\rAGE\n\n\0", Rule::UnknownCommand, 4);
    assert_fault("MESSAGE\r\r\n\n\0", Rule::UnknownCommand, 7);
    assert_fault("MESSAGE\nk:v\rx\n\n\0", Rule::BareCarriageReturn, 11);
    assert_fault("MESSAGE\nk:v\r\r\n\n\0", Rule::BareCarriageReturn, 11);
}

#[test]
fn before_1_2_a_carriage_return_is_data() {
    for version in [Version::V1_0, Version::V1_1] {
        let (frames, fault) = decode(version, "MESSAGE\nk:v\r\nl:\rw\n\nhi\0");
        let expected = message(&[("k", "v\\r"), ("l", "\\rw")], "hi");
        assert_eq!((frames, fault), (vec![expected], None));
    }
}

#[test]
fn a_frame_whose_command_line_ends_in_crlf_has_such_lines_in_every_version() {
    for version in [Version::V1_0, Version::V1_1, Version::V1_2] {
        let bytes = "\r\nMESSAGE\r\nk:v\r\n\r\nhi\0\r\nMESSAGE\r\nk:v\r\n\r\nho\0";
        let (frames, fault) = decode(version, bytes);
        let expected = ["hi", "ho"].map(|body| message(&[("k", "v")], body));
        assert_eq!((frames, fault), (expected.to_vec(), None));
    }
}

#[test]
fn lenient_keeps_a_carriage_return_that_no_line_feed_follows() {
    let options = Options {
        undefined_escapes: UndefinedEscapes::Keep,
        ..Options::default()
    };
    let new = || Decoder::new(Some(Version::V1_2.into()), options);
    let (frames, fault) = decode_with(new, b"MESSAGE\nk:a\rb\r\n\nhi\0");
    assert_eq!(
        (frames, fault),
        (vec![message(&[("k", "a\\rb")], "hi")], None)
    );
}

#[test]
fn rabbitmq_is_unescaped_in_1_0() {
    let dialect = Dialect {
        version: Version::V1_0,
        server: Some(Server::RabbitMq),
    };
    let new = || Decoder::new(Some(dialect), Options::default());
    let (frames, _) = decode_with(new, b"MESSAGE\nk:a\\cb\n\n\0");
    assert_eq!(frames, [message(&[("k", "a:b")], "")]);
}

#[test]
fn escapes_follow_the_version() {
    let value = |version, line: &str| {
        let (frames, fault) = decode(version, &format!("MESSAGE\n{line}\n\n\0"));
        frames
            .first()
            .map(|f| f.1[0].clone())
            .ok_or_else(|| fault.unwrap())
    };
    let pair = |name: &str, value: &str| Ok((name.into(), value.into()));
    assert_eq!(value(Version::V1_2, r"k\c:\\n\r\n"), pair("k:", r"\\n\r\n"));
    assert_eq!(
        value(Version::V1_2, r"k:a\t"),
        Err((Rule::UndefinedEscape, 11))
    );
    assert_eq!(
        value(Version::V1_2, r"k\t:a"),
        Err((Rule::UndefinedEscape, 9))
    );
    assert_eq!(
        value(Version::V1_2, r"k:a\"),
        Err((Rule::UndefinedEscape, 11))
    );
    assert_eq!(value(Version::V1_1, r"k:a\r"), pair("k", r"a\r"));
    assert_eq!(value(Version::V1_0, r"k:C:\new"), pair("k", r"C:\\new"));
}

#[test]
fn connected_is_never_unescaped() {
    let (frames, _) = decode(Version::V1_2, "CONNECTED\nsession:a\\b\n\n\0");
    assert_eq!(frames[0].1, [("session".into(), r"a\\b".into())]);
}

#[test]
fn an_error_before_negotiation_is_never_refused_for_its_escapes() {
    let new = || Decoder::new(None, Options::default());
    let (frames, fault) = decode_with(new, b"ERROR\nmessage:a\\tb\\cc\n\n\0");
    assert_eq!(frames[0].1, [("message".into(), r"a\\tb:c".into())]);
    assert_eq!(fault, None);
}

#[test]
fn undefined_escapes_can_be_kept() {
    let options = Options {
        undefined_escapes: UndefinedEscapes::Keep,
        ..Options::default()
    };
    let new = || Decoder::new(Some(Version::V1_2.into()), options);
    let (frames, fault) = decode_with(new, b"MESSAGE\nk:a\\tb\\\n\n\0");
    assert_eq!(frames[0].1, [("k".into(), r"a\\tb\\".into())]);
    assert_eq!(fault, None);
}

#[test]
fn headers_keep_their_order_repetitions_spaces_and_colons() {
    let bytes = "MESSAGE\nh:a\nh:b\nurl:http://x:1\nk:\n k : v \n\n\0";
    let headers = [
        ("h", "a"),
        ("h", "b"),
        ("url", "http://x:1"),
        ("k", ""),
        (" k ", " v "),
    ];
    assert_frames(bytes, &[message(&headers, "")]);
}

#[test]
fn headers_without_name_or_colon_are_fatal() {
    assert_fault("MESSAGE\n:v\n\n\0", Rule::EmptyHeaderName, 8);
    assert_fault("MESSAGE\nkv\n\n\0", Rule::HeaderWithoutColon, 10);
}

#[test]
fn content_length_counts_bytes_and_only_the_first_one_counts() {
    let body = "MESSAGE\ncontent-length:5\ncontent-length:x\n\na\0b\0c\0";
    let headers = [("content-length", "5"), ("content-length", "x")];
    assert_frames(body, &[message(&headers, "a\0b\0c")]);
    let two_bytes = "MESSAGE\ncontent-length:2\n\né\0";
    assert_frames(two_bytes, &[message(&[("content-length", "2")], "é")]);
}

#[test]
fn content_length_is_honoured_on_every_command() {
    let bytes = "RECEIPT\ncontent-length:1\n\n\0\0CONNECTED\ncontent-length:1\n\nx\0";
    let (frames, fault) = decode(Version::V1_2, bytes);
    assert_eq!(frames.len(), 2);
    assert_eq!(fault, None);
    assert_eq!(
        (&frames[0].2[..], &frames[1].2[..]),
        (&b"\0"[..], &b"x"[..])
    );
}

#[test]
fn a_wrong_content_length_is_fatal() {
    let bytes = "MESSAGE\ncontent-length:9\n\nhi\0MESSAGE\n\nyo\0";
    assert_fault(bytes, Rule::BodyNotTerminated, 35);
    assert_fault(
        "MESSAGE\ncontent-length:0\n\nx\0",
        Rule::BodyNotTerminated,
        26,
    );
    for value in [
        "-1",
        "abc",
        "+5",
        "",
        "18446744073709551616",
        &"9".repeat(30),
    ] {
        let bytes = format!("MESSAGE\ncontent-length:{value}\n\n\0");
        assert_fault(&bytes, Rule::InvalidContentLength, 23);
    }
    let bytes = "MESSAGE\ncontent-length:4294967296\n\n\0";
    assert_fault(bytes, Rule::BodyTooLarge, 23);
}

#[test]
fn bytes_that_cannot_become_a_command_are_refused_at_once() {
    for (bytes, offset) in [
        ("HTTP/1.1 400", 0),
        ("\x15\x03\x03", 0),
        ("MESSAGES", 7),
        ("\nmes", 1),
    ] {
        assert_fault(bytes, Rule::UnknownCommand, offset);
    }
}

#[test]
fn frames_before_an_error_are_returned_and_the_error_repeats() {
    let (frames, fault) = decode(Version::V1_2, "MESSAGE\n\na\0MESSAGE\n\nb\0BAD");
    assert_eq!(frames.len(), 2);
    assert_eq!(fault, Some((Rule::UnknownCommand, 23)));
    let mut decoder = decoder(Version::V1_2);
    let first = decoder.next(&mut &b"HTTP"[..]).map(|_| ()).unwrap_err();
    let again = decoder
        .next(&mut &b"MESSAGE\n\n\0"[..])
        .map(|_| ())
        .unwrap_err();
    assert_eq!(first, again);
}

#[test]
fn limits_count_from_zero_in_each_frame() {
    let options = Options {
        max_headers: 2,
        max_header_line: 18,
        max_body: 3,
        ..Options::default()
    };
    let new = || Decoder::new(Some(Version::V1_2.into()), options);
    let frame = "MESSAGE\ncontent-length:3\nk:v\n\na\0b\0";
    let (frames, fault) = decode_with(new, frame.repeat(3).as_bytes());
    assert_eq!((frames.len(), fault), (3, None));
}

#[test]
fn a_value_at_the_limit_is_accepted_and_one_more_is_refused() {
    let options = Options {
        max_headers: 2,
        max_header_line: 10,
        max_body: 3,
        ..Options::default()
    };
    let new = || Decoder::new(Some(Version::V1_2.into()), options);
    let fault = |bytes: &str| decode_with(new, bytes.as_bytes()).1;
    assert_eq!(fault("MESSAGE\nk:90123456\n\n\0"), None);
    assert_eq!(fault("MESSAGE\nk:90123456\r\n\n\0"), None);
    let too_long = Some((Rule::HeaderLineTooLong, 18));
    assert_eq!(fault("MESSAGE\nk:901234567\n\n\0"), too_long);
    assert_eq!(fault("MESSAGE\nk:901234567"), too_long);
    assert_eq!(fault("MESSAGE\nk:90123456\rx"), too_long);
    assert_eq!(fault("MESSAGE\na:1\nb:2\n\n\0"), None);
    assert_eq!(
        fault("MESSAGE\na:1\nb:2\nc:3\n"),
        Some((Rule::TooManyHeaders, 16))
    );
    assert_eq!(fault("MESSAGE\n\nabc\0"), None);
    assert_eq!(fault("MESSAGE\n\nabcd\0"), Some((Rule::BodyTooLarge, 12)));
    assert_eq!(fault("MESSAGE\n\nabcd"), Some((Rule::BodyTooLarge, 12)));
}

#[test]
fn a_body_may_be_written_into_its_buffer_directly() {
    let mut decoder = decoder(Version::V1_2);
    let mut input = &b"MESSAGE\ncontent-length:5\n\nab"[..];
    assert!(decoder.wanting_body().is_none());
    assert!(decoder.next(&mut input).unwrap().is_none());
    let (buffer, missing) = decoder.wanting_body().unwrap();
    assert_eq!(missing, 3);
    buffer.extend_from_slice(b"cde");
    decoder.filled(3);
    assert!(decoder.wanting_body().is_none());
    let mut input = &b"\0X"[..];
    let frame = decoder.next(&mut input).unwrap().unwrap();
    assert_eq!(frame.body.as_ref(), b"abcde");
    let error = decoder.next(&mut input).map(|_| ()).unwrap_err();
    assert_eq!(error.offset, 32);
}

#[test]
fn memory_is_released_between_frames_only() {
    let mut decoder = decoder(Version::V1_2);
    assert!(decoder.next(&mut &b"MESSAGE\nk:v\n"[..]).unwrap().is_none());
    decoder.release_memory();
    let mut rest = &b"\nhi\0"[..];
    assert_eq!(decoder.next(&mut rest).unwrap().unwrap().headers().len(), 1);
    decoder.release_memory();
    assert_eq!((decoder.carry.capacity(), decoder.head.capacity()), (0, 0));
}
