//! Configurations: what can be used, and what is shared.

use super::*;
use crate::test_server::Authority;

fn settings(authorities: Vec<Vec<u8>>) -> Settings {
    Settings {
        trust: Trust::Authorities(authorities),
        is_named: true,
        identity: None,
        versions: vec![Version::Tls12, Version::Tls13],
        ciphers: None,
    }
}

fn error(settings: Settings) -> &'static str {
    Config::of(settings).err().unwrap().reason
}

/// Tests run at the same time, so each has a cache of its own: that of all connections keeps only
/// so many configurations.
fn config(cache: &mut Cache, settings: &Settings) -> Arc<ClientConfig> {
    cache.config(settings.clone()).unwrap().0
}

#[test]
fn the_same_settings_share_a_configuration() {
    let mut cache = Cache(Vec::new());
    let settings = settings(vec![Authority::new().certificate]);
    let first = config(&mut cache, &settings);
    assert!(Arc::ptr_eq(&first, &config(&mut cache, &settings)));
    let other = Settings {
        versions: vec![Version::Tls13],
        ..settings
    };
    assert!(!Arc::ptr_eq(&first, &config(&mut cache, &other)));
}

#[test]
fn a_number_of_configurations_is_kept() {
    let mut cache = Cache(Vec::new());
    let make = || settings(vec![Authority::new().certificate]);
    let (idle, busy) = (make(), make());
    let (before, used) = (config(&mut cache, &idle), config(&mut cache, &busy));
    for _ in 0..KEPT - 1 {
        config(&mut cache, &make());
        config(&mut cache, &busy);
    }
    assert_eq!(cache.0.len(), KEPT);
    assert!(Arc::ptr_eq(&used, &config(&mut cache, &busy)));
    assert!(!Arc::ptr_eq(&before, &config(&mut cache, &idle)));
}

#[test]
fn authorities_that_cannot_be_used_are_left_out() {
    let authority = Authority::new();
    let garbage = b"no certificate".to_vec();
    assert!(Config::of(settings(vec![garbage.clone(), authority.certificate])).is_ok());
    assert_eq!(error(settings(vec![garbage])), "unknown_ca");
    assert_eq!(error(settings(vec![])), "unknown_ca");
}

#[test]
fn keys_that_cannot_be_used_are_refused() {
    let authority = Authority::new();
    let with = |chain: &[u8], key| Settings {
        identity: Some(Identity {
            chain: vec![chain.to_vec()],
            key,
        }),
        ..settings(vec![authority.certificate.clone()])
    };
    let (one, other) = (authority.issue(|_| ()), authority.issue(|_| ()));
    let key = |issued: &crate::test_server::Issued| Key::Pkcs8(issued.key.clone());
    assert!(Config::of(with(&one.certificate, key(&one))).is_ok());
    assert_eq!(error(with(&one.certificate, key(&other))), "options");
    assert_eq!(error(with(b"no certificate", key(&one))), "options");
    for garbage in [
        Key::Pkcs1(vec![1]),
        Key::Sec1(vec![]),
        Key::Pkcs8(vec![2; 100]),
    ] {
        assert_eq!(error(with(&one.certificate, garbage)), "options");
    }
}

#[test]
fn versions_and_ciphers_have_to_fit() {
    let authority = Authority::new();
    let with = |versions: &[Version], ciphers: &[&str]| Settings {
        versions: versions.to_vec(),
        ciphers: Some(ciphers.iter().map(|name| name.to_string()).collect()),
        ..settings(vec![authority.certificate.clone()])
    };
    let suite_13 = "TLS13_AES_128_GCM_SHA256";
    assert!(Config::of(with(&[Version::Tls13], &[suite_13])).is_ok());
    assert_eq!(error(with(&[Version::Tls12], &[suite_13])), "options");
    assert_eq!(error(with(&[], &[suite_13])), "options");
    assert_eq!(error(with(&[Version::Tls13], &[])), "options");
    assert!(knows_cipher("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"));
    assert!(!knows_cipher("TLS_RSA_WITH_AES_128_CBC_SHA"));
}
