//! The head before the one that is being read. Feeds repeat most of their header lines, and what is the same
//! is not looked at again.
//!
//! ```text
//! before  MESSAGE⏎ subscription:0⏎ message-id:41⏎ ack:41⏎ ⏎
//! now     MESSAGE⏎ subscription:0⏎ message-id:42⏎ ack:42⏎ ⏎
//!         └────────────── 1 ─────────────────┘    └ 2 ┘
//! ```
//!
//! 1. The heads are alike up to the 4. The command and the first header lie before it as a whole, so they are
//!    taken as they were. Of the second header the colon lies before it, so its name is known and was checked.
//!    Its end is searched for.
//! 2. From there on, the heads are compared again. They are alike up to the next 4, so the name of the third
//!    header is known too.
//!
//! Lines are compared by their index. A header that is inserted or left out moves the others to another index, and
//! this head is then read line by line. The next one is compared with it.

use super::{ContentLength, Line};
use crate::Command;
use crate::scan::common_prefix;

/// A larger head is not kept for comparison: a peer must not be able to grow a connection's memory
/// for good.
const KEPT_HEAD_MAX: usize = 4096;

/// The head before.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// Empty if it is not fit for comparison.
    bytes: Vec<u8>,
    pub command: Option<Command>,
    pub crlf: bool,
    pub lines: Vec<Line>,
    pub content_length: ContentLength,
}

impl Before {
    /// Keeps the bytes of the head that was read, if it is not too large.
    pub fn keep(&mut self, head: &[u8]) {
        self.bytes.clear();
        if head.len() <= KEPT_HEAD_MAX {
            self.bytes.extend_from_slice(head);
        }
    }

    /// Is not fit for comparison any more.
    pub fn forget(&mut self) {
        self.bytes.clear();
    }

    /// Up to where this head, from `from` on, is the same as the bytes of `rest`.
    #[inline(always)]
    pub fn alike(&self, from: usize, rest: &[u8]) -> usize {
        let bytes = self.bytes.get(from..).unwrap_or_default();
        from + common_prefix(bytes, rest)
    }

    /// Whether the content-length that counted comes before the header `index`.
    pub fn has_length_before(&self, index: usize) -> bool {
        self.content_length.is_some_and(|(at, _)| at < index)
    }
}
