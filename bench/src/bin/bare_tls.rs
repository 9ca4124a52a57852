//! What rustls alone receives: `bare_tls PORT MILLISECONDS`. It connects over TLS, discards what it
//! reads, and prints bytes per second.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, Stream,
};
use std::io::{Read, Result};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port");
    let time = arguments
        .next()
        .and_then(|time| time.parse().ok())
        .expect("milliseconds");
    let time = Duration::from_millis(time);
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a session");
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    let mut buffer = vec![0; 128 * 1024];
    // It gets going.
    let started = Instant::now();
    while started.elapsed() < time / 4 {
        stream.read(&mut buffer)?;
    }
    let (started, mut bytes) = (Instant::now(), 0);
    while started.elapsed() < time {
        bytes += stream.read(&mut buffer)?;
    }
    println!(
        "{}",
        (bytes as f64 / started.elapsed().as_secs_f64()) as u64
    );
    Ok(())
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
