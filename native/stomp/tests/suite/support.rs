//! Shared by the test suites: reads the conformance cases, and runs bytes through a decoder or a
//! session.

use std::fs;
use std::path::{Path, PathBuf};
use stomp::{Command, Decoder, Event, Frame, Options, ParseError, Session, Timing};
use stomp::{UndefinedEscapes, Version};

/// A frame, copied out of the decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedFrame {
    pub command: Command,
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl OwnedFrame {
    pub fn copy<B: AsRef<[u8]>>(frame: &Frame<'_, B>) -> Self {
        let header = |header: stomp::Header| (header.name().into(), header.value().into());
        OwnedFrame {
            command: frame.command(),
            headers: frame.headers().map(header).collect(),
            body: frame.body.as_ref().into(),
        }
    }
}

/// The frames, and the rule that was broken after them with the offset of the byte that broke it.
pub type Outcome = (Vec<OwnedFrame>, Option<(String, u64)>);

/// The state in which the reading of a case begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A session before its first frame.
    New,
    /// A decoder with a negotiated version.
    Connected(Version),
}

/// Decodes `pieces` and collects the frames and the error.
pub fn run<'a>(
    start: Start,
    options: Options,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Outcome {
    match start {
        Start::Connected(version) => {
            let mut decoder: Decoder = Decoder::new(Some(version.into()), options);
            collect(pieces, |input| {
                let frame = decoder.next(input)?;
                Ok(frame.map(|frame| OwnedFrame::copy(&frame)))
            })
        }
        Start::New => {
            let now = std::time::Duration::ZERO;
            let mut session: Session =
                Session::new(Decoder::new(None, options), Timing::default(), now);
            collect(pieces, |input| {
                let frame = match session.next(input)? {
                    None => return Ok(None),
                    Some(Event::Frame(frame) | Event::Refused(frame) | Event::Closed(frame)) => {
                        return Ok(Some(OwnedFrame::copy(&frame)));
                    }
                    Some(Event::Connected(frame)) => OwnedFrame::copy(&frame),
                };
                session.agree(now, now);
                Ok(Some(frame))
            })
        }
    }
}

fn collect<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut next: impl FnMut(&mut &'a [u8]) -> Result<Option<OwnedFrame>, ParseError>,
) -> Outcome {
    let mut frames = Vec::new();
    for mut piece in pieces {
        loop {
            match next(&mut piece) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some((rule_name(&error), error.offset))),
            }
        }
    }
    (frames, None)
}

/// The rule's name as in Elixir and in the case files: `UnknownCommand` becomes `unknown_command`.
fn rule_name(error: &ParseError) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", error.rule).chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// One case of the conformance suite.
#[derive(Clone, Debug)]
pub struct Case {
    pub section: String,
    pub rule: String,
    pub name: String,
    pub starts: Vec<Start>,
    pub options: Options,
    pub input: Vec<u8>,
    /// The frame to encode, for a case about encoding.
    pub encodes: Option<OwnedFrame>,
    pub frames: Vec<OwnedFrame>,
    pub error: Option<(String, u64)>,
}

pub fn cases_directory() -> PathBuf {
    tests().join("conformance")
}

/// All cases, in the order of the files.
pub fn cases() -> Vec<Case> {
    let entries = fs::read_dir(cases_directory()).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let text: String = files
        .iter()
        .map(|f| fs::read_to_string(f).unwrap())
        .collect();
    parse_cases(&text)
}

fn parse_cases(text: &str) -> Vec<Case> {
    let (mut section, mut rule) = (String::new(), String::new());
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            "#" => section = rest.to_string(),
            "##" => rule = rest.to_string(),
            "###" => cases.push(parse_header(rest, &section, &rule)),
            mark => {
                let case = cases.last_mut().expect("a case before its lines");
                parse_line(case, mark, rest);
            }
        }
    }
    cases
}

fn parse_header(line: &str, section: &str, rule: &str) -> Case {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap().to_string();
    let (mut starts, mut options) = (Vec::new(), Options::default());
    for word in words {
        match word.split_once('=') {
            Some((key, value)) => set_option(&mut options, key, value),
            None if word == "new" => starts.push(Start::New),
            None => starts.push(Start::Connected(Version::parse(word.as_bytes()).unwrap())),
        }
    }
    if starts.is_empty() {
        starts = [Version::V1_0, Version::V1_1, Version::V1_2]
            .map(Start::Connected)
            .into();
    }
    Case {
        section: section.into(),
        rule: rule.into(),
        name,
        starts,
        options,
        input: Vec::new(),
        encodes: None,
        frames: Vec::new(),
        error: None,
    }
}

fn set_option(options: &mut Options, key: &str, value: &str) {
    match (key, value) {
        ("max_body", "infinity") => options.max_body = u64::MAX,
        ("max_body", _) => options.max_body = value.parse().unwrap(),
        ("max_headers", _) => options.max_headers = value.parse().unwrap(),
        ("max_header_line", _) => options.max_header_line = value.parse().unwrap(),
        ("escapes", "lenient") => options.undefined_escapes = UndefinedEscapes::Keep,
        _ => panic!("unknown option {key}={value}"),
    }
}

fn parse_line(case: &mut Case, mark: &str, rest: &str) {
    match mark {
        "<" => case.input.extend(strings(rest).concat()),
        ">" => case.frames.push(parse_frame(rest)),
        "=" => case.encodes = Some(parse_frame(rest)),
        "!" => {
            let (rule, offset) = rest.split_once(' ').unwrap_or((rest, "0"));
            case.error = Some((rule.into(), offset.parse().unwrap()));
        }
        _ => panic!("unknown line in {}: {mark} {rest}", case.name),
    }
}

fn parse_frame(text: &str) -> OwnedFrame {
    let (command, rest) = text.split_once(' ').unwrap();
    let (headers, body) = rest.rsplit_once("| ").unwrap();
    let header = |pair: &[Vec<u8>]| (pair[0].clone(), pair[1].clone());
    OwnedFrame {
        command: Command::parse(command.as_bytes()).unwrap(),
        headers: strings(headers).chunks(2).map(header).collect(),
        body: strings(body).concat(),
    }
}

/// The quoted strings in `text`, as bytes.
fn strings(text: &str) -> Vec<Vec<u8>> {
    let mut strings = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '"' {
            strings.push(string(&mut chars));
        }
    }
    strings
}

fn string(chars: &mut std::str::Chars) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match chars.next().expect("a closing quote") {
            '"' => return bytes,
            '\\' => bytes.push(escaped(chars)),
            c => bytes.extend(c.to_string().bytes()),
        }
    }
}

fn escaped(chars: &mut std::str::Chars) -> u8 {
    match chars.next().unwrap() {
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        '0' => 0,
        'x' => {
            let digits: String = chars.take(2).collect();
            u8::from_str_radix(&digits, 16).unwrap()
        }
        c => c as u8,
    }
}

/// Recordings of what brokers sent: `(name, bytes)`.
pub fn recordings() -> Vec<(String, Vec<u8>)> {
    let directory = tests().join("recordings");
    let mut recordings = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        recordings.push((name, fs::read(path).unwrap()));
    }
    recordings.sort();
    recordings
}

/// Seeds for the fuzzer: each case in each of its versions, and the recordings. The bytes in front of
/// each are the plan that the targets read.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for case in cases() {
        for (index, start) in case.starts.iter().enumerate() {
            let version = match start {
                Start::New | Start::Connected(Version::V1_2) => 2,
                Start::Connected(Version::V1_1) => 1,
                Start::Connected(Version::V1_0) => 0,
            };
            let lenient = case.options.undefined_escapes == UndefinedEscapes::Keep;
            let plan = [version, u8::from(lenient) << 1, 0, 7];
            seeds.push((
                format!("{}-{index}", case.name),
                [&plan, &case.input[..]].concat(),
            ));
        }
    }
    for (name, bytes) in recordings() {
        seeds.push((name, [&[2, 0, 0, 7], &bytes[..]].concat()));
    }
    seeds
}

/// The directory of these files. The fuzzer's crate, which also uses this file, is one directory
/// further down.
fn tests() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = here.join("tests");
    if tests.exists() {
        tests
    } else {
        here.join("../tests")
    }
}
