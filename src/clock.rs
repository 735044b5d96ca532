//! The only place where wall-clock time is born.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// Where the time comes from.
pub trait Clock: Send + Sync + Debug {
    /// The present moment, UTC.
    fn now(&self) -> OffsetDateTime;
}

/// The machine's clock.
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

/// A clock that another one sets from time to time, and that goes on by itself in between; the machine's until it is set. The ledger's
/// clock sets it, so that all processes of one ledger agree on the time whatever their machines say.
#[derive(Debug, Default)]
pub struct FollowingClock(Mutex<Option<(Instant, OffsetDateTime)>>);

impl FollowingClock {
    /// Sets it.
    pub fn set(&self, now: OffsetDateTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), now));
    }
}

impl FollowingClock {
    /// How long ago it was set, if ever.
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

/// A clock that a test moves by hand.
#[derive(Debug)]
pub struct ManualClock(Mutex<OffsetDateTime>);

impl ManualClock {
    /// A clock that stands at `now`.
    pub const fn new(now: OffsetDateTime) -> Self {
        Self(Mutex::new(now))
    }

    /// Moves it.
    pub fn set(&self, now: OffsetDateTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
