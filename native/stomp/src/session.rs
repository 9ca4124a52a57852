//! The receiving side of a connection: what the first frame must be, which version was
//! negotiated, and when silence means death.
//!
//! ```text
//!                     CONNECTED                agree
//!  AwaitingFirst ──────────────► Negotiating ─────────► Connected
//!        │ ERROR
//!        └────────► Refused (nothing more is read)
//! ```

use crate::{BodyBuffer, Command, Decoder, Frame, ParseError, Rule, Version};
use bytes::BytesMut;
use std::time::Duration;

/// 5 s from the start until CONNECTED has arrived: Barytherium's figure from its first release.
pub const DEFAULT_FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// How long silence may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long CONNECTED may take.
    pub first_frame_timeout: Duration,
    /// How late a heart-beat may be, beyond the agreed interval (STOMP 1.2, "Heart-beating", asks
    /// for a margin of error). `None`: as long again as the interval itself.
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
    Refused,
    Negotiating,
    Connected,
}

/// What has happened on the connection.
#[derive(Debug)]
pub enum Event<'a, B> {
    /// The CONNECTED frame. The session waits for [`Session::agree`] now: no silence counts.
    Connected(Frame<'a, B>),
    /// An ERROR frame instead of CONNECTED. Not every broker closes after it, and none takes
    /// anything more, so the session is over.
    Refused(Frame<'a, B>),
    /// Any other frame.
    Frame(Frame<'a, B>),
}

/// A connection's receiving side. Instants are durations since any fixed moment.
#[derive(Debug)]
pub struct Session<B = BytesMut> {
    decoder: Decoder<B>,
    timing: Timing,
    stage: Stage,
    /// What CONNECTED said, until the frame that borrows the decoder is gone.
    negotiated: Option<Version>,
    /// The first frame was neither CONNECTED nor ERROR. The decoder remembers all other errors.
    failed: Option<ParseError>,
    /// The agreed interval; zero for none.
    heartbeat: Duration,
    started: Duration,
    last_activity: Duration,
}

impl<B: BodyBuffer> Session<B> {
    /// A session that awaits CONNECTED. `decoder` may have got part of it.
    pub fn new(decoder: Decoder<B>, timing: Timing, now: Duration) -> Self {
        Self::at(Stage::AwaitingFirst, decoder, timing, now)
    }

    /// A session that was connected before, with the version that `decoder` follows.
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
            heartbeat: Duration::ZERO,
            started: now,
            last_activity: now,
        }
    }

    /// The decoder, for reading into its buffers.
    pub fn decoder(&mut self) -> &mut Decoder<B> {
        &mut self.decoder
    }

    /// Takes the next frame from `input`, as [`Decoder::next`] does.
    ///
    /// # Errors
    /// As [`Decoder::next`]; and a first frame other than CONNECTED or ERROR (STOMP 1.2,
    /// "Connecting"), which is repeated as any other error.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'a, B>>, ParseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.stage == Stage::Refused {
            *input = &[];
            return Ok(None);
        }
        if let Some(version) = self.negotiated.take() {
            self.decoder.set_version(version);
        }
        let Some(frame) = self.decoder.next(input)? else {
            return Ok(None);
        };
        if self.stage != Stage::AwaitingFirst {
            return Ok(Some(Event::Frame(frame)));
        }
        match frame.command() {
            Command::Connected => {
                let version = frame.header(b"version");
                self.negotiated = Some(Version::of_connected(version.as_deref()));
                self.stage = Stage::Negotiating;
                Ok(Some(Event::Connected(frame)))
            }
            Command::Error => {
                self.stage = Stage::Refused;
                Ok(Some(Event::Refused(frame)))
            }
            other => {
                let (offset, command) = (frame.offset, other.as_str().as_bytes());
                let error = ParseError::new(Rule::UnexpectedFirstFrame, offset, command);
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Starts the heart-beats that were agreed on: the peer promised a byte every `interval`
    /// (STOMP 1.2, "Heart-beating"); zero for no promise.
    pub fn agree(&mut self, interval: Duration, now: Duration) {
        self.stage = Stage::Connected;
        self.heartbeat = interval;
        self.last_activity = now;
    }

    /// Bytes arrived, any bytes; or we were not reading, so silence was nobody's fault.
    pub fn touch(&mut self, now: Duration) {
        self.last_activity = now;
    }

    /// Whether nothing but EOLs has come yet.
    pub fn awaits_first(&self) -> bool {
        self.stage == Stage::AwaitingFirst
    }

    /// When silence becomes a time-out; `None` for never.
    pub fn deadline(&self) -> Option<Duration> {
        match self.stage {
            Stage::AwaitingFirst => Some(self.started + self.timing.first_frame_timeout),
            Stage::Refused | Stage::Negotiating => None,
            Stage::Connected if self.heartbeat.is_zero() => None,
            Stage::Connected => {
                let allowance = self.timing.heartbeat_allowance.unwrap_or(self.heartbeat);
                Some(self.last_activity + self.heartbeat + allowance)
            }
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
