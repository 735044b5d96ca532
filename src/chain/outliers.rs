//! Which endpoints report a credible newest block. An endpoint whose newest block is far from those of the others is not used to decide
//! which endpoints are behind.

use crate::clock::{Clock as _, SystemClock};

/// By how many blocks and seconds the newest blocks of honest endpoints may differ.
const NEAR_BLOCKS: u64 = 64;
const NEAR_SECONDS: u64 = 15 * 60;
/// A newest block whose time differs from the clock by more than this is not current.
const PRESENT_SECONDS: u64 = 10 * 60;

/// The newest block that an endpoint reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReportedHead {
    /// Height.
    pub(super) number: u64,
    /// Unix time of the block.
    pub(super) time: i64,
}

impl ReportedHead {
    /// Whether two reports can come from the same chain at the same time.
    pub(super) const fn is_near(&self, other: &Self) -> bool {
        self.number.abs_diff(other.number) <= NEAR_BLOCKS
            && self.time.abs_diff(other.time) <= NEAR_SECONDS
    }

    const fn is_current(&self, now: i64) -> bool {
        self.time.abs_diff(now) <= PRESENT_SECONDS
    }
}

/// Which of the `reported` blocks are credible at Unix time `now`.
///
/// A block is credible if another endpoint reports one near it, or if it is the only one. If all contradict each other, only the lowest
/// of the current ones is credible (of all, if none is current): it is behind only according to single, unsupported reports.
fn credible(reported: &[Option<ReportedHead>], now: i64) -> Vec<bool> {
    let heads: Vec<ReportedHead> = reported.iter().flatten().copied().collect();
    // Each block is near itself, so support takes a second one.
    let supported =
        |head: &ReportedHead| heads.iter().filter(|other| head.is_near(other)).count() > 1;
    let any_support = heads.iter().any(supported);
    let current: Vec<&ReportedHead> = heads.iter().filter(|head| head.is_current(now)).collect();
    let candidates = if current.is_empty() {
        heads.iter().collect()
    } else {
        current
    };
    let lowest = candidates.into_iter().min_by_key(|head| head.number);
    let is_credible = |head: &ReportedHead| {
        if any_support {
            supported(head)
        } else {
            lowest == Some(head)
        }
    };
    reported
        .iter()
        .map(|head| head.as_ref().is_some_and(is_credible))
        .collect()
}

/// Which endpoints have reported a newest block that is not credible. An endpoint without a report is no outlier.
pub(super) fn outliers(reported: &[Option<ReportedHead>]) -> Vec<bool> {
    let credible = credible(reported, SystemClock.now().unix_timestamp());
    let has_reported = reported.iter().map(Option::is_some);
    has_reported
        .zip(credible)
        .map(|(has_reported, credible)| has_reported && !credible)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    const fn head(number: u64, time: i64) -> ReportedHead {
        ReportedHead { number, time }
    }

    fn credible_of<const N: usize>(heads: [ReportedHead; N]) -> Vec<bool> {
        credible(&heads.map(Some), NOW)
    }

    #[test]
    fn head_far_ahead_is_credible_only_with_another_endpoint_near_it() {
        let (honest, ahead) = (head(100, NOW), head(1_000_100, NOW));
        assert_eq!(credible_of([honest, ahead]), [true, false]);
        assert_eq!(credible_of([ahead, honest]), [false, true]);
        assert_eq!(
            credible(&[Some(ahead), None], NOW),
            [true, false],
            "no other endpoint answers"
        );
        let near = head(164, NOW);
        assert_eq!(credible_of([honest, near, ahead]), [true, true, false]);
        let also_ahead = head(1_000_099, NOW);
        assert_eq!(
            credible_of([honest, ahead, also_ahead]),
            [false, true, true],
            "one stopped endpoint and two current ones"
        );
    }

    #[test]
    fn of_two_contradicting_heads_the_current_one_is_credible() {
        let (stopped, current) = (head(100, NOW - 7_200), head(3_700, NOW));
        assert_eq!(credible_of([stopped, current]), [false, true]);
        let (honest, future) = (head(100, NOW), head(101, NOW + 7_200));
        assert_eq!(credible_of([honest, future]), [true, false]);
        let past = head(99, NOW - 86_400);
        assert_eq!(credible_of([past, honest]), [false, true]);
    }

    #[test]
    fn chain_time_far_from_the_clock_is_credible_without_contradiction() {
        let future = head(100, NOW + 86_400);
        assert_eq!(credible_of([future]), [true]);
        assert_eq!(credible_of([future, head(101, NOW + 86_402)]), [true, true]);
        assert_eq!(credible(&[None, None], NOW), [false, false]);
    }
}
