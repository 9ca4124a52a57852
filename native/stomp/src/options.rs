//! A receiver's limits, and how strict it is.

/// 64 KiB. The longest header lines of real feeds are selectors and JSON, which take a few KiB. A
/// line that never ends must not use up the memory.
pub const DEFAULT_MAX_HEADER_LINE: usize = 64 * 1024;

/// 1000. Brokers add about ten headers, JMS applications some dozens.
pub const DEFAULT_MAX_HEADERS: usize = 1000;

/// 100 MiB. In their default configurations the common brokers pass no larger message (ActiveMQ:
/// 100 MiB a frame), and it is far less than what would endanger a VM.
pub const DEFAULT_MAX_BODY: u64 = 100 * 1024 * 1024;

/// What to do with an escape that the version does not define, such as `\t`, and with a CR that no LF
/// follows in 1.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UndefinedEscapes {
    /// A fatal error, which is a MUST of the specification (STOMP 1.2, "Value Encoding").
    #[default]
    Refuse,
    /// Keep it as it is. For brokers that do not escape backslashes or CRs, such as ActiveMQ before
    /// 5.16.4.
    Keep,
}

/// Limits and leniency of a [`Decoder`](crate::Decoder). Each limit is inclusive: a value equal
/// to it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest header line in bytes, without its EOL.
    pub max_header_line: usize,
    /// Most header lines in one frame.
    pub max_headers: usize,
    /// Largest body in bytes; `u64::MAX` for no limit.
    pub max_body: u64,
    /// What to do with an undefined escape.
    pub undefined_escapes: UndefinedEscapes,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_header_line: DEFAULT_MAX_HEADER_LINE,
            max_headers: DEFAULT_MAX_HEADERS,
            max_body: DEFAULT_MAX_BODY,
            undefined_escapes: UndefinedEscapes::default(),
        }
    }
}
