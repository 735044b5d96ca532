//! How long the calls of one RPC endpoint took.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::Labels;

/// Upper bounds of the buckets of an RPC call, in seconds: there are many of these histograms.
const SECONDS: [f64; 7] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

pub(super) type RpcSeconds = Family<Labels, Histogram, fn() -> Histogram>;

pub(super) fn rpc_seconds() -> RpcSeconds {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

/// What became of an RPC call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpcOutcome {
    /// A result.
    Ok,
    /// A JSON-RPC error, such as that of a call that reverts.
    Error,
    /// The endpoint said that it was asked too much.
    Limited,
    /// No answer in time, a broken connection, another HTTP status, or something that cannot be read.
    Failed,
}

impl RpcOutcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Limited => "limited",
            Self::Failed => "failed",
        }
    }
}

/// The times of one endpoint. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EndpointMetrics {
    pub(super) network: String,
    /// Of its URL nothing but the host: path, query and user name may be secrets.
    pub(super) host: String,
    pub(super) seconds: RpcSeconds,
}

impl EndpointMetrics {
    /// Records a call. Methods are those of this program.
    pub fn called(&self, method: &'static str, outcome: RpcOutcome, took: Duration) {
        let labels = vec![
            ("network", self.network.clone()),
            ("endpoint", self.host.clone()),
            ("method", method.to_owned()),
            ("outcome", outcome.name().to_owned()),
        ];
        self.seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }
}
