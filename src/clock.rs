//! The only module that reads the wall clock.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// A source of the time.
pub trait Clock: Send + Sync + Debug {
    /// The present time, UTC.
    fn now(&self) -> OffsetDateTime;
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that may ask the machine"
    )]
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

/// A clock that is set from time to time and runs by itself in between; before it is set, the machine's. The ledger sets it to the
/// database's time, so that all processes of one ledger agree whatever their machines' clocks show.
#[derive(Debug, Default)]
pub struct FollowingClock(Mutex<Option<(Instant, OffsetDateTime)>>);

impl FollowingClock {
    pub fn set(&self, now: OffsetDateTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), now));
    }
}

impl FollowingClock {
    /// The time since it was last set, if ever.
    pub fn age(&self) -> Option<Duration> {
        let set = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.map(|(since, _)| since.elapsed())
    }
}

impl Clock for FollowingClock {
    fn now(&self) -> OffsetDateTime {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((since, then)) => then + since.elapsed(),
            None => SystemClock.now(),
        }
    }
}

/// A clock for tests, which stands still until it is set.
#[derive(Debug)]
pub struct ManualClock(Mutex<OffsetDateTime>);

impl ManualClock {
    /// A clock that shows `now`.
    pub const fn new(now: OffsetDateTime) -> Self {
        Self(Mutex::new(now))
    }

    pub fn set(&self, now: OffsetDateTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
