//! The settings of a client that trusts one authority.

use crate::test_server::Authority;
use tls_client::{Config, Settings, Trust, Version};

pub fn config(authority: &Authority) -> Config {
    let settings = Settings {
        trust: Trust::Authorities(vec![authority.certificate.clone()]),
        is_named: true,
        identity: None,
        versions: vec![Version::Tls12, Version::Tls13],
        ciphers: None,
    };
    Config::of(settings).unwrap()
}
