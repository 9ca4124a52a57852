//! The clock of this library.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Now, as sessions, turns and backlogs count time.
pub fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}
