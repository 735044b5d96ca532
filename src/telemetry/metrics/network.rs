//! Counters of one network: its payments step by step, and what they cost.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Labels, OTHER};

/// A step of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is in the ledger, and will be sent.
    Accepted,
    /// The bytes of its transaction are committed.
    Sent,
    /// Its transfer has the confirmations.
    Settled,
    /// Success is answered to a request.
    Granted,
    /// It was accepted, and is not sent; with the code. It may be presented again.
    Refused(&'static str),
    /// Its transaction, or its authorization, moved no money and cannot any more; with the code.
    Failed(&'static str),
}

impl Step {
    /// Its name in the log and in the figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Sent => "sent",
            Self::Settled => "settled",
            Self::Granted => "granted",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// The code of a payment that went wrong.
    pub const fn code(self) -> Option<&'static str> {
        match self {
            Self::Refused(code) | Self::Failed(code) => Some(code),
            Self::Accepted | Self::Sent | Self::Settled | Self::Granted => None,
        }
    }
}

/// What gas was spent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GasPurpose {
    /// Payments that were transferred.
    Settle,
    /// Payments that their transaction did not transfer, and nonces that had to be used up.
    Wasted,
    /// Payers' approvals: gas money that was given to them, with its own gas.
    Approvals,
}

impl GasPurpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::Wasted => "wasted",
            Self::Approvals => "approvals",
        }
    }
}

/// What a counter of wei counts in: more than a `u64` holds.
pub(super) type WeiCounter = Counter<f64, AtomicU64>;

/// The families of all networks.
#[derive(Debug, Default)]
pub(super) struct NetworkFamilies {
    payments: Family<Labels, Counter>,
    gas: Family<Labels, WeiCounter>,
    reorged_blocks: Family<Labels, Counter>,
}

impl NetworkFamilies {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let families = Self::default();
        registry.register(
            "payments",
            "Payments that this process took through a step: accepted, sent, settled, granted, refused, failed; the last two with their code",
            families.payments.clone(),
        );
        registry.register(
            "gas_wei",
            "What transactions of this process have cost, by what it was spent for",
            families.gas.clone(),
        );
        registry.register(
            "reorged_blocks",
            "Orphaned blocks that had been read",
            families.reorged_blocks.clone(),
        );
        families
    }

    pub(super) fn of(
        &self,
        network: &str,
        schemes: &[&'static str],
        codes: Arc<HashSet<&'static str>>,
    ) -> NetworkMetrics {
        let label = || ("network", network.to_owned());
        let counters = |scheme: &'static str| {
            let step =
                |step: Step| count_of(&self.payments, &payment_labels(network, scheme, step, ""));
            SchemeCounters {
                scheme,
                accepted: step(Step::Accepted),
                sent: step(Step::Sent),
                settled: step(Step::Settled),
                granted: step(Step::Granted),
            }
        };
        let gas = |purpose: GasPurpose| {
            let labels = vec![label(), ("purpose", purpose.name().to_owned())];
            self.gas.get_or_create_owned(&labels)
        };
        NetworkMetrics(Arc::new(Counters {
            network: network.to_owned(),
            schemes: schemes.iter().copied().map(counters).collect(),
            payments: self.payments.clone(),
            codes,
            settle_gas: gas(GasPurpose::Settle),
            wasted_gas: gas(GasPurpose::Wasted),
            approvals_gas: gas(GasPurpose::Approvals),
            reorged_blocks: count_of(&self.reorged_blocks, &vec![label()]),
        }))
    }
}

fn count_of(family: &Family<Labels, Counter>, labels: &Labels) -> Counter {
    family.get_or_create_owned(labels)
}

fn payment_labels(network: &str, scheme: &str, step: Step, code: &str) -> Labels {
    vec![
        ("network", network.to_owned()),
        ("scheme", scheme.to_owned()),
        ("outcome", step.name().to_owned()),
        ("code", code.to_owned()),
    ]
}

/// Counters of one network, resolved at the start. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NetworkMetrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    network: String,
    schemes: Vec<SchemeCounters>,
    /// Those of payments that went wrong are made when the first one does.
    payments: Family<Labels, Counter>,
    codes: Arc<HashSet<&'static str>>,
    settle_gas: WeiCounter,
    wasted_gas: WeiCounter,
    approvals_gas: WeiCounter,
    reorged_blocks: Counter,
}

#[derive(Debug)]
struct SchemeCounters {
    scheme: &'static str,
    accepted: Counter,
    sent: Counter,
    settled: Counter,
    granted: Counter,
}

impl NetworkMetrics {
    /// Counts a payment. A scheme or code that this version does not know gets no label of its own.
    pub fn count(&self, scheme: &'static str, step: Step) {
        let mut schemes = self.0.schemes.iter();
        let Some(counters) = schemes.find(|counters| counters.scheme == scheme) else {
            return;
        };
        match step {
            Step::Accepted => counters.accepted.inc(),
            Step::Sent => counters.sent.inc(),
            Step::Settled => counters.settled.inc(),
            Step::Granted => counters.granted.inc(),
            Step::Refused(code) | Step::Failed(code) => {
                let known = self.0.codes.get(code).copied().unwrap_or(OTHER);
                let labels = payment_labels(&self.0.network, scheme, step, known);
                self.0.payments.get_or_create(&labels).inc()
            }
        };
    }

    /// Counts what a mined transaction has cost.
    pub fn spent(&self, purpose: GasPurpose, wei: f64) {
        match purpose {
            GasPurpose::Settle => &self.0.settle_gas,
            GasPurpose::Wasted => &self.0.wasted_gas,
            GasPurpose::Approvals => &self.0.approvals_gas,
        }
        .inc_by(wei);
    }

    /// Counts blocks that were orphaned.
    pub fn reorged(&self, blocks: usize) {
        let blocks = u64::try_from(blocks).unwrap_or(u64::MAX);
        self.0.reorged_blocks.inc_by(blocks);
    }
}
