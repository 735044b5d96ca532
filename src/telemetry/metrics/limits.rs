//! How often each limit was reached. A limit is known by its name alone, so every room can count it without being handed anything.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::Labels;

macro_rules! limits {
    ($($variant:ident $name:literal,)+) => {
        /// A limit that is reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Limit {
            $(#[doc = concat!("`", $name, "`")] $variant,)+
        }

        impl Limit {
            /// Every limit.
            const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The setting, or what the limit is of where it cannot be set.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            fn count(self) -> &'static AtomicU64 {
                match self {
                    $(Self::$variant => {
                        static COUNT: AtomicU64 = AtomicU64::new(0);
                        &COUNT
                    })+
                }
            }
        }
    };
}

limits! {
    Body "body_bytes_max",
    Connections "connections_max",
    ConnectionsPerClient "connections_max_per_client",
    ConnectionsPerProxy "connections_max_per_proxy",
    DatabaseConnections "database_connections_max",
    EventStreams "event_streams",
    MaxFee "max_fee_wei",
    Queue "queue_max",
    QueuePerPayer "queue_max_per_payer",
    Refusals "refusals_recorded",
    Requests "requests_per_second",
    RpcCalls "rpc_calls_per_second",
    Sessions "sessions_per_second",
    SessionsOpen "sessions_open_max",
    Settle "settle_per_second",
    Unattended "unattended_per_caller",
    Verify "verify_per_second",
    Waits "waits_per_caller",
}

/// Counts that a limit of this process was reached: something was turned away, or gave up waiting.
pub fn reached(limit: Limit) {
    limit.count().fetch_add(1, Ordering::Relaxed);
}

pub(super) fn counters() -> Family<Labels, Counter> {
    let family: Family<Labels, Counter> = Family::default();
    for limit in Limit::ALL {
        let labels = vec![("limit", limit.name().to_owned())];
        let count = limit.count().load(Ordering::Relaxed);
        family.get_or_create(&labels).inc_by(count);
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_count_of_its_own() {
        // Other tests of this process reach limits too, but not these.
        reached(Limit::MaxFee);
        reached(Limit::MaxFee);
        reached(Limit::DatabaseConnections);
        let count = |limit: &str| {
            let labels = vec![("limit", limit.to_owned())];
            counters().get_or_create(&labels).get()
        };
        let counts = ["max_fee_wei", "database_connections_max"].map(count);
        assert_eq!(counts, [2, 1]);
    }
}
