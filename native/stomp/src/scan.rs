//! The searches that decoding consists of. They are here in one place so that the tests can count
//! the octets that were examined: that decoding is linear is proved by counting, not by timing.

/// Where `needle` is first in `octets`.
#[inline]
pub(crate) fn find(needle: u8, octets: &[u8]) -> Option<usize> {
    examined(memchr::memchr(needle, octets), octets)
}

/// Where either octet is first in `octets`.
#[inline]
pub(crate) fn find2(one: u8, other: u8, octets: &[u8]) -> Option<usize> {
    examined(memchr::memchr2(one, other, octets), octets)
}

/// Where any of three octets is first in `octets`.
#[inline]
pub(crate) fn find3(one: u8, two: u8, three: u8, octets: &[u8]) -> Option<usize> {
    examined(memchr::memchr3(one, two, three, octets), octets)
}

/// How many octets `one` and `other` have in common from their start on.
#[inline]
pub(crate) fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    let blocks = common_chunks::<32>(one, other);
    let words = blocks + common_chunks::<8>(&one[blocks..], &other[blocks..]);
    let octets = one[words..].iter().zip(&other[words..]);
    let common = words + octets.take_while(|(one, other)| one == other).count();
    examined(Some(common), one);
    common
}

/// The same in whole chunks, which are compared at once.
#[inline]
fn common_chunks<const N: usize>(one: &[u8], other: &[u8]) -> usize {
    let chunks = one.as_chunks::<N>().0.iter().zip(other.as_chunks::<N>().0);
    N * chunks.take_while(|(one, other)| one == other).count()
}

#[inline]
fn examined(found: Option<usize>, octets: &[u8]) -> Option<usize> {
    #[cfg(test)]
    count::add(found.map_or(octets.len(), |at| at + 1));
    #[cfg(not(test))]
    let _ = octets;
    found
}

#[cfg(test)]
pub(crate) mod count {
    use std::cell::Cell;

    thread_local! {
        static EXAMINED: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn add(octets: usize) {
        EXAMINED.set(EXAMINED.get() + octets);
    }

    /// The octets that were examined on this thread since the last call.
    pub(crate) fn take() -> usize {
        EXAMINED.take()
    }
}
