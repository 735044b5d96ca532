//! Payments as a table and as JSON.

use serde::Serialize;

use crate::command::shown::{aligned, clock_time, moment, network_name, row};
use crate::ledger::Entry;
use crate::protocol::Network;
use crate::protocol::assets::money;

/// A payment, as `--json` has it; names as in the API.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentView {
    id: String,
    created_at: String,
    updated_at: String,
    state: String,
    network: String,
    asset: String,
    payer: String,
    payee: String,
    /// In atomic units.
    amount: String,
    /// For people, such as `0.01 USDC`.
    amount_shown: String,
    rail: String,
    reason: Option<String>,
    message: Option<String>,
    transaction: Option<String>,
    explorer_url: Option<String>,
    block_number: Option<u64>,
    block_time: Option<String>,
    resource: Option<String>,
    session: Option<String>,
    client_reference: Option<String>,
    caller: Option<String>,
    unmatched: Option<String>,
    quarantine: Option<String>,
}

impl PaymentView {
    pub(super) fn new(entry: &Entry) -> Self {
        let session = entry.session.as_ref();
        Self {
            id: entry.id.to_string(),
            created_at: moment(entry.created_at),
            updated_at: moment(entry.updated_at),
            state: entry.state.clone(),
            network: entry.network.clone(),
            asset: entry.asset.clone(),
            payer: entry.payer.clone(),
            payee: entry.payee.clone(),
            amount: entry.amount.clone(),
            amount_shown: money(&entry.network, &entry.asset, &entry.amount),
            rail: entry.rail.clone(),
            reason: entry.reason.clone(),
            message: entry.message.clone(),
            transaction: entry.transaction.map(|hash| hash.to_string()),
            explorer_url: explorer_url(entry),
            block_number: entry.block_number,
            block_time: entry.block_time.map(moment),
            resource: entry.resource.clone(),
            session: session.map(|session| session.id.clone()),
            client_reference: session.and_then(|session| session.client_reference.clone()),
            caller: entry.caller.clone(),
            unmatched: entry.unmatched.clone(),
            quarantine: entry.quarantine.clone(),
        }
    }
}

/// The explorer's page of the payment's transaction.
pub(super) fn explorer_url(entry: &Entry) -> Option<String> {
    let network: Network = entry.network.parse().ok()?;
    network.explorer_url(entry.transaction?)
}

/// The name of a payment's network.
pub(super) fn network_of(entry: &Entry) -> String {
    let network = entry.network.parse().ok();
    network.map_or_else(|| entry.network.clone(), network_name)
}

/// A line for each payment.
pub(super) fn table(entries: &[Entry]) -> String {
    let mut rows = vec![row([
        "ACCEPTED (UTC)",
        "ID",
        "STATE",
        "AMOUNT",
        "NETWORK",
        "PAYER",
        "PAYEE",
        "WHY",
    ])];
    rows.extend(entries.iter().map(|entry| {
        let quarantined = entry.quarantine.as_ref();
        let quarantined = quarantined.map(|why| format!("quarantined: {why}"));
        let why = quarantined.or_else(|| entry.reason.clone());
        vec![
            clock_time(entry.created_at),
            entry.id.to_string(),
            entry.state.clone(),
            money(&entry.network, &entry.asset, &entry.amount),
            network_of(entry),
            shortened(&entry.payer),
            shortened(&entry.payee),
            why.unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    aligned(&rows)
}

/// An address as `0x1234…cdef`; `show` has the whole.
fn shortened(address: &str) -> String {
    match (
        address.get(..6),
        address.get(address.len().saturating_sub(4)..),
    ) {
        (Some(start), Some(end)) if address.len() > 12 => format!("{start}…{end}"),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shortened() {
        let address = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
        assert_eq!(shortened(address), "0x036C…CF7e");
        assert_eq!(shortened("0x12"), "0x12");
    }
}
