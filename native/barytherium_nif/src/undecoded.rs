//! Bytes that were read and not decoded.

/// What a call has read, and the next one goes on with.
#[derive(Default)]
pub struct Undecoded {
    bytes: Vec<u8>,
    /// How many bytes at the beginning have been decoded after all.
    decoded: usize,
}

impl Undecoded {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.decoded..]
    }

    /// All but the last `count` bytes have been decoded.
    pub fn keep_last(&mut self, count: usize) {
        self.decoded = self.bytes.len() - count;
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl From<Vec<u8>> for Undecoded {
    fn from(bytes: Vec<u8>) -> Self {
        Undecoded { bytes, decoded: 0 }
    }
}
