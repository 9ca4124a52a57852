//! TLS sessions as resources: shared by the connection that reads and by the sender that writes.

use crate::atoms;
use crate::terms::binary;
use parking_lot::{Mutex, MutexGuard};
use rustler::{Atom, Binary, Encoder, Env, NifMap, NifTaggedEnum, NifUnitEnum, ResourceArc, Term};
use std::panic::RefUnwindSafe;
use tls_session::{Config, Handshake, Identity, Key, ServerName, Session, Settings, Trust};
use tls_session::{End, Failure, Unwritable, Version};

/// The session is unlocked after this many bytes were encrypted, so that reading goes on.
const ENCRYPTED_AT_ONCE: usize = 128 * 1024;

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

/// A session with the server `name`, a DNS name or an IP address.
pub fn open(
    env: Env,
    settings: TlsSettings,
    name: &str,
) -> Result<ResourceArc<Tls>, (Atom, String)> {
    let failed = |failure: Failure| (reason(env, &failure), failure.details);
    let config = Config::of(settings.into()).map_err(failed)?;
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        (
            atoms::options(),
            format!("not the name of a server: {name:?}"),
        )
    })?;
    let session = Session::new(&config, name).map_err(failed)?;
    Ok(ResourceArc::new(Tls(Mutex::new(session))))
}

/// `{:continue | :established, records}` or `{{reason, details}, records}`.
pub fn handshake<'a>(env: Env<'a>, tls: &Tls, bytes: &[u8]) -> Term<'a> {
    let mut session = tls.0.lock();
    let result = session.handshake(bytes);
    let records = binary(env, &session.take_owed());
    match result {
        Ok(Handshake::Continue) => (atoms::r#continue(), records).encode(env),
        Ok(Handshake::Established) => (atoms::established(), records).encode(env),
        Err(failure) => ((reason(env, &failure), failure.details), records).encode(env),
    }
}

/// The records of `data`; `{reason, records}` if it cannot be encrypted: the records are to be sent all
/// the same. A thread that may not wait gets `:busy` if another one has the session, or if it takes
/// long.
pub fn encrypt<'a>(env: Env<'a>, tls: &Tls, data: &[u8], may_wait: bool) -> Term<'a> {
    if !may_wait && data.len() > ENCRYPTED_AT_ONCE {
        return atoms::busy().encode(env);
    }
    let mut records = Vec::new();
    let mut rest = data;
    loop {
        let (part, more) = rest.split_at(rest.len().min(ENCRYPTED_AT_ONCE));
        let Some(mut session) = tls.lock(may_wait) else {
            return atoms::busy().encode(env);
        };
        let result = session.encrypt(part, &mut records);
        unlock(session);
        match result {
            Ok(()) if !more.is_empty() => rest = more,
            Ok(()) => return binary(env, &records),
            Err(error) => return (unwritable(&error), binary(env, &records)).encode(env),
        }
    }
}

fn unwritable(error: &Unwritable) -> Atom {
    match error {
        Unwritable::Ended => atoms::closed(),
        Unwritable::Exhausted => atoms::internal_error(),
    }
}

/// The last records: what is owed, and the `close_notify` alert unless it was taken before.
pub fn close<'a>(env: Env<'a>, tls: &Tls) -> Term<'a> {
    let mut records = Vec::new();
    tls.0.lock().close(&mut records);
    binary(env, &records)
}

/// `{:ok, plaintext}` of `length` bytes, or of any if it is 0; `:more` if more bytes of the socket are
/// needed; `:closed` or `{reason, details}` if there will be no more.
pub fn read<'a>(env: Env<'a>, tls: &Tls, bytes: &[u8], length: usize) -> Term<'a> {
    let mut session = tls.0.lock();
    if let Some(plaintext) = session.read(bytes, length) {
        return (rustler::types::atom::ok(), binary(env, &plaintext)).encode(env);
    }
    match session.end() {
        None => atoms::more().encode(env),
        Some(End::Closed) => atoms::closed().encode(env),
        Some(End::Failed(failure)) => (reason(env, failure), &failure.details).encode(env),
    }
}
