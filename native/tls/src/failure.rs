//! Why a connection failed.

use crate::verifier::SelfSigned;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use std::fmt::{self, Display, Formatter};

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The name of the TLS alert (RFC 8446, 6), as in Erlang's `ssl`; or `hostname_check_failed`, for
    /// which there is no alert, or `options` for a configuration that cannot be used.
    pub reason: &'static str,
    /// For the log. It contains no keys and no data of the connection.
    pub details: String,
}

impl Failure {
    /// An option cannot be used.
    pub(crate) fn options(details: impl Display) -> Failure {
        Failure {
            reason: "options",
            details: details.to_string(),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.details)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let reason = reason(&error);
        let details = match &error {
            // Bytes that are no record.
            Error::InvalidMessage(_) if reason == "unexpected_message" => {
                format!("{error}: the server does not speak TLS on this port")
            }
            Error::InvalidCertificate(CertificateError::Other(error)) => {
                format!("invalid peer certificate: {}", error.0)
            }
            _ => error.to_string(),
        };
        Failure { reason, details }
    }
}

fn reason(error: &Error) -> &'static str {
    match error {
        Error::AlertReceived(alert) => alert_name(*alert),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "hostname_check_failed",
        Error::InvalidCertificate(CertificateError::Other(error)) if error.0.is::<SelfSigned>() => {
            "bad_certificate"
        }
        Error::InvalidCertificate(error) => alert_name(error.clone().into()),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "protocol_version",
        Error::PeerIncompatible(_) => "handshake_failure",
        Error::PeerMisbehaved(_) => "illegal_parameter",
        Error::DecryptError => "bad_record_mac",
        Error::PeerSentOversizedRecord => "record_overflow",
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "unexpected_message"
        }
        Error::InvalidMessage(error) => invalid_message(*error),
        _ => "internal_error",
    }
}

/// Bytes that are no record at all come from a peer that does not speak TLS.
fn invalid_message(error: rustls::InvalidMessage) -> &'static str {
    use rustls::InvalidMessage::{
        InvalidContentType, InvalidEmptyPayload, MessageTooLarge, UnknownProtocolVersion,
    };
    match error {
        InvalidContentType | UnknownProtocolVersion | InvalidEmptyPayload => "unexpected_message",
        MessageTooLarge => "record_overflow",
        _ => "decode_error",
    }
}

fn alert_name(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CloseNotify => "close_notify",
        AlertDescription::UnexpectedMessage => "unexpected_message",
        AlertDescription::BadRecordMac => "bad_record_mac",
        AlertDescription::DecryptionFailed => "decryption_failed",
        AlertDescription::RecordOverflow => "record_overflow",
        AlertDescription::DecompressionFailure => "decompression_failure",
        AlertDescription::HandshakeFailure => "handshake_failure",
        AlertDescription::NoCertificate => "no_certificate",
        AlertDescription::BadCertificate => "bad_certificate",
        AlertDescription::UnsupportedCertificate => "unsupported_certificate",
        AlertDescription::CertificateRevoked => "certificate_revoked",
        AlertDescription::CertificateExpired => "certificate_expired",
        AlertDescription::CertificateUnknown => "certificate_unknown",
        AlertDescription::IllegalParameter => "illegal_parameter",
        AlertDescription::UnknownCA => "unknown_ca",
        AlertDescription::AccessDenied => "access_denied",
        AlertDescription::DecodeError => "decode_error",
        AlertDescription::DecryptError => "decrypt_error",
        AlertDescription::ExportRestriction => "export_restriction",
        AlertDescription::ProtocolVersion => "protocol_version",
        AlertDescription::InsufficientSecurity => "insufficient_security",
        AlertDescription::InternalError => "internal_error",
        AlertDescription::InappropriateFallback => "inappropriate_fallback",
        AlertDescription::UserCanceled => "user_canceled",
        AlertDescription::NoRenegotiation => "no_renegotiation",
        AlertDescription::MissingExtension => "missing_extension",
        AlertDescription::UnsupportedExtension => "unsupported_extension",
        AlertDescription::CertificateUnobtainable => "certificate_unobtainable",
        AlertDescription::UnrecognisedName => "unrecognized_name",
        AlertDescription::BadCertificateStatusResponse => "bad_certificate_status_response",
        AlertDescription::BadCertificateHashValue => "bad_certificate_hash_value",
        AlertDescription::UnknownPSKIdentity => "unknown_psk_identity",
        AlertDescription::CertificateRequired => "certificate_required",
        AlertDescription::NoApplicationProtocol => "no_application_protocol",
        _ => "internal_error",
    }
}
