//! A file that one process at a time uses, in this VM or another.

use crate::atoms;
use rustler::Atom;
use std::fs::{File, TryLockError};
use std::path::Path;

/// The file is locked until this is dropped, or the VM has ended, however that happened.
pub struct FileLock {
    _file: File,
}

#[rustler::resource_impl]
impl rustler::Resource for FileLock {}

impl FileLock {
    /// `locked` if somebody else has the file, `enolck` if it cannot be locked.
    pub fn new(path: &Path) -> Result<FileLock, Atom> {
        let file = File::options().write(true).open(path);
        let file = file.map_err(|_| atoms::enolck())?;
        match file.try_lock() {
            Ok(()) => Ok(FileLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(atoms::locked()),
            Err(TryLockError::Error(_)) => Err(atoms::enolck()),
        }
    }
}
