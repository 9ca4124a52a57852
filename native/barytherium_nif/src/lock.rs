//! Locking, whatever a panic has left half done.
//!
//! What one connection has is not used again: the panic ends it. What connections share (accounts, backlogs, slots,
//! routes, ports) is locked for a few lines that do not panic. If they did, a wrong count there would cost waits that
//! have bounds, and not the next connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, whether it is poisoned or not.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
