//! The lane's lease, renewed beside the lane's other work, and timers of the lane.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Lane;
use crate::ledger::{LaneLease, Renewal};
use crate::telemetry::causes;

/// A running lease renewal; dropping it ends the renewal.
#[derive(Debug, Default)]
pub(super) struct LeaseRenewal {
    /// Cancelled when the lane is lost or its row has changed.
    pub(super) lost: CancellationToken,
    /// Notified when transactions of the lane were opened again, by any process.
    pub(super) reopened: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Lane {
    /// Renews the lease until the returned value is dropped. A process without RPC answers, or with more lanes than its share, gives the
    /// lane up instead.
    pub(super) fn renew_lease(&self, lease: LaneLease) -> LeaseRenewal {
        let renewal = LeaseRenewal::default();
        let (lost, reopened) = (renewal.lost.clone(), Arc::clone(&renewal.reopened));
        let (served, id) = (Arc::clone(&self.served), self.id);
        let (mut lease, shared) = (lease, self.shared_lanes());
        let renewing = async move {
            let mut interval = every(served.timing.lease_renewal);
            loop {
                interval.tick().await;
                let share = (shared, served.is_disconnected());
                match served.ledger.renew_lane(id, lease, share).await {
                    Ok(Renewal::Kept) => {}
                    Ok(Renewal::Reopened(times)) => {
                        lease.reopened = times;
                        reopened.notify_one();
                    }
                    Ok(Renewal::Surplus) => break,
                    Ok(Renewal::Changed) => {
                        tracing::warn!(
                            "lane changed in the ledger: taken by another process, stopped, paused or resumed; claiming it again"
                        );
                        lost.cancel();
                        return;
                    }
                    // The lane is still ours: the epoch guards every write, and the next renewal may succeed.
                    Err(error) => {
                        tracing::warn!(error = causes(&error), "lane lease not renewed: retrying");
                    }
                }
            }
            tracing::info!(
                "lane given up: another process has fewer lanes, or this one has no RPC answer"
            );
            if let Err(error) = served.ledger.release_lane(id, lease).await {
                tracing::warn!(
                    error = causes(&error),
                    "lane not released: its lease runs out by itself"
                );
            }
            lost.cancel();
        };
        let mut task = JoinSet::new();
        task.spawn(renewing.in_current_span());
        LeaseRenewal {
            _task: task,
            ..renewal
        }
    }
}

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
