//! TLS sessions as resources: shared by the connection that reads and by the sender that writes.

use crate::atoms;
use crate::terms::binary;
use parking_lot::{Mutex, MutexGuard};
use rustler::{Atom, Binary, Encoder, Env, NifMap, NifTaggedEnum, NifUnitEnum, ResourceArc, Term};
use std::panic::RefUnwindSafe;
use tls_client::{Config, Handshake, Identity, Key, Progress, ServerName, Settings, Trust};
use tls_client::{End, Ended, Exhausted, Failure, Records, Session, Version};

/// The session is unlocked after this many bytes were encrypted, so that reading goes on.
const ENCRYPTED_AT_ONCE: usize = 128 * 1024;

/// A TLS connection that is being set up. None when that has ended.
pub struct TlsHandshake(Mutex<Option<Handshake>>);

// As for `Tls`.
impl RefUnwindSafe for TlsHandshake {}

#[rustler::resource_impl]
impl rustler::Resource for TlsHandshake {}

/// A TLS connection.
pub struct Tls(Mutex<Session>);

// A panic ends the connection that meets it, so nobody uses what it left half done.
impl RefUnwindSafe for Tls {}

#[rustler::resource_impl]
impl rustler::Resource for Tls {}

impl Tls {
    /// The session. `None` if another thread has it and this one may not wait.
    pub fn lock(&self, may_wait: bool) -> Option<MutexGuard<'_, Session>> {
        if may_wait {
            return Some(self.0.lock());
        }
        self.0.try_lock()
    }

    /// Plaintext that came with the end of the handshake, or that nobody has received since.
    pub fn take_plaintext(&self) -> Vec<u8> {
        self.0.lock().take_plaintext()
    }
}

/// Unlocks the session. A thread that waits for it gets it next.
pub fn unlock(session: MutexGuard<'_, Session>) {
    MutexGuard::unlock_fair(session);
}

/// The reason of a failure as an atom. There are as many as TLS has alerts, and a few more.
pub fn reason(env: Env, failure: &Failure) -> Atom {
    Atom::from_str(env, failure.reason).unwrap_or_else(|_| atoms::closed())
}

/// `Barytherium.Connection.TlsOptions` makes these. Certificates and keys are in DER.
#[derive(NifMap)]
pub struct TlsSettings<'a> {
    trust: TrustTerm<'a>,
    is_named: bool,
    chain: Vec<Binary<'a>>,
    key: Option<KeyTerm<'a>>,
    versions: Vec<VersionTerm>,
    ciphers: Option<Vec<String>>,
}

#[derive(NifTaggedEnum)]
enum TrustTerm<'a> {
    Anyone,
    Authorities(Vec<Binary<'a>>),
}

#[derive(NifTaggedEnum)]
enum KeyTerm<'a> {
    Pkcs1(Binary<'a>),
    Sec1(Binary<'a>),
    Pkcs8(Binary<'a>),
}

#[derive(NifUnitEnum)]
enum VersionTerm {
    Tls12,
    Tls13,
}

fn copies(binaries: Vec<Binary>) -> Vec<Vec<u8>> {
    binaries.iter().map(|binary| binary.to_vec()).collect()
}

impl From<TlsSettings<'_>> for Settings {
    fn from(settings: TlsSettings) -> Settings {
        let chain = copies(settings.chain);
        Settings {
            trust: match settings.trust {
                TrustTerm::Anyone => Trust::Anyone,
                TrustTerm::Authorities(authorities) => Trust::Authorities(copies(authorities)),
            },
            is_named: settings.is_named,
            identity: settings.key.map(|key| Identity {
                chain,
                key: match key {
                    KeyTerm::Pkcs1(der) => Key::Pkcs1(der.to_vec()),
                    KeyTerm::Sec1(der) => Key::Sec1(der.to_vec()),
                    KeyTerm::Pkcs8(der) => Key::Pkcs8(der.to_vec()),
                },
            }),
            versions: settings
                .versions
                .iter()
                .map(|version| match version {
                    VersionTerm::Tls12 => Version::Tls12,
                    VersionTerm::Tls13 => Version::Tls13,
                })
                .collect(),
            ciphers: settings.ciphers,
        }
    }
}

/// A handshake with the server `name`, a DNS name or an IP address.
pub fn open(
    env: Env,
    settings: TlsSettings,
    name: &str,
) -> Result<ResourceArc<TlsHandshake>, (Atom, String)> {
    let failed = |failure: Failure| (reason(env, &failure), failure.details);
    let config = Config::of(settings.into()).map_err(failed)?;
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        (
            atoms::options(),
            format!("not the name of a server: {name:?}"),
        )
    })?;
    let handshake = Handshake::new(&config, name).map_err(failed)?;
    Ok(ResourceArc::new(TlsHandshake(Mutex::new(Some(handshake)))))
}

/// `{:continue | {:established, tls}, records}` or `{{reason, details}, records}`. One that has ended is
/// `:closed`.
pub fn handshake<'a>(env: Env<'a>, tls: &TlsHandshake, bytes: &[u8]) -> Term<'a> {
    let mut place = tls.0.lock();
    let Some(handshake) = place.take() else {
        return ((atoms::closed(), ""), "").encode(env);
    };
    let (records, progress) = handshake.advance(bytes);
    let records = binary(env, &records.into_bytes());
    match progress {
        Progress::Continue(handshake) => {
            *place = Some(handshake);
            (atoms::r#continue(), records).encode(env)
        }
        Progress::Established(session) => {
            let tls = ResourceArc::new(Tls(Mutex::new(session)));
            ((atoms::established(), tls), records).encode(env)
        }
        Progress::Failed(failure) => {
            ((reason(env, &failure), failure.details), records).encode(env)
        }
    }
}

/// The records of `data`; `{reason, records}` if it cannot be encrypted: the records are to be sent all
/// the same. A thread that may not wait gets `:busy` if another one has the session, or if it takes
/// long.
pub fn encrypt<'a>(env: Env<'a>, tls: &Tls, data: &[u8], may_wait: bool) -> Term<'a> {
    if !may_wait && data.len() > ENCRYPTED_AT_ONCE {
        return atoms::busy().encode(env);
    }
    let mut records = Records::default();
    let mut rest = data;
    loop {
        let (part, more) = rest.split_at(rest.len().min(ENCRYPTED_AT_ONCE));
        let Some(mut session) = tls.lock(may_wait) else {
            return atoms::busy().encode(env);
        };
        let failed;
        (records, failed) = match session.writing(records) {
            Err(Ended(owed)) => (owed, Some(atoms::closed())),
            Ok(mut writing) => {
                let encrypted = writing.encrypt(part);
                let failed = encrypted.err().map(|Exhausted| atoms::internal_error());
                (writing.finish(), failed)
            }
        };
        unlock(session);
        match failed {
            None if !more.is_empty() => rest = more,
            None => return binary(env, &records.into_bytes()),
            Some(reason) => return (reason, binary(env, &records.into_bytes())).encode(env),
        }
    }
}

/// The last records: what is owed, and the `close_notify` alert unless it was taken before.
pub fn close<'a>(env: Env<'a>, tls: &Tls) -> Term<'a> {
    let records = match tls.0.lock().writing(Records::default()) {
        Ok(writing) => writing.close(),
        Err(Ended(owed)) => owed,
    };
    binary(env, &records.into_bytes())
}

/// `{:ok, plaintext}` of `length` bytes, or of any if it is 0; `:more` if more bytes of the socket are
/// needed; `:closed` or `{reason, details}` if there will be no more.
pub fn read<'a>(env: Env<'a>, tls: &Tls, bytes: &[u8], length: usize) -> Term<'a> {
    match tls.0.lock().read(bytes, length) {
        Ok(Some(plaintext)) => {
            let ok = rustler::types::atom::ok();
            (ok, binary(env, &plaintext)).encode(env)
        }
        Ok(None) => atoms::more().encode(env),
        Err(End::Closed) => atoms::closed().encode(env),
        Err(End::Failed(failure)) => (reason(env, failure), &failure.details).encode(env),
    }
}
