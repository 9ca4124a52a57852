//! Locking what a panic may have left half done: it has ended the connection that it met, so nobody else
//! depends on that.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, whether it is poisoned or not.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
