//! A TLS server in memory, for tests and for the fuzzer.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const NAME: &str = "feed.example";

/// An authority that issues certificates.
pub struct Authority {
    name: String,
    pub certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key in PKCS #8, both in DER.
pub struct Issued {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Authority {
        static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        Authority::named(format!("authority {number}"))
    }

    /// Another authority of the same name.
    pub fn namesake(&self) -> Authority {
        Authority::named(self.name.clone())
    }

    fn named(name: String) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Authority {
            name,
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        }
    }
}

/// The server's side of a connection. Both sides are moved by hand.
pub struct Server {
    connection: ServerConnection,
}

impl Server {
    pub fn new(issued: &Issued, versions: &[&'static SupportedProtocolVersion]) -> Server {
        Server::start(issued, versions, None, None)
    }

    /// A server with records of at most `size` bytes, also for messages of the handshake.
    pub fn with_records_of(size: usize, issued: &Issued) -> Server {
        Server::start(issued, rustls::ALL_VERSIONS, None, Some(size))
    }

    /// A server that wants a certificate of `authority`.
    pub fn with_client_authority(
        issued: &Issued,
        versions: &[&'static SupportedProtocolVersion],
        authority: &Authority,
    ) -> Server {
        Server::start(issued, versions, Some(authority), None)
    }

    fn start(
        issued: &Issued,
        versions: &[&'static SupportedProtocolVersion],
        clients: Option<&Authority>,
        record_size: Option<usize>,
    ) -> Server {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate.clone().into()).unwrap();
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from(issued.certificate.clone())];
        let key = PrivateKeyDer::Pkcs8(issued.key.clone().into());
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.max_fragment_size = record_size;
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        connection.set_buffer_limit(None);
        Server { connection }
    }

    /// Takes records of the client. Returns the plaintext in them, or the error that they caused.
    pub fn take(&mut self, mut records: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut plaintext = Vec::new();
        while !records.is_empty() {
            self.connection.read_tls(&mut records).unwrap();
            let state = self.connection.process_new_packets()?;
            let start = plaintext.len();
            plaintext.resize(start + state.plaintext_bytes_to_read(), 0);
            std::io::Read::read_exact(&mut self.connection.reader(), &mut plaintext[start..])
                .unwrap();
        }
        Ok(plaintext)
    }

    /// Whether the client has closed (`close_notify`).
    pub fn client_has_closed(&mut self) -> bool {
        let state = self.connection.process_new_packets().unwrap();
        state.peer_has_closed()
    }

    /// The records that the server has to send.
    pub fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut records).unwrap();
        }
        records
    }

    /// The records of `plaintext`.
    pub fn send(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.connection.writer().write_all(plaintext).unwrap();
        self.records()
    }

    /// The records of a key update that asks for one in return.
    pub fn update_keys(&mut self) -> Vec<u8> {
        self.connection.refresh_traffic_keys().unwrap();
        self.records()
    }

    pub fn close(&mut self) -> Vec<u8> {
        self.connection.send_close_notify();
        self.records()
    }
}
