//! Whom to trust and who we are.

use crate::Failure;
use crate::verifier::Verifier;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::sync::{Arc, Mutex, PoisonError};

pub use rustls::pki_types::ServerName;

/// Configurations that are kept for the next connection with the same settings. A node rarely has
/// more than a few. Each of them holds its authorities: 100 KiB for those of a system.
const KEPT: usize = 16;

/// How a connection is to be secured. Certificates and keys are in DER.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which servers are trusted.
    pub trust: Trust,
    /// Whether the server is told the name that was connected to, and has to have a certificate for
    /// it.
    pub is_named: bool,
    /// The client's certificate, if it has one.
    pub identity: Option<Identity>,
    /// The versions of the protocol to offer.
    pub versions: Vec<Version>,
    /// The suites to offer, by their IANA names. `None` stands for all.
    pub ciphers: Option<Vec<String>>,
}

/// Which servers are trusted.
#[derive(Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those with a certificate of one of these authorities.
    Authorities(Vec<Vec<u8>>),
    /// All servers.
    Anyone,
}

/// A certificate with the certificates that lead to its authority, and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The client's certificate first.
    pub chain: Vec<Vec<u8>>,
    /// The key of that certificate.
    pub key: Key,
}

/// A private key.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    /// An RSA key (RFC 8017, PKCS #1).
    Pkcs1(Vec<u8>),
    /// A key of an elliptic curve (RFC 5915).
    Sec1(Vec<u8>),
    /// Either of them (RFC 5958, PKCS #8).
    Pkcs8(Vec<u8>),
}

/// A version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// Whether a connection can use the suite with this IANA name.
pub fn knows_cipher(name: &str) -> bool {
    let provider = aws_lc_rs::default_provider();
    let mut suites = provider.cipher_suites.iter();
    suites.any(|suite| suite.suite().as_str() == Some(name))
}

/// Settings that were checked, with the state that connections share: authorities, and the sessions
/// that later connections may resume.
#[derive(Clone)]
pub struct Config(pub(crate) Arc<ClientConfig>);

impl Config {
    /// The configuration for `settings`. An earlier one is used again if there is one, so that its
    /// authorities are loaded once and its sessions can be resumed.
    ///
    /// # Errors
    /// `options` if a certificate, a key or a list cannot be used.
    pub fn of(settings: Settings) -> Result<Config, Failure> {
        static CACHE: Mutex<Cache> = Mutex::new(Cache(Vec::new()));
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        cache.config(settings)
    }

    fn new(settings: &Settings) -> Result<Config, Failure> {
        let provider = Arc::new(provider(settings.ciphers.as_deref()));
        let versions: Vec<_> = settings.versions.iter().map(version).collect();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| Failure::options(format!("versions, ciphers: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier(settings, &provider)?));
        let mut config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = certified_key(identity, &provider)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
        };
        config.enable_sni = settings.is_named;
        Ok(Config(Arc::new(config)))
    }
}

/// The configurations that were asked for last, the latest one at the end.
struct Cache(Vec<(Settings, Config)>);

impl Cache {
    fn config(&mut self, settings: Settings) -> Result<Config, Failure> {
        let config = match self.0.iter().position(|(kept, _)| *kept == settings) {
            Some(at) => self.0.remove(at).1,
            None => Config::new(&settings)?,
        };
        if self.0.len() == KEPT {
            self.0.remove(0);
        }
        self.0.push((settings, config.clone()));
        Ok(config)
    }
}

fn provider(ciphers: Option<&[String]>) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(ciphers) = ciphers {
        provider.cipher_suites.retain(|suite| {
            let name = suite.suite().as_str();
            ciphers.iter().any(|cipher| Some(cipher.as_str()) == name)
        });
    }
    provider
}

fn version(version: &Version) -> &'static SupportedProtocolVersion {
    match version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    }
}

fn verifier(settings: &Settings, provider: &Arc<CryptoProvider>) -> Result<Verifier, Failure> {
    let authorities = match &settings.trust {
        Trust::Anyone => None,
        Trust::Authorities(authorities) => Some(authorities_verifier(authorities, provider)?),
    };
    Ok(Verifier {
        provider: provider.clone(),
        authorities,
        is_named: settings.is_named,
    })
}

fn authorities_verifier(
    authorities: &[Vec<u8>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Failure> {
    let mut roots = RootCertStore::empty();
    // Some certificates in a system's store are too old for today's rules. They are left out.
    roots.add_parsable_certificates(authorities.iter().cloned().map(CertificateDer::from));
    if roots.is_empty() {
        return Err(Failure {
            reason: "unknown_ca",
            details: "there is no authority to trust".to_owned(),
        });
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Failure::options(format!("cacerts: {error}")))
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, Failure> {
    let chain: Vec<_> = identity
        .chain
        .iter()
        .cloned()
        .map(CertificateDer::from)
        .collect();
    let key = match identity.key.clone() {
        Key::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.into()),
        Key::Sec1(der) => PrivateKeyDer::Sec1(der.into()),
        Key::Pkcs8(der) => PrivateKeyDer::Pkcs8(der.into()),
    };
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| Failure::options(format!("certificate or key: {error}")))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
