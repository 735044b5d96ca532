//! Counters and histograms of this process, in the text format of Prometheus.
//!
//! Series of what happens often are made at the start, so that counting is one atomic addition. Labels come from networks, signers and
//! endpoints that are configured, and from codes of this program, never from a request.

mod endpoint;
mod limits;
mod network;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use endpoint::{EndpointMetrics, RpcOutcome};
pub use limits::{Limit, reached};
pub use network::{GasPurpose, NetworkMetrics, Step};
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

use endpoint::{RpcSeconds, rpc_seconds};
use network::NetworkFamilies;

/// Upper bounds of the buckets of durations, in seconds.
const SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// The label of a code that this version does not know.
const OTHER: &str = "other";

type Labels = Vec<(&'static str, String)>;

/// What this process has counted since its start. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    networks: NetworkFamilies,
    codes: Arc<HashSet<&'static str>>,
    refusals: HashMap<&'static str, Counter>,
    log_lines_dropped: Counter,
    deliveries: [Counter; 2],
    rpc_seconds: RpcSeconds,
    verify_seconds: Histogram,
    settle_seconds: Histogram,
}

impl Metrics {
    /// `codes`: every code with which this version refuses.
    pub fn new(codes: impl Iterator<Item = &'static str>) -> Self {
        let mut registry = Registry::with_prefix("x402d");
        let build: Family<Labels, Gauge> = Family::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        build.get_or_create(&version).set(1);
        registry.register("build_info", "The version of this process", build);
        let networks = NetworkFamilies::registered(&mut registry);
        let codes: HashSet<_> = codes.collect();
        let by_code: Family<Labels, Counter> = Family::default();
        let refusals = codes.iter().copied().chain([OTHER]).map(|code| {
            let labels = vec![("code", code.to_owned())];
            (code, by_code.get_or_create_owned(&labels))
        });
        let refusals = refusals.collect();
        registry.register("refusals", "Requests that were refused, by code", by_code);
        let log_lines_dropped = Counter::default();
        registry.register(
            "log_lines_dropped",
            "Lines of the log that were dropped because its reader did not keep up",
            log_lines_dropped.clone(),
        );
        let deliveries: Family<Labels, Counter> = Family::default();
        let delivered = ["delivered", "failed"]
            .map(|outcome| vec![("outcome", outcome.to_owned())])
            .map(|labels| deliveries.get_or_create_owned(&labels));
        registry.register(
            "deliveries",
            "Tries to deliver an event to a receiver of webhooks",
            deliveries,
        );
        let rpc_seconds = rpc_seconds();
        registry.register(
            "rpc_seconds",
            "How long calls of RPC endpoints took",
            rpc_seconds.clone(),
        );
        let verify_seconds = Histogram::new(SECONDS);
        registry.register(
            "verify_seconds",
            "How long verifies took",
            verify_seconds.clone(),
        );
        let settle_seconds = Histogram::new(SECONDS);
        registry.register(
            "settle_seconds",
            "How long settles took, with the wait for the chain",
            settle_seconds.clone(),
        );
        Self(Arc::new(Inner {
            registry,
            networks,
            codes: Arc::new(codes),
            refusals,
            log_lines_dropped,
            deliveries: delivered,
            rpc_seconds,
            verify_seconds,
            settle_seconds,
        }))
    }

    /// The counters of a network. Made once, at the start.
    pub fn of_network(&self, network: &str, schemes: &[&'static str]) -> NetworkMetrics {
        let codes = Arc::clone(&self.0.codes);
        self.0.networks.of(network, schemes, codes)
    }

    /// The times of an endpoint of a network, by its host.
    pub fn of_endpoint(&self, network: &str, host: &str) -> EndpointMetrics {
        EndpointMetrics {
            network: network.to_owned(),
            host: host.to_owned(),
            seconds: self.0.rpc_seconds.clone(),
        }
    }

    /// Counts a try to deliver an event.
    pub fn tried_delivery(&self, delivered: bool) {
        let [taken, failed] = &self.0.deliveries;
        if delivered { taken } else { failed }.inc();
    }

    /// Counts a refused request.
    pub fn refused(&self, code: &'static str) {
        let refusals = &self.0.refusals;
        if let Some(counter) = refusals.get(code).or_else(|| refusals.get(OTHER)) {
            counter.inc();
        }
    }

    /// Records how long a verify took.
    pub fn verified(&self, took: Duration) {
        self.0.verify_seconds.observe(took.as_secs_f64());
    }

    /// Records how long a settle took.
    pub fn settled(&self, took: Duration) {
        self.0.settle_seconds.observe(took.as_secs_f64());
    }

    /// Everything that was counted, and `gauges`.
    pub fn text(&self, gauges: Gauges) -> Result<String, fmt::Error> {
        let dropped = super::log_lines_dropped();
        self.0.log_lines_dropped.inner().store(dropped, Relaxed);
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.0.registry)?;
        let mut registry = Registry::with_prefix("x402d");
        for (name, help, family) in gauges.0 {
            registry.register(name, help, family);
        }
        registry.register(
            "limits_reached",
            "How often a limit was reached: something was turned away, or gave up waiting",
            limits::counters(),
        );
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Values that are read when they are asked for.
#[derive(Debug, Default)]
pub struct Gauges(Vec<(&'static str, &'static str, ValuesByLabel)>);

type ValuesByLabel = Family<Labels, Gauge<f64, AtomicU64>>;

impl Gauges {
    /// Adds a value. The labels of a name are always the same.
    pub fn set(&mut self, name: &'static str, help: &'static str, labels: &Labels, value: f64) {
        let known = self.0.iter().find(|(known, ..)| *known == name);
        if let Some((.., family)) = known {
            family.get_or_create(labels).set(value);
            return;
        }
        let family = ValuesByLabel::default();
        family.get_or_create(labels).set(value);
        self.0.push((name, help, family));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_code_is_counted_without_a_label_of_its_own() {
        let metrics = Metrics::new(["known"].into_iter());
        metrics.refused("known");
        metrics.refused("made_up");
        let text = metrics.text(Gauges::default()).unwrap();
        assert!(
            text.contains("x402d_refusals_total{code=\"known\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("x402d_refusals_total{code=\"other\"} 1"),
            "{text}"
        );
        assert!(!text.contains("made_up"), "{text}");
    }

    #[test]
    fn payments_are_counted_by_scheme_and_known_codes() {
        let metrics = Metrics::new(["known"].into_iter());
        let network = metrics.of_network("eip155:1", &["exact"]);
        network.count("exact", Step::Accepted);
        network.count("exact", Step::Failed("known"));
        network.count("exact", Step::Refused("made_up"));
        network.count("made_up", Step::Accepted);
        network.spent(GasPurpose::Wasted, 2e20);
        let text = metrics.text(Gauges::default()).unwrap();
        let series = |outcome: &str, code: &str| {
            format!(
                "x402d_payments_total{{network=\"eip155:1\",scheme=\"exact\",outcome=\"{outcome}\",code=\"{code}\"}} 1"
            )
        };
        for series in [
            series("accepted", ""),
            series("failed", "known"),
            series("refused", OTHER),
        ] {
            assert!(text.contains(&series), "{series}: {text}");
        }
        assert!(!text.contains("made_up"), "{text}");
        let wasted = text.lines().find(|line| line.contains("\"wasted\""));
        let wasted: f64 = wasted.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(wasted > 1.9e20, "{text}");
    }

    #[test]
    fn gauges_of_one_name_share_a_head() {
        let mut gauges = Gauges::default();
        for network in ["a", "b"] {
            gauges.set("queue", "Help", &vec![("network", network.to_owned())], 2.0);
        }
        let text = Metrics::new(std::iter::empty()).text(gauges).unwrap();
        assert_eq!(
            text.matches("# TYPE x402d_queue gauge").count(),
            1,
            "{text}"
        );
        assert!(text.contains("x402d_queue{network=\"b\"} 2"), "{text}");
    }
}
