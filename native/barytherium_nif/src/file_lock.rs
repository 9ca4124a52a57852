//! A file that one process at a time uses, in this VM or another.

use crate::atoms;
use crate::lock::lock;
use rustler::{Atom, Env, LocalPid, Monitor, ResourceArc};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Mutex;

/// The file is locked until the process that has locked it ends, or the VM, however that happens.
pub struct FileLock {
    file: Mutex<Option<File>>,
}

#[rustler::resource_impl]
impl rustler::Resource for FileLock {
    const IMPLEMENTS_DOWN: bool = true;

    // Others may still refer to it: somebody who has looked at the state of that process.
    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        lock(&self.file).take();
    }
}

impl FileLock {
    /// Locks a file for the calling process: `locked` if somebody else has it, `enolck` if it cannot be locked.
    pub fn new(env: Env, path: &Path) -> Result<ResourceArc<FileLock>, Atom> {
        let file = File::options().write(true).open(path);
        let file = file.map_err(|_| atoms::enolck())?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => atoms::locked(),
            TryLockError::Error(_) => atoms::enolck(),
        })?;
        let lock = ResourceArc::new(FileLock {
            file: Mutex::new(Some(file)),
        });
        // Without a monitor, the process is ending: the lock ends with its last reference.
        env.monitor(&lock, &env.pid());
        Ok(lock)
    }
}
