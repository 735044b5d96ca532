//! Whose newest block counts: an endpoint that shows one far from everybody else's has no say about who is behind.

use crate::clock::{Clock as _, SystemClock};

/// Blocks and seconds by which honest endpoints may differ.
const NEAR_BLOCKS: u64 = 64;
const NEAR_SECONDS: u64 = 15 * 60;
/// A newest block whose time is further than this from the clock says little of the present.
const PRESENT_SECONDS: u64 = 10 * 60;

/// The newest block that an endpoint shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Height.
    pub(super) number: u64,
    /// Unix time of the block.
    pub(super) time: i64,
}

impl Claim {
    /// Whether two claims may be of one chain at one moment.
    pub(super) const fn is_near(&self, other: &Self) -> bool {
        self.number.abs_diff(other.number) <= NEAR_BLOCKS
            && self.time.abs_diff(other.time) <= NEAR_SECONDS
    }

    const fn is_present(&self, now: i64) -> bool {
        self.time.abs_diff(now) <= PRESENT_SECONDS
    }
}

/// Which of the `claims` count at Unix time `now`. One that another supports does, and the only one does. Where all contradict each other, those
/// of the present count; of several such the lowest, because nothing makes it behind but the word of one.
fn believed(claims: &[Option<Claim>], now: i64) -> Vec<bool> {
    let made: Vec<Claim> = claims.iter().flatten().copied().collect();
    let supported = |claim: &Claim| made.iter().filter(|other| claim.is_near(other)).count() > 1;
    let any_support = made.iter().any(supported);
    let present: Vec<&Claim> = made.iter().filter(|claim| claim.is_present(now)).collect();
    let telling = if present.is_empty() {
        made.iter().collect()
    } else {
        present
    };
    let lowest = telling.into_iter().min_by_key(|claim| claim.number);
    let counts = |claim: &Claim| {
        if any_support {
            supported(claim)
        } else {
            lowest == Some(claim)
        }
    };
    claims
        .iter()
        .map(|claim| claim.as_ref().is_some_and(counts))
        .collect()
}

/// Which endpoints have shown a newest block that does not count beside the others'.
pub(super) fn doubted(claims: &[Option<Claim>]) -> Vec<bool> {
    let believed = believed(claims, SystemClock.now().unix_timestamp());
    let claimed = claims.iter().map(Option::is_some);
    claimed
        .zip(believed)
        .map(|(claimed, believed)| claimed && !believed)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    const fn claim(number: u64, time: i64) -> Claim {
        Claim { number, time }
    }

    fn believed_of<const N: usize>(claims: [Claim; N]) -> Vec<bool> {
        believed(&claims.map(Some), NOW)
    }

    #[test]
    fn a_head_far_ahead_counts_only_when_another_endpoint_is_near_it() {
        let (honest, ahead) = (claim(100, NOW), claim(1_000_100, NOW));
        assert_eq!(believed_of([honest, ahead]), [true, false]);
        assert_eq!(believed_of([ahead, honest]), [false, true]);
        assert_eq!(
            believed(&[Some(ahead), None], NOW),
            [true, false],
            "nobody else answers"
        );
        let near = claim(164, NOW);
        assert_eq!(believed_of([honest, near, ahead]), [true, true, false]);
        let two_ahead = claim(1_000_099, NOW);
        assert_eq!(
            believed_of([honest, ahead, two_ahead]),
            [false, true, true],
            "an endpoint that stopped, beside two that did not"
        );
    }

    #[test]
    fn of_two_that_contradict_each_other_the_one_of_the_present_counts() {
        let (stopped, current) = (claim(100, NOW - 7_200), claim(3_700, NOW));
        assert_eq!(believed_of([stopped, current]), [false, true]);
        let (honest, future) = (claim(100, NOW), claim(101, NOW + 7_200));
        assert_eq!(believed_of([honest, future]), [true, false]);
        let past = claim(99, NOW - 86_400);
        assert_eq!(believed_of([past, honest]), [false, true]);
    }

    #[test]
    fn a_chain_whose_time_is_another_is_believed_by_itself() {
        let elsewhere = claim(100, NOW + 86_400);
        assert_eq!(believed_of([elsewhere]), [true]);
        assert_eq!(
            believed_of([elsewhere, claim(101, NOW + 86_402)]),
            [true, true]
        );
        assert_eq!(believed(&[None, None], NOW), [false, false]);
    }
}
