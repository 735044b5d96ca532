//! Addresses that the operator refuses: a file, which is read again when it changes, and a service of the operator's.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use alloy::primitives::Address;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::json;

use crate::facilitator::gate::Asked;
use crate::facilitator::{Error, Unavailable};
use crate::payment::DenyList;
use crate::protocol::response::checksummed;
use crate::protocol::{Reason, Rejection};
use crate::telemetry::causes;

/// How often the file is compared with what was read.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the policy service may take.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// The deny list in a file.
#[derive(Debug)]
pub(super) struct DeniedFile {
    path: PathBuf,
    list: RwLock<Arc<DenyList>>,
}

impl DeniedFile {
    pub(super) fn new(path: PathBuf, list: DenyList) -> Self {
        Self {
            path,
            list: RwLock::new(Arc::new(list)),
        }
    }

    fn list(&self) -> Arc<DenyList> {
        Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again whenever it changes. While it cannot be read, the addresses read before stay denied.
    pub(super) async fn follow(&self) {
        let (mut read, mut failing) = (None, false);
        loop {
            let stamp = self.stamp().await;
            if stamp.is_none() || stamp != read {
                match self.read().await {
                    Ok(()) => (read, failing) = (stamp, false),
                    Err(why) if !std::mem::replace(&mut failing, true) => {
                        tracing::error!(file = %self.path.display(), why, "deny list not read: the addresses read before stay denied");
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    async fn stamp(&self) -> Option<(SystemTime, u64)> {
        let metadata = tokio::fs::metadata(&self.path).await.ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    async fn read(&self) -> Result<(), String> {
        let text = tokio::fs::read_to_string(&self.path).await;
        let text = text.map_err(|error| error.to_string())?;
        let list = DenyList::parse(&text).map_err(|error| error.to_string())?;
        let addresses = list.len();
        let mut current = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if **current != list {
            *current = Arc::new(list);
            tracing::info!(file = %self.path.display(), addresses, "deny list read");
        }
        Ok(())
    }
}

/// The operator's policy service: asked for each new payment.
#[derive(Debug)]
pub(super) struct PolicyService {
    pub(super) url: Url,
    pub(super) http: Client,
    /// Payments are admitted while it does not answer.
    pub(super) is_fail_open: bool,
}

/// Its answer. Anything else counts as none.
#[derive(Debug, Deserialize)]
struct Verdict {
    allowed: bool,
}

impl PolicyService {
    /// # Errors
    /// A rejection, or [`Unavailable::PolicyService`] when the service does not answer and payments are refused then.
    async fn ask(&self, asked: &Asked<'_>) -> Result<(), Error> {
        match tokio::time::timeout(ANSWER_LIMIT, self.verdict(asked)).await {
            Ok(Ok(Verdict { allowed: true })) => return Ok(()),
            Ok(Ok(Verdict { allowed: false })) => {
                let why = "the operator's policy service refuses this payment";
                return Err(Rejection::new(Reason::AddressDenied, why).into());
            }
            Ok(Err(error)) => {
                let error = error.without_url();
                tracing::warn!(error = causes(&error), "policy service gave no answer");
            }
            Err(_) => tracing::warn!("policy service gave no answer within 500 ms"),
        }
        if self.is_fail_open {
            return Ok(());
        }
        Err(Unavailable::PolicyService.into())
    }

    async fn verdict(&self, asked: &Asked<'_>) -> reqwest::Result<Verdict> {
        let question = json!({
            "network": asked.served.policy.network.to_string(),
            "asset": checksummed(asked.asset),
            "payer": checksummed(asked.payer),
            "payee": checksummed(asked.payee),
            "amount": asked.amount,
        });
        let sent = self.http.post(self.url.clone()).json(&question).send();
        sent.await?.error_for_status()?.json().await
    }
}

/// What refuses addresses.
#[derive(Debug, Default)]
pub(super) struct Denials {
    pub(super) file: Option<DeniedFile>,
    pub(super) service: Option<PolicyService>,
}

impl Denials {
    /// Refuses a denied payer or payee.
    pub(super) async fn check(&self, asked: &Asked<'_>) -> Result<(), Error> {
        if let Some(file) = &self.file {
            let list = file.list();
            let parties = [("payer", asked.payer), ("payee", asked.payee)];
            if let Some((party, address)) = parties
                .into_iter()
                .find(|(_, address)| list.contains(*address))
            {
                return Err(denied(party, address).into());
            }
        }
        match &self.service {
            Some(service) => service.ask(asked).await,
            None => Ok(()),
        }
    }
}

fn denied(party: &str, address: Address) -> Rejection {
    let why = format!("the {party} {address} is on this facilitator's deny list");
    Rejection::new(Reason::AddressDenied, why)
}
