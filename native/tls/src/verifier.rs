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
            Err(_) if SelfSigned::is(&verified, end_entity) => {
                Err(CertificateError::Other(OtherError(Arc::new(SelfSigned))).into())
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

/// A server's certificate is its own authority, which is not trusted or is marked as an authority.
#[derive(Debug)]
pub struct SelfSigned;

impl SelfSigned {
    fn is(verified: &Result<ServerCertVerified, Error>, certificate: &CertificateDer<'_>) -> bool {
        let Err(Error::InvalidCertificate(error)) = verified else {
            return false;
        };
        let refused = match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => true,
            CertificateError::Other(error) => {
                error.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
            }
            _ => false,
        };
        let signs_itself =
            |certificate: EndEntityCert| certificate.subject() == certificate.issuer();
        refused && EndEntityCert::try_from(certificate).is_ok_and(signs_itself)
    }
}

impl Display for SelfSigned {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("the certificate signs itself")
    }
}

impl std::error::Error for SelfSigned {}
