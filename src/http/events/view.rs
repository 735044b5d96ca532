//! An event as readers see it.

use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::ledger::{EventType, FeedEvent};
use crate::protocol::assets::money;

/// Something that happened.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// The same whenever the event is told.
    pub id: String,
    /// Such as `payment.settled`; the part before the dot is what it concerns.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, RFC 3339.
    pub at: String,
    /// Network in CAIP-2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The ledger's id of the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment: Option<String>,
    /// Address of the payer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// Address of the payee.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payee: Option<String>,
    /// Address of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset: Option<String>,
    /// In atomic units.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
    /// As people write it, such as `0.01 USDC`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount_shown: Option<String>,
    /// Hash of the payment's transaction at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// The code of a refusal or failure, or the explanation of a quarantine, stop or pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of `payment.granted`: the id of the request that was told success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Address of the signer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Of `key.…`: the id of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of `budget.…`: whose budget it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
}

impl From<&FeedEvent> for EventView {
    fn from(event: &FeedEvent) -> Self {
        let payment = event.payment.as_ref();
        let (reason, request_id) = match event.kind {
            EventType::GRANTED => (None, event.reason.clone()),
            _ => (event.reason.clone(), None),
        };
        let is_key = event.kind.name().starts_with("key.");
        let subject = |wanted: bool| event.subject.clone().filter(|_| wanted);
        Self {
            id: event.public_id(),
            kind: event.kind.name().to_owned(),
            at: event.at.format(&Rfc3339).unwrap_or_default(),
            network: event.network.clone(),
            payment: payment.map(|payment| payment.id.to_string()),
            payer: payment.map(|payment| payment.payer.clone()),
            payee: payment.map(|payment| payment.payee.clone()),
            asset: payment.map(|payment| payment.asset.clone()),
            amount: payment.map(|payment| payment.amount.clone()),
            amount_shown: payment.map(|payment| {
                let network = event.network.as_deref().unwrap_or_default();
                money(network, &payment.asset, &payment.amount)
            }),
            transaction: event.transaction.map(|hash| hash.to_string()),
            reason,
            request_id,
            signer: event.signer.clone(),
            key: subject(is_key),
            budget: subject(!is_key),
        }
    }
}
