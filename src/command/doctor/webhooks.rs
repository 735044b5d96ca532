//! Receivers of webhooks that do not take their events.

use crate::command::finding::Finding;
use crate::command::shown::{count, length};
use crate::ledger::Ledger;
use crate::telemetry::causes;

pub(super) async fn examine(ledger: &Ledger) -> Vec<Finding> {
    let failing = match ledger.failing_receivers().await {
        Ok(failing) if failing.is_empty() => {
            return vec![Finding::ok("receivers", "take what is sent to them")];
        }
        Ok(failing) => failing,
        Err(error) => return vec![Finding::wrong("receivers", causes(&error))],
    };
    let findings = failing.into_iter().map(|one| {
        let says = format!(
            "{} has not taken {} for {}: {}",
            one.receiver,
            count(one.waiting, "event"),
            length(one.since),
            one.problem
        );
        let fix = format!(
            "see what it answers: `x402d webhooks deliveries {}`; events wait for it for three days",
            one.receiver
        );
        Finding::warning("receivers", says, &fix)
    });
    findings.collect()
}
