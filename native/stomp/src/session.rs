//! The receiving side of a connection: which first frame is allowed, which version was negotiated,
//! and when silence becomes a time-out.
//!
//! ```text
//!                     CONNECTED                agree
//!  AwaitingFirst ──────────────► Negotiating ─────────► Connected
//!        │ ERROR                                          │ RECEIPT of the DISCONNECT
//!        └────────► Over (nothing more is read) ◄──────────┘
//! ```

use crate::{BodyBuffer, Command, Decoder, Dialect, Frame, ParseError, Rule};
use bytes::BytesMut;
use std::time::Duration;

/// 2 s for the schedulers on both sides, and for ActiveMQ: its first heart-beat comes up to twice the
/// interval after CONNECTED.
pub const HEARTBEAT_SLACK: Duration = Duration::from_secs(2);

/// 5 s from the start until CONNECTED has arrived, as in Barytherium's first release.
pub const DEFAULT_FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// The time-outs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long CONNECTED may take.
    pub first_frame_timeout: Duration,
    /// How late a heart-beat may be after the agreed interval (STOMP 1.2, "Heart-beating", asks for
    /// a margin of error). `None`: as long as the interval itself, and [`HEARTBEAT_SLACK`].
    pub heartbeat_allowance: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            first_frame_timeout: DEFAULT_FIRST_FRAME_TIMEOUT,
            heartbeat_allowance: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitingFirst,
    Negotiating,
    Connected,
    Over,
}

/// What a session has received.
#[derive(Debug)]
pub enum Event<'a, B> {
    /// The CONNECTED frame. There is no time-out until [`Session::agree`] is called.
    Connected(Frame<'a, B>),
    /// An ERROR frame instead of CONNECTED. The session is over: not every broker closes the
    /// connection then, but none accepts another frame.
    Refused(Frame<'a, B>),
    /// The RECEIPT that [`Session::ends_with`] waits for. The server has got everything, and sends
    /// nothing more: the session is over (STOMP 1.2, "DISCONNECT").
    Closed(Frame<'a, B>),
    /// Any other frame.
    Frame(Frame<'a, B>),
}

/// The receiving side of a connection. Each `now` is the time since one fixed moment, which may be
/// any.
///
/// ```
/// use std::time::Duration;
/// use stomp::{Decoder, Event, Options, Session, Timing};
///
/// let decoder: Decoder = Decoder::new(None, Options::default());
/// let mut session = Session::new(decoder, Timing::default(), Duration::ZERO);
/// // CONNECTED has to arrive within this time.
/// assert_eq!(session.deadline(), Some(Duration::from_secs(5)));
///
/// let mut input: &[u8] = b"CONNECTED\nversion:1.2\nheart-beat:1000,0\n\n\0MESSAGE\n\nhello\0";
/// assert!(matches!(session.next(&mut input)?, Some(Event::Connected(_))));
/// // The peer sends at least a byte each second. It may be late by as much, and by two seconds.
/// session.agree(Duration::from_secs(1), Duration::ZERO);
/// assert_eq!(session.deadline(), Some(Duration::from_secs(4)));
/// assert!(matches!(session.next(&mut input)?, Some(Event::Frame(_))));
/// # Ok::<(), stomp::ParseError>(())
/// ```
#[derive(Debug)]
pub struct Session<B = BytesMut> {
    decoder: Decoder<B>,
    timing: Timing,
    stage: Stage,
    /// The dialect that CONNECTED announces. It is set at the next call only, because the CONNECTED frame
    /// borrows the decoder.
    negotiated: Option<Dialect>,
    /// Set when the first frame was neither CONNECTED nor ERROR. The decoder remembers all other
    /// errors.
    failed: Option<ParseError>,
    /// The receipt of the DISCONNECT that ends the session.
    last_receipt: Option<Box<[u8]>>,
    /// The agreed interval; zero for no heart-beats.
    heartbeat: Duration,
    started: Duration,
    last_activity: Duration,
}

impl<B: BodyBuffer> Session<B> {
    /// A session that waits for CONNECTED. `decoder` may already hold a part of it.
    pub fn new(decoder: Decoder<B>, timing: Timing, now: Duration) -> Self {
        Self::at(Stage::AwaitingFirst, decoder, timing, now)
    }

    /// A session that is already connected, with the dialect of `decoder`.
    pub fn connected(decoder: Decoder<B>, timing: Timing, now: Duration) -> Self {
        Self::at(Stage::Connected, decoder, timing, now)
    }

    fn at(stage: Stage, decoder: Decoder<B>, timing: Timing, now: Duration) -> Self {
        Session {
            decoder,
            timing,
            stage,
            negotiated: None,
            failed: None,
            last_receipt: None,
            heartbeat: Duration::ZERO,
            started: now,
            last_activity: now,
        }
    }

    /// The RECEIPT with this `receipt-id` ends the session.
    pub fn ends_with(&mut self, receipt: &[u8]) {
        self.last_receipt = Some(receipt.into());
    }

    /// The decoder, for reading into its buffers.
    pub fn decoder(&mut self) -> &mut Decoder<B> {
        &mut self.decoder
    }

    /// Takes the next frame from `input`, as [`Decoder::next`] does.
    ///
    /// # Errors
    /// Those of [`Decoder::next`], and a first frame other than CONNECTED or ERROR (STOMP 1.2,
    /// "Connecting"). Like any other error, it is returned again by each later call.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'a, B>>, ParseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.stage == Stage::Over {
            *input = &[];
            return Ok(None);
        }
        if let Some(dialect) = self.negotiated.take() {
            self.decoder.set_dialect(dialect);
        }
        let Some(frame) = self.decoder.next(input)? else {
            return Ok(None);
        };
        if self.stage != Stage::AwaitingFirst {
            if !is_receipt(&frame, self.last_receipt.as_deref()) {
                return Ok(Some(Event::Frame(frame)));
            }
            self.stage = Stage::Over;
            return Ok(Some(Event::Closed(frame)));
        }
        let event = first(frame);
        match &event {
            Ok(Event::Connected(frame)) => {
                self.negotiated = Some(Dialect::of_connected(frame));
                self.stage = Stage::Negotiating;
            }
            Ok(_) => self.stage = Stage::Over,
            Err(error) => self.failed = Some(error.clone()),
        }
        event.map(Some)
    }

    /// Starts the agreed heart-beats: the peer has to send at least one byte every `interval`
    /// (STOMP 1.2, "Heart-beating"). Zero means that it does not have to.
    pub fn agree(&mut self, interval: Duration, now: Duration) {
        self.stage = Stage::Connected;
        self.heartbeat = interval;
        self.last_activity = now;
    }

    /// Restarts the heart-beat's time-out. Call it when bytes have arrived, whatever they are, and
    /// when reading was paused, because silence then says nothing about the peer.
    pub fn touch(&mut self, now: Duration) {
        self.last_activity = now;
    }

    /// Whether the first frame has not been returned yet.
    pub fn awaits_first(&self) -> bool {
        self.stage == Stage::AwaitingFirst
    }

    /// When the session times out; `None` for never.
    pub fn deadline(&self) -> Option<Duration> {
        match self.stage {
            Stage::AwaitingFirst => Some(self.started + self.timing.first_frame_timeout),
            Stage::Over | Stage::Negotiating => None,
            Stage::Connected if self.heartbeat.is_zero() => None,
            Stage::Connected => {
                let default = self.heartbeat + HEARTBEAT_SLACK;
                let allowance = self.timing.heartbeat_allowance.unwrap_or(default);
                Some(self.last_activity + self.heartbeat + allowance)
            }
        }
    }
}

/// Whether the frame is the RECEIPT called `id`. Blanks around the name do not count, because some 1.0
/// servers pad their headers.
fn is_receipt<B>(frame: &Frame<'_, B>, id: Option<&[u8]>) -> bool {
    let receipt_id = || frame.header(b"receipt-id").unwrap_or_default();
    frame.command() == Command::Receipt && id.is_some_and(|id| receipt_id().trim_ascii() == id)
}

/// What the first frame of a connection means.
fn first<B>(frame: Frame<'_, B>) -> Result<Event<'_, B>, ParseError> {
    match frame.command() {
        Command::Connected => Ok(Event::Connected(frame)),
        Command::Error => Ok(Event::Refused(frame)),
        other => {
            let command = other.as_str().as_bytes();
            let rule = Rule::UnexpectedFirstFrame;
            Err(ParseError::new(rule, frame.offset, command))
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
