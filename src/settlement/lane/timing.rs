//! Timers of a lane.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// Waits until a moment; never ends for `None`.
pub(super) async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// An interval that does not catch up on missed ticks.
pub(super) fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
