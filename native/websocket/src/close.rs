//! Why a peer closes (RFC 6455, 7.4).

use crate::header::Violation;

/// What the close frame of a peer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Close {
    /// `None` if the frame is empty.
    pub code: Option<u16>,
    /// A text for the log.
    pub reason: String,
}

impl Close {
    pub(crate) fn of(payload: &[u8]) -> Result<Close, Violation> {
        let Some((code, reason)) = payload.split_at_checked(2) else {
            return match payload {
                [] => Ok(Close::default()),
                _ => Err(Violation::CloseCode),
            };
        };
        let code = u16::from_be_bytes([code[0], code[1]]);
        if !is_for_the_wire(code) {
            return Err(Violation::CloseCode);
        }
        let reason = str::from_utf8(reason).map_err(|_| Violation::CloseReason)?;
        Ok(Close {
            code: Some(code),
            reason: reason.to_owned(),
        })
    }
}

/// Whether a frame may have this code: those that are defined, but not those that stand for the absence of one;
/// those of libraries, and private ones. The registry has grown to 1014 since the RFC.
fn is_for_the_wire(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
