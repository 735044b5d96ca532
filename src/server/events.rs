//! Keeps the feed of events: reads it for the streams of this process, and deletes old ones.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{FORGET_INTERVAL, until};
use crate::http::EventFeed;
use crate::ledger::Ledger;
use crate::settlement::{Levels, ServedNetwork, Supervisor, Task};
use crate::telemetry::causes;
use crate::telemetry::metrics::Metrics;
use crate::webhooks::Webhooks;

/// Begins to read new events for the streams of this process, and to send them to receivers.
///
/// # Errors
/// The TLS of this machine cannot be used.
pub(super) fn keep(
    supervisor: &Supervisor,
    stopped: &CancellationToken,
    (ledger, metrics): (&Ledger, &Metrics),
) -> Result<EventFeed, reqwest::Error> {
    let feed = EventFeed::default();
    let webhooks = Webhooks::new(ledger.clone(), metrics.clone())?;
    let stop = stopped.clone();
    supervisor.keep_running(Task::of_process("webhooks"), move || {
        Some(until(&stop, webhooks.clone().run()))
    });
    let (stop, handle, reading) = (stopped.clone(), ledger.clone(), feed.clone());
    supervisor.keep_running(Task::of_process("events"), move || {
        Some(until(&stop, reading.clone().run(handle.clone())))
    });
    let (stop, handle) = (stopped.clone(), ledger.clone());
    supervisor.keep_running(Task::of_process("old events"), move || {
        Some(until(&stop, keep_order(handle.clone())))
    });
    Ok(feed)
}

/// Has changes of balances, networks and budgets told.
pub(super) fn keep_levels(
    supervisor: &Supervisor,
    stopped: &CancellationToken,
    (ledger, served_networks): (&Ledger, &[Arc<ServedNetwork>]),
) {
    let (stop, ledger, networks) = (stopped.clone(), ledger.clone(), served_networks.to_vec());
    supervisor.keep_running(Task::of_process("levels"), move || {
        let levels = Levels::new(ledger.clone(), networks.clone());
        Some(until(&stop, levels.run()))
    });
}

/// Gives the events of a ledger that was restored into another server their places, then deletes old ones, a group at a time.
async fn keep_order(ledger: Ledger) {
    match ledger.place_restored_events().await {
        Ok(0) => {}
        Ok(placed) => tracing::warn!(
            events = placed,
            "events placed anew: the ledger was restored into another server, and readers of /events get them again"
        ),
        // The supervisor begins anew after an end.
        Err(error) => {
            tracing::warn!(error = causes(&error), "restored events not placed");
            return;
        }
    }
    let mut interval = tokio::time::interval(FORGET_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = ledger.forget_events().await {
            tracing::warn!(error = causes(&error), "old events not deleted");
        }
        if let Err(error) = ledger.forget_deliveries().await {
            tracing::warn!(error = causes(&error), "old deliveries not deleted");
        }
    }
}
