//! All searches of the decoder. They are in one place so that tests can count the bytes that were
//! examined: the tests show by counting, not by timing, that decoding is linear.

/// The first index of `needle`.
#[inline]
pub(crate) fn find(needle: u8, bytes: &[u8]) -> Option<usize> {
    examined(memchr::memchr(needle, bytes), bytes)
}

/// The first index of either byte.
#[inline]
pub(crate) fn find2(one: u8, other: u8, bytes: &[u8]) -> Option<usize> {
    examined(memchr::memchr2(one, other, bytes), bytes)
}

/// The first index of any of the three bytes.
#[inline]
pub(crate) fn find3(one: u8, two: u8, three: u8, bytes: &[u8]) -> Option<usize> {
    examined(memchr::memchr3(one, two, three, bytes), bytes)
}

/// The length of the common prefix of `one` and `other`.
#[inline]
pub(crate) fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    let blocks = common_chunks::<32>(one, other);
    let words = blocks + common_chunks::<8>(&one[blocks..], &other[blocks..]);
    let bytes = one[words..].iter().zip(&other[words..]);
    let common = words + bytes.take_while(|(one, other)| one == other).count();
    examined(Some(common), one);
    common
}

/// The same in whole chunks of `N` bytes. The bytes of a chunk are compared at once.
#[inline]
fn common_chunks<const N: usize>(one: &[u8], other: &[u8]) -> usize {
    let chunks = one.as_chunks::<N>().0.iter().zip(other.as_chunks::<N>().0);
    N * chunks.take_while(|(one, other)| one == other).count()
}

#[inline]
fn examined(found: Option<usize>, bytes: &[u8]) -> Option<usize> {
    #[cfg(test)]
    count::add(found.map_or(bytes.len(), |at| at + 1));
    #[cfg(not(test))]
    let _ = bytes;
    found
}

#[cfg(test)]
pub(crate) mod count {
    use std::cell::Cell;

    thread_local! {
        static EXAMINED: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn add(bytes: usize) {
        EXAMINED.set(EXAMINED.get() + bytes);
    }

    /// The bytes that were examined on this thread since the last call.
    pub(crate) fn take() -> usize {
        EXAMINED.take()
    }
}
