//! The peer of a benchmark, in a process of its own: `feed MODE FILE [MILLISECONDS]`.
//!
//! It listens on a free loopback port, prints the port, and sends CONNECTED on each connection. Then
//! the mode decides:
//!
//! * `flood`: sends the file again and again, as fast as the client takes it;
//! * `websocket`: the same, and CONNECTED is in a WebSocket frame, as the file's frames have to be;
//! * `acknowledged`: the same as `flood`, and reads what the client sends;
//! * `subscribed`: waits for a SUBSCRIBE, confirms it, and goes on like `acknowledged`, with its id in the
//!   messages;
//! * `echo`: sends the file once for each read that returns bytes;
//! * `paced`: sends the file, which is a MESSAGE, at the interval in milliseconds, and adds the time
//!   of sending as a header;
//! * `sink`: reads, and sends nothing;
//! * `receipts`: confirms each SEND, the time in milliseconds after it has come;
//! * `beat`: sends an EOL at the interval in milliseconds.
//!
//! It exits at the end of its standard input.

use std::io::{Read, Result, Write, stdin};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};
use std::{env, fs, process, thread};

const CONNECTED: &[u8] = b"CONNECTED\nversion:1.2\nheart-beat:1000,0\n\n\0\n";

/// The header of a message of bytes of that length (RFC 6455, 5.2).
const WEBSOCKET_HEADER: [u8; 2] = [0x82, CONNECTED.len() as u8];

/// Enough for a loop over `write`, and small enough for a thousand threads.
const STACK: usize = 64 * 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let (mode, file) = (arguments[1].as_str(), &arguments[2]);
    let payload: Arc<[u8]> = fs::read(file)?.into();
    let beat = arguments
        .get(3)
        .map_or(1000, |beat| beat.parse().expect("milliseconds"));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(|| {
        let _ = stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    let beating = Arc::new(Mutex::new(Vec::new()));
    if mode == "beat" {
        let beating = Arc::clone(&beating);
        thread::spawn(move || beat_all(&beating, Duration::from_millis(beat)));
    }
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        if mode == "websocket" {
            stream.write_all(&WEBSOCKET_HEADER)?;
        }
        stream.write_all(CONNECTED)?;
        let payload = Arc::clone(&payload);
        match mode {
            "flood" | "websocket" => spawn(move || flood(stream, &payload))?,
            "acknowledged" => {
                let acknowledgements = stream.try_clone()?;
                spawn(move || sink(acknowledgements))?;
                spawn(move || flood(stream, &payload))?;
            }
            "subscribed" => spawn(move || subscribed(stream, &payload))?,
            "echo" => spawn(move || echo(stream, &payload))?,
            "sink" => spawn(move || sink(stream))?,
            "receipts" => spawn(move || receipts(stream, Duration::from_millis(beat)))?,
            "paced" => spawn(move || paced(stream, &payload, Duration::from_millis(beat)))?,
            _ => beating.lock().expect("not poisoned").push(stream),
        }
    }
    Ok(())
}

fn spawn(run: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    // The error is dropped: it only says that the client has closed, which ends every thread.
    thread::Builder::new()
        .stack_size(STACK)
        .spawn(|| drop(run()))?;
    Ok(())
}

fn flood(mut stream: TcpStream, payload: &[u8]) -> Result<()> {
    loop {
        stream.write_all(payload)?;
    }
}

fn subscribed(mut stream: TcpStream, payload: &[u8]) -> Result<()> {
    let mut received = String::new();
    let subscribe = loop {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        received.push_str(&String::from_utf8_lossy(&buffer[..length]));
        let found = received
            .split_inclusive('\0')
            .find(|frame| frame.trim_start().starts_with("SUBSCRIBE\n") && frame.ends_with('\0'));
        if let Some(frame) = found {
            break frame.to_owned();
        }
    };
    let header = |name| subscribe.lines().find_map(|line| line.strip_prefix(name));
    let id = header("id:").expect("an id");
    if let Some(receipt) = header("receipt:") {
        write!(stream, "RECEIPT\nreceipt-id:{receipt}\n\n\0\n")?;
    }
    // The bodies are text.
    let payload = String::from_utf8_lossy(payload);
    let payload = payload.replace("\nsubscription:0\n", &format!("\nsubscription:{id}\n"));
    let acknowledgements = stream.try_clone()?;
    spawn(move || sink(acknowledgements))?;
    flood(stream, payload.as_bytes())
}

fn echo(mut stream: TcpStream, payload: &[u8]) -> Result<()> {
    let mut buffer = [0; 64];
    while stream.read(&mut buffer)? > 0 {
        stream.write_all(payload)?;
    }
    Ok(())
}

fn sink(mut stream: TcpStream) -> Result<()> {
    let mut buffer = [0; STACK / 2];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// A broker at the other end of a line that takes so long there and back. The bodies have no NUL.
fn receipts(mut stream: TcpStream, delay: Duration) -> Result<()> {
    let answers = stream.try_clone()?;
    let (sender, answered) = channel();
    spawn(move || answer_late(answers, &answered))?;
    let mut buffer = vec![0; 256 * 1024];
    let mut unfinished = Vec::new();
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        unfinished.extend_from_slice(&buffer[..length]);
        let Some(end) = unfinished.iter().rposition(|&byte| byte == 0) else {
            continue;
        };
        let mut answer = Vec::new();
        for frame in unfinished[..end].split(|&byte| byte == 0) {
            if let Some(id) = receipt(frame) {
                write!(answer, "RECEIPT\nreceipt-id:{id}\n\n\0\n")?;
            }
        }
        unfinished.drain(..=end);
        if sender.send((Instant::now() + delay, answer)).is_err() {
            return Ok(());
        }
    }
}

fn receipt(frame: &[u8]) -> Option<&str> {
    const NAME: &[u8] = b"\nreceipt:";
    let start = frame.windows(NAME.len()).position(|bytes| bytes == NAME)? + NAME.len();
    let length = frame[start..].iter().position(|&byte| byte == b'\n')?;
    str::from_utf8(&frame[start..start + length]).ok()
}

fn answer_late(mut stream: TcpStream, answers: &Receiver<(Instant, Vec<u8>)>) -> Result<()> {
    for (due, answer) in answers {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// The time of sending is in nanoseconds of the system's clock. If one frame is late, the frames after
/// it are still sent at their own times.
fn paced(mut stream: TcpStream, message: &[u8], interval: Duration) -> Result<()> {
    let rest = message.strip_prefix(b"MESSAGE\n").expect("a MESSAGE");
    let mut due = Instant::now();
    loop {
        due += interval;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = UNIX_EPOCH.elapsed().expect("after 1970").as_nanos();
        let mut frame = format!("MESSAGE\nsent:{sent}\n").into_bytes();
        frame.extend_from_slice(rest);
        stream.write_all(&frame)?;
    }
}

fn beat_all(streams: &Mutex<Vec<TcpStream>>, interval: Duration) {
    loop {
        thread::sleep(interval);
        let mut streams = streams.lock().expect("not poisoned");
        streams.retain_mut(|stream| stream.write_all(b"\n").is_ok());
    }
}
