//! The fifteen commands (STOMP 1.2, "Augmented BNF").

macro_rules! commands {
    ($($variant:ident = $wire:literal),+ $(,)?) => {
        /// A frame's command.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Command {
            $($variant),+
        }

        impl Command {
            /// Every command, in declaration order: `ALL[c as usize] == c`.
            pub const ALL: &'static [Command] = &[$(Command::$variant),+];

            /// The command as it is written on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Command::$variant => $wire),+
                }
            }

            /// The command that `line` (without its EOL) names, if any.
            pub fn parse(line: &[u8]) -> Option<Command> {
                const { assert!(Self::ALL.len() == 15) };
                $(
                    if line == $wire.as_bytes() {
                        return Some(Command::$variant);
                    }
                )+
                None
            }
        }
    };
}

// `parse` tries them in this order. Nearly all frames that a receiver gets are MESSAGE.
commands! {
    Message = "MESSAGE",
    Receipt = "RECEIPT",
    Error = "ERROR",
    Connected = "CONNECTED",
    Connect = "CONNECT",
    Stomp = "STOMP",
    Send = "SEND",
    Subscribe = "SUBSCRIBE",
    Unsubscribe = "UNSUBSCRIBE",
    Begin = "BEGIN",
    Commit = "COMMIT",
    Abort = "ABORT",
    Ack = "ACK",
    Nack = "NACK",
    Disconnect = "DISCONNECT",
}

impl Command {
    /// The length of the longest prefix of `bytes` that a command also begins with. If it is less than
    /// `bytes.len()`, `bytes` cannot become a command, whatever follows.
    pub(crate) fn longest_prefix(bytes: &[u8]) -> usize {
        let common = |command: &Command| {
            let wire = command.as_str().as_bytes();
            wire.iter().zip(bytes).take_while(|(a, b)| a == b).count()
        };
        Self::ALL.iter().map(common).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_parses_to_itself_and_indexes_itself() {
        for (index, &command) in Command::ALL.iter().enumerate() {
            assert_eq!(Command::parse(command.as_str().as_bytes()), Some(command));
            assert_eq!(command as usize, index);
        }
    }

    #[test]
    fn case_and_length_matter() {
        for line in ["message", "MESSAGES", "MESSAG", "", " MESSAGE"] {
            assert_eq!(Command::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn longest_prefix_is_the_part_that_can_begin_a_command() {
        for (line, expected) in [("CONN", 4), ("CONNECTX", 7), ("HTTP/1.1", 0), ("SUBM", 3)] {
            assert_eq!(Command::longest_prefix(line.as_bytes()), expected, "{line}");
        }
    }
}
