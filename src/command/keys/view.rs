//! How keys are shown: as a table, as lines, and as JSON. Never with a secret, which is not known.

use serde::Serialize;
use time::OffsetDateTime;

use crate::command::shown::{aligned, moment};
use crate::payment::Key;
use crate::protocol::response::checksummed;

/// A key, as `--json` has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyView {
    id: String,
    name: String,
    /// `good`, `expired` or `revoked`.
    state: &'static str,
    scopes: Vec<String>,
    payees: Vec<String>,
    /// CAIP-2; empty: every network.
    networks: Vec<String>,
    gas_wei_per_day: Option<String>,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    /// Until when the secret before the last rotation is good.
    old_secret_until: Option<String>,
}

impl KeyView {
    pub(super) fn new(key: &Key, earlier: Option<OffsetDateTime>, now: OffsetDateTime) -> Self {
        let state = match key.revoked_at {
            Some(_) => "revoked",
            None if key.is_live(now) => "good",
            None => "expired",
        };
        Self {
            id: key.id.to_string(),
            name: key.name.clone(),
            state,
            scopes: key.scopes.iter().map(ToString::to_string).collect(),
            payees: key.payees.iter().copied().map(checksummed).collect(),
            networks: key.networks.iter().map(ToString::to_string).collect(),
            gas_wei_per_day: key.gas_wei_per_day.map(|wei| wei.to_string()),
            created_at: moment(key.created_at),
            expires_at: key.expires_at.map(moment),
            revoked_at: key.revoked_at.map(moment),
            old_secret_until: earlier.filter(|until| *until > now).map(moment),
        }
    }

    /// One property on each line.
    pub(super) fn lines(&self) -> String {
        let or =
            |text: &Option<String>, absent: &str| text.clone().unwrap_or_else(|| absent.to_owned());
        let joined = |list: &[String], empty: &str| {
            if list.is_empty() {
                empty.to_owned()
            } else {
                list.join(", ")
            }
        };
        let rows = [
            ("id", self.id.clone()),
            ("name", self.name.clone()),
            ("state", self.state.to_owned()),
            ("scopes", self.scopes.join(", ")),
            ("payees", joined(&self.payees, "-")),
            ("networks", joined(&self.networks, "every one")),
            ("wei of gas a day", or(&self.gas_wei_per_day, "no limit")),
            ("created", self.created_at.clone()),
            ("expires", or(&self.expires_at, "never")),
            ("revoked", or(&self.revoked_at, "-")),
            ("old secret until", or(&self.old_secret_until, "-")),
        ];
        let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
        aligned(&rows)
    }
}

/// A line for each key.
pub(super) fn table(keys: &[KeyView]) -> String {
    let titles = [
        "ID", "NAME", "STATE", "SCOPES", "NETWORKS", "EXPIRES", "PAYEES",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        let day = |text: &String| text.split('T').next().unwrap_or_default().to_owned();
        let expires = key.expires_at.as_ref().map(day);
        let networks = match key.networks.as_slice() {
            [] => "every one".to_owned(),
            some => some.join(","),
        };
        vec![
            key.id.clone(),
            key.name.clone(),
            key.state.to_owned(),
            key.scopes.join(","),
            networks,
            expires.unwrap_or_else(|| "never".to_owned()),
            key.payees.join(","),
        ]
    }));
    aligned(&rows)
}
