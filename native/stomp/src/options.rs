//! What a receiver accepts: limits, and how strict it is.

/// 64 KiB. The longest header lines that real feeds send are selectors and JSON put into a
/// header, a few KiB; a line without end must not grow without end.
pub const DEFAULT_MAX_HEADER_LINE: usize = 64 * 1024;

/// 1000. Brokers add about ten headers and JMS applications some dozens.
pub const DEFAULT_MAX_HEADERS: usize = 1000;

/// 100 MiB. Above any message that the common brokers pass in their own default configuration
/// (ActiveMQ: 100 MiB a frame), and well below what would put a VM in danger.
pub const DEFAULT_MAX_BODY: u64 = 100 * 1024 * 1024;

/// What to do with an escape that the version does not define, such as `\t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UndefinedEscapes {
    /// A fatal error, as the specification's MUST has it ("Value Encoding").
    #[default]
    Refuse,
    /// Kept as they stand. For brokers that write backslashes unescaped.
    Keep,
}

/// Limits and leniency of a [`Decoder`](crate::Decoder). Each limit is inclusive: a value equal
/// to it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest header line in octets, without its EOL.
    pub max_header_line: usize,
    /// Most header lines in one frame.
    pub max_headers: usize,
    /// Largest body in octets; `u64::MAX` for none.
    pub max_body: u64,
    /// What an undefined escape means.
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
