//! A header line, and what it has in common with those of earlier frames.

/// What a header line has in common with the line at the same place of an earlier frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// Nothing known.
    Nothing,
    /// The name.
    Name,
    /// All of it.
    Line,
}

/// The numbers of the first frames since which all frames have the same line at this place, and a line
/// with the same name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    pub line: u64,
    pub name: u64,
}

impl Since {
    /// Frame `number` is the first one with this line.
    pub fn new(number: u64) -> Self {
        Since {
            line: number,
            name: number,
        }
    }

    /// What the line has in common with the one in frame `number`, which may be 0 for none.
    pub fn same(self, number: u64) -> Same {
        if self.line <= number {
            Same::Line
        } else if self.name <= number {
            Same::Name
        } else {
            Same::Nothing
        }
    }
}

/// Where a header line lies in the head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub start: usize,
    /// The end, without the EOL.
    pub end: usize,
    /// The start of the line after it.
    pub next: usize,
    /// The first colon, counted from `start`.
    pub colon: usize,
    /// Whether there is anything to unescape.
    pub escaped: bool,
    pub since: Since,
}

impl Line {
    /// The same line, `shift` bytes later in its head.
    pub fn shifted(&self, shift: usize) -> Line {
        Line {
            start: self.start.wrapping_add(shift),
            end: self.end.wrapping_add(shift),
            next: self.next.wrapping_add(shift),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Options, Version};

    fn decoder() -> Decoder {
        Decoder::new(Some(Version::V1_2.into()), Options::default())
    }

    /// The second line of each frame, compared with those of all frames before, and with none.
    #[test]
    fn a_header_is_compared_with_any_earlier_frame() {
        use Same::{Line, Name, Nothing};
        let heads: [&[u8]; 6] = [
            b"MESSAGE\na:0\nb:1\n\n\0",
            b"MESSAGE\na:1\nb:1\n\n\0",
            b"MESSAGE\na:1\nb:22\n\n\0",
            b"MESSAGE\na:1\nb:22\n\n\0",
            b"MESSAGE\na:1\n\n\0",
            b"MESSAGE\na:1\nb:22\n\n\0",
        ];
        let expected: [&[_]; 6] = [
            &[Nothing],
            &[Nothing, Line],
            &[Nothing, Name, Name],
            &[Nothing, Name, Name, Line],
            &[],
            // There was none in the frame before.
            &[Nothing; 6],
        ];
        let mut decoder = decoder();
        for (index, (head, expected)) in heads.iter().zip(expected).enumerate() {
            let mut input = *head;
            let frame = decoder.next(&mut input).unwrap().unwrap();
            assert_eq!(frame.number(), index as u64 + 1);
            if let Some(header) = frame.headers().nth(1) {
                let same: Vec<_> = (0..frame.number()).map(|n| header.same(n)).collect();
                assert_eq!(same, expected, "frame {}", frame.number());
            }
        }
    }

    #[test]
    fn frames_are_counted_on_when_memory_is_released() {
        let mut decoder = decoder();
        let feed = |decoder: &mut Decoder| {
            let mut input: &[u8] = b"MESSAGE\na:0\n\n\0";
            let frame = decoder.next(&mut input).unwrap().unwrap();
            let same = frame.headers().next().unwrap().same(1);
            (frame.number(), same)
        };
        assert_eq!(feed(&mut decoder).0, 1);
        decoder.release_memory();
        assert_eq!(feed(&mut decoder), (2, Same::Nothing));
    }
}
