//! Lists of headers. Feeds repeat most of their header lines from frame to frame. A line that is the
//! same as at its place in the batch's frame before uses that line's term again. So do names, and the
//! ends of lists.

use super::raw::{BinaryBody, MakeTerms, RawTerm, WORD, binary_bytes, emptied};
use rustler::Env;
use stomp::{Frame, Header, Same};

/// An end of a list is shared if at least this many headers at the end are those of the batch's
/// frame before. A cell that is made by itself takes twice as long as one of a whole list. On the other
/// hand a shared cell is memory that the listener's garbage collector need not look at.
const SHARED_END_MIN: usize = 3;

/// Memory for so many headers is kept for the next message. A thread keeps it for all of its batches, and
/// a peer must not be able to grow that for good.
const KEPT_HEADERS: usize = 64;

const CELL: usize = 2 * WORD;
/// A tuple of two.
const PAIR: usize = 3 * WORD;

/// The headers of the batch's frame before.
#[derive(Default)]
pub struct Headers<'e> {
    /// The number of that frame in its stream; 0 if there is none.
    number: u64,
    pairs: Vec<RawTerm<'e>>,
    names: Vec<RawTerm<'e>>,
    /// The list that starts at each header, and behind them the empty one. Empty if the last list
    /// was made as a whole.
    ends: Vec<RawTerm<'e>>,
    bytes: usize,
}

impl<'e> Headers<'e> {
    /// Without the frame before, for another environment.
    pub fn emptied<'f>(self) -> Headers<'f> {
        let kept = |terms| {
            let mut terms = emptied(terms);
            terms.shrink_to(KEPT_HEADERS);
            terms
        };
        Headers {
            number: 0,
            pairs: kept(self.pairs),
            names: kept(self.names),
            ends: kept(self.ends),
            bytes: 0,
        }
    }

    /// Bytes of memory that all lists take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The list of a frame's headers.
    pub fn list(&mut self, env: Env<'e>, frame: &Frame<'_, BinaryBody>) -> RawTerm<'e> {
        let headers = frame.headers();
        let count = headers.len();
        if count != self.pairs.len() {
            self.ends.clear();
        }
        self.pairs.truncate(count);
        self.names.truncate(count);
        let mut new = 0;
        let number = std::mem::replace(&mut self.number, frame.number());
        for (index, header) in headers.enumerate() {
            if self.header(env, index, header, header.same(number)) {
                new = index + 1;
            }
        }
        if count - new < SHARED_END_MIN {
            self.ends.clear();
            self.bytes += count * CELL;
            return env.list(&self.pairs);
        }
        self.linked(env, new)
    }

    /// A list of headers that belong to no frame before or after.
    pub fn own_list(&mut self, env: Env<'e>, headers: &[(Vec<u8>, Vec<u8>)]) -> RawTerm<'e> {
        let pairs: Vec<_> = headers
            .iter()
            .map(|(name, value)| {
                let (name, value) = (self.binary(env, name), self.binary(env, value));
                env.pair(name, value)
            })
            .collect();
        self.bytes += pairs.len() * (PAIR + CELL);
        env.list(&pairs)
    }

    /// A list whose first `new` headers are others than in the list before.
    fn linked(&mut self, env: Env<'e>, new: usize) -> RawTerm<'e> {
        let new = if self.ends.is_empty() {
            let empty = env.list(&[]);
            self.ends.resize(self.pairs.len() + 1, empty);
            self.pairs.len()
        } else {
            new
        };
        self.bytes += new * CELL;
        for index in (0..new).rev() {
            self.ends[index] = env.cell(self.pairs[index], self.ends[index + 1]);
        }
        self.ends[0]
    }

    /// Whether the header differs from that at its place in the batch's frame before. `same` is what they
    /// have in common.
    fn header(&mut self, env: Env<'e>, index: usize, header: Header, same: Same) -> bool {
        let known = index < self.pairs.len();
        let name = match same {
            Same::Line if known => return false,
            Same::Name if known => self.names[index],
            _ => self.binary(env, &header.name()),
        };
        let value = self.binary(env, &header.value());
        let pair = env.pair(name, value);
        self.bytes += PAIR;
        if known {
            (self.names[index], self.pairs[index]) = (name, pair);
        } else {
            self.names.push(name);
            self.pairs.push(pair);
        }
        true
    }

    fn binary(&mut self, env: Env<'e>, bytes: &[u8]) -> RawTerm<'e> {
        self.bytes += binary_bytes(bytes.len());
        env.binary(bytes)
    }
}
