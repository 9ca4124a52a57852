//! What is around the compressed data of a gzip member (RFC 1952).

/// Its first bytes: two that name the format, and the only method.
pub const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// The bytes of the trailer: a check sum of the data and its length.
pub const TRAILER: usize = 8;

/// Up to the first optional field.
const FIXED: usize = 10;

const HEADER_CHECKSUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// A longer header is none. Those of real messages have some dozen bytes.
const LONGEST: usize = 64 * 1024;

/// Where the compressed data begins. `None` if this is no header.
pub fn header(member: &[u8]) -> Option<usize> {
    let member = &member[..member.len().min(LONGEST)];
    if !member.starts_with(&MAGIC) {
        return None;
    }
    let flags = *member.get(3)?;
    if flags & RESERVED != 0 {
        return None;
    }
    let mut at = FIXED;
    if flags & EXTRA != 0 {
        let length = member.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            at += member.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
        }
    }
    if flags & HEADER_CHECKSUM != 0 {
        let checksum = zlib_rs::crc32::crc32(0, member.get(..at)?) as u16;
        if member.get(at..at + 2)? != checksum.to_le_bytes() {
            return None;
        }
        at += 2;
    }
    (at <= member.len()).then_some(at)
}

/// The check sum of the data and its length modulo 2^32, as the last bytes of a member say.
pub fn trailer(bytes: &[u8]) -> Option<(u32, u32)> {
    let bytes: &[u8; TRAILER] = bytes.try_into().ok()?;
    let [a, b, c, d, e, f, g, h] = *bytes;
    Some((
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [u8; FIXED] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

    fn with(flags: u8, fields: &[u8]) -> Vec<u8> {
        let mut member = PLAIN.to_vec();
        member[3] = flags;
        member.extend_from_slice(fields);
        member
    }

    #[test]
    fn optional_fields_are_skipped() {
        assert_eq!(header(&PLAIN), Some(10));
        assert_eq!(header(&with(EXTRA, &[3, 0, 1, 2, 3])), Some(15));
        assert_eq!(header(&with(NAME, b"a.xml\0")), Some(16));
        assert_eq!(header(&with(NAME | COMMENT, b"a\0for b\0")), Some(18));
        // The flag for text has no field.
        assert_eq!(header(&with(1, b"")), Some(10));
    }

    #[test]
    fn a_check_sum_of_the_header_is_checked() {
        let mut member = with(HEADER_CHECKSUM, b"");
        let checksum = zlib_rs::crc32::crc32(0, &member) as u16;
        member.extend_from_slice(&checksum.to_le_bytes());
        assert_eq!(header(&member), Some(12));
        member[11] ^= 1;
        assert_eq!(header(&member), None);
    }

    #[test]
    fn headers_that_are_cut_or_use_what_is_reserved_are_none() {
        let whole = with(EXTRA | NAME | COMMENT, &[1, 0, 7, b'a', 0, b'b', 0]);
        assert_eq!(header(&whole), Some(whole.len()));
        for length in 0..whole.len() {
            assert_eq!(header(&whole[..length]), None, "{length} bytes");
        }
        let name = [&[b'a'; LONGEST - FIXED - 1][..], b"\0"].concat();
        assert_eq!(header(&with(NAME, &name)), Some(LONGEST));
        assert_eq!(header(&with(NAME, &[b"a", &name[..]].concat())), None);
        assert_eq!(header(&with(1 << 5, b"")), None);
        assert_eq!(header(b"\x1f\x8b\x09\0\0\0\0\0\0\0"), None);
    }
}
