//! Waiting for a condition, with a deadline.

use std::time::Duration;

use tokio::time::Instant;

/// Interval between two checks of a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// Calls `look` until it yields a value; fails the test after `limit`.
pub(crate) async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
