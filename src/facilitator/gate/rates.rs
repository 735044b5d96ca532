//! How often a caller may ask: each key, and each client address where the caller has none.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;
use tokio::time::Instant;

use crate::facilitator::{Caller, Unavailable, counted_as};
use crate::payment::{KeyId, Purpose, Who};
use crate::telemetry::metrics::{Limit, reached};

/// Seconds of its rate that a caller may use at once.
const BURST_S: u32 = 4;
/// Requests of all kinds that a caller may make for each call that has a rate: payments that are known are asked for again and again, and
/// sessions are read.
const REQUESTS_PER_CALL: NonZeroU32 = NonZeroU32::MIN.saturating_add(3);
/// Clients counted apart, at most. While so many are active, all of them share one count.
const COUNTED_MAX: usize = 50_000;
/// How often callers that have been idle for the length of a burst are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// Calls a second of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRates {
    pub verify: NonZeroU32,
    /// `/settle`, and submissions for sessions.
    pub settle: NonZeroU32,
    /// Sessions opened.
    pub sessions: NonZeroU32,
}

impl CallRates {
    /// Requests of all kinds together.
    fn requests(self) -> NonZeroU32 {
        let calls = self.verify.saturating_add(self.settle.get());
        let calls = calls.saturating_add(self.sessions.get());
        calls.saturating_mul(REQUESTS_PER_CALL)
    }
}

/// A call that has a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::facilitator) enum Call {
    Verify,
    Settle,
    OpenSession,
    /// What is submitted for a session.
    Submit,
}

impl Call {
    /// How a payment that is presented by this call is read: at `/verify` the maximum of a charge, else the charge.
    pub(in crate::facilitator) const fn purpose(self) -> Purpose {
        match self {
            Self::Verify => Purpose::Verify,
            Self::Settle | Self::Submit | Self::OpenSession => Purpose::Settle,
        }
    }
}

/// For whom calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::facilitator) enum Counted {
    Key(KeyId),
    /// A client without a key.
    Client(IpNet),
    /// Everybody for whom no further count is kept.
    Rest,
}

impl Counted {
    /// `None`: the operator, whose calls are not counted.
    pub(in crate::facilitator) fn of(caller: &Caller) -> Option<Self> {
        match caller.who {
            Who::Key(id) => Some(Self::Key(id)),
            Who::Anonymous => Some(Self::Client(counted_as(caller.client))),
            Who::Operator => None,
        }
    }
}

/// The counts of all callers.
#[derive(Debug)]
pub(super) struct Rates {
    requests: Counts,
    verify: Counts,
    settle: Counts,
    sessions: Counts,
}

impl Rates {
    pub(super) fn new(rates: CallRates) -> Self {
        Self {
            requests: Counts::new(rates.requests()),
            verify: Counts::new(rates.verify),
            settle: Counts::new(rates.settle),
            sessions: Counts::new(rates.sessions),
        }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// [`Unavailable::RateLimited`] with the time until the next call is admitted.
    pub(super) fn count(&self, call: Call, caller: &Caller) -> Result<(), Unavailable> {
        let (counts, limit) = match call {
            Call::Verify => (&self.verify, Limit::Verify),
            Call::Settle | Call::Submit => (&self.settle, Limit::Settle),
            Call::OpenSession => (&self.sessions, Limit::Sessions),
        };
        counts.count_caller(caller, limit)
    }

    /// Counts a request of any kind.
    ///
    /// # Errors
    /// As [`Self::count`].
    pub(super) fn count_request(&self, caller: &Caller) -> Result<(), Unavailable> {
        self.requests.count_caller(caller, Limit::Requests)
    }
}

#[derive(Debug)]
struct Counts {
    limiter: RateLimiter<Counted, HashMapStateStore<Counted>, DefaultClock>,
    clock: DefaultClock,
    forgotten_at: Mutex<Instant>,
}

impl Counts {
    fn new(rate: NonZeroU32) -> Self {
        let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_S - 1));
        let quota = Quota::per_second(rate).allow_burst(burst);
        Self {
            limiter: RateLimiter::hashmap(quota),
            clock: DefaultClock::default(),
            forgotten_at: Mutex::new(Instant::now()),
        }
    }

    fn count_caller(&self, caller: &Caller, limit: Limit) -> Result<(), Unavailable> {
        let Some(counted) = Counted::of(caller) else {
            return Ok(());
        };
        self.count(counted).map_err(|wait| {
            reached(limit);
            Unavailable::RateLimited(wait)
        })
    }

    /// The time until the next call is admitted is the error.
    fn count(&self, counted: Counted) -> Result<(), Duration> {
        self.forget_idle();
        // Keys are few: the operator has made them.
        let is_shared = matches!(counted, Counted::Client(_)) && self.limiter.len() >= COUNTED_MAX;
        let counted = if is_shared { Counted::Rest } else { counted };
        let admitted = self.limiter.check_key(&counted);
        admitted.map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    fn forget_idle(&self) {
        let mut forgotten_at = self
            .forgotten_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if forgotten_at.elapsed() < FORGET_INTERVAL {
            return;
        }
        *forgotten_at = Instant::now();
        drop(forgotten_at);
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(client: &str) -> Caller {
        Caller {
            who: Who::Anonymous,
            key: None,
            client: client.parse().unwrap(),
            request_id: String::new(),
            asked_as: String::new(),
        }
    }

    fn rates(verify: u32) -> Rates {
        let rate = |number: u32| NonZeroU32::new(number).unwrap();
        Rates::new(CallRates {
            verify: rate(verify),
            settle: rate(2),
            sessions: rate(1),
        })
    }

    #[test]
    fn burst_is_admitted_then_the_caller_waits_and_others_do_not() {
        let rates = rates(5);
        let one = caller("10.0.0.1");
        for _ in 0..20 {
            rates.count(Call::Verify, &one).unwrap();
        }
        let refused = rates.count(Call::Verify, &one).unwrap_err();
        let wait = refused.retry_after();
        assert!(wait <= Duration::from_millis(200), "{wait:?}");
        rates.count(Call::Verify, &caller("10.0.0.2")).unwrap();
        rates.count(Call::Settle, &one).unwrap();
        rates.count(Call::OpenSession, &one).unwrap();
    }

    #[test]
    fn requests_of_all_kinds_are_counted_together() {
        let rates = rates(5);
        let one = caller("10.0.0.1");
        // Four times the sum of the rates, for four seconds.
        for _ in 0..4 * (5 + 2 + 1) * 4 {
            rates.count_request(&one).unwrap();
        }
        assert!(rates.count_request(&one).is_err());
        rates.count(Call::Verify, &one).unwrap();
        rates.count_request(&caller("10.0.0.2")).unwrap();
    }

    #[test]
    fn ipv6_clients_share_the_count_of_their_network() {
        let rates = rates(1);
        for host in 0..4 {
            let client = caller(&format!("2001:db8:0:11{host:02x}::{host}"));
            rates.count(Call::Verify, &client).unwrap();
        }
        let same = caller("2001:db8:0:11ff:1::1");
        assert!(rates.count(Call::Verify, &same).is_err());
        let other = caller("2001:db8:0:1200::1");
        rates.count(Call::Verify, &other).unwrap();
    }

    #[test]
    fn the_operator_and_each_key_are_counted_apart() {
        let rates = rates(1);
        let key = |byte: u8| Caller {
            who: Who::Key(KeyId::from_entropy([byte; 12])),
            ..caller("10.0.0.1")
        };
        for _ in 0..4 {
            rates.count(Call::Verify, &key(1)).unwrap();
        }
        assert!(rates.count(Call::Verify, &key(1)).is_err());
        rates.count(Call::Verify, &key(2)).unwrap();
        let operator = Caller {
            who: Who::Operator,
            ..caller("10.0.0.1")
        };
        for _ in 0..100 {
            rates.count(Call::Verify, &operator).unwrap();
        }
    }

    #[test]
    fn memory_is_bounded() {
        let counts = Counts::new(NonZeroU32::MIN);
        for number in 0..u32::try_from(COUNTED_MAX + 1_000).unwrap() {
            let client = std::net::IpAddr::from(number.to_be_bytes()).into();
            let admitted = counts.count(Counted::Client(client));
            let shared = usize::try_from(number).unwrap() >= COUNTED_MAX + 4;
            assert_eq!(admitted.is_ok(), !shared, "{number}");
        }
        assert_eq!(counts.limiter.len(), COUNTED_MAX + 1);
    }
}
