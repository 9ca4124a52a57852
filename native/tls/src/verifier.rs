//! Which servers are trusted.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use webpki::EndEntityCert;

/// Decides which servers are trusted. All of them must own the key of their certificate.
#[derive(Debug)]
pub struct Verifier {
    pub provider: Arc<CryptoProvider>,
    /// Verifies the certificate. `None` trusts any: `verify: :verify_none`.
    pub authorities: Option<Arc<WebPkiServerVerifier>>,
    /// Whether the certificate has to be for the name that was connected to. It does not with
    /// `server_name_indication: :disable`.
    pub is_named: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = authorities.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verified {
            // The name is checked last.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.is_named => Ok(ServerCertVerified::assertion()),
            Err(Error::InvalidCertificate(error))
                if signs_itself(end_entity) && is_refused(&error) =>
            {
                let is_authority = is_authority(&error);
                let error = OtherError(Arc::new(SelfSigned { is_authority }));
                Err(CertificateError::Other(error).into())
            }
            // An authority of the same name that has another key is another authority.
            Err(Error::InvalidCertificate(CertificateError::BadSignature)) => {
                Err(CertificateError::UnknownIssuer.into())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// A server's certificate is its own authority, which is not trusted, or which is marked as an authority and so
/// cannot be a server's.
#[derive(Debug)]
pub struct SelfSigned {
    is_authority: bool,
}

fn signs_itself(certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate)
        .is_ok_and(|certificate| certificate.subject() == certificate.issuer())
}

fn is_refused(error: &CertificateError) -> bool {
    let unknown = matches!(
        error,
        CertificateError::UnknownIssuer | CertificateError::BadSignature
    );
    unknown || is_authority(error)
}

fn is_authority(error: &CertificateError) -> bool {
    let CertificateError::Other(error) = error else {
        return false;
    };
    error.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
}

impl Display for SelfSigned {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("the certificate signs itself")?;
        match self.is_authority {
            false => formatter.write_str(", and is not trusted"),
            true => formatter.write_str(
                " and is marked as an authority (CA:TRUE), so it cannot be a server's: make one with \
                 CA:FALSE, or let it sign another one for the server",
            ),
        }
    }
}

impl std::error::Error for SelfSigned {}
