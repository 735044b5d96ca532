//! Payments that moved nothing and still could: their authorizations are signed, and anybody may submit them. Where somebody did, the
//! payment is settled after all.

use std::time::Duration;

use tokio::time::Instant;

use crate::chain::RpcError;
use crate::chain::authorization::AuthorizationUse;
use crate::ledger::LedgerError;
use crate::payment::{Location, Method, Payment};
use crate::settlement::Site;

/// How often they are looked for.
const INTERVAL: Duration = Duration::from_secs(30);
/// How many at a time: the newest.
const LOOKED_FOR_MAX: i64 = 200;

/// When to look, and for what.
#[derive(Debug, Default)]
pub(super) struct Unmoved {
    looked: Option<Instant>,
    /// Blocks have left the chain since: what was proven in them is not proven any more.
    reorganised: bool,
}

/// The look did not succeed; the next one will.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotNow {
    /// The chain cannot be asked.
    #[error(transparent)]
    Chain(#[from] RpcError),
    /// The ledger cannot be asked.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Unmoved {
    pub(super) fn note_reorganisation(&mut self) {
        self.reorganised = true;
    }

    /// Looks, when it is time.
    pub(super) async fn look(&mut self, site: &Site, head: u64) -> Result<(), NotNow> {
        let due = self.looked.is_none_or(|last| last.elapsed() >= INTERVAL);
        if !due && !self.reorganised {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let network = site.policy.network;
        let payments = site
            .ledger
            .unmoved(network, self.reorganised, LOOKED_FOR_MAX)
            .await?;
        let (by_token, by_permit2): (Vec<_>, Vec<_>) = payments
            .iter()
            .partition(|payment| payment.method == Method::Eip3009);
        let mut moved = moved_by_tokens(site, &by_token, head).await?;
        moved.extend(moved_by_permit2(site, &by_permit2, head).await?);
        let mut waits_for_depth = false;
        for (payment, location) in moved {
            waits_for_depth |= !settle(site, payment, &location, head).await?;
        }
        self.reorganised &= waits_for_depth;
        Ok(())
    }
}

/// What tokens say of authorizations: one question for all of them.
async fn moved_by_tokens<'a>(
    site: &Site,
    payments: &[&'a Payment],
    head: u64,
) -> Result<Vec<(&'a Payment, Location)>, NotNow> {
    let mut moved = Vec::new();
    if payments.is_empty() {
        return Ok(moved);
    }
    let signed = payments
        .iter()
        .map(|payment| (payment.asset, &payment.authorization));
    let signed: Vec<_> = signed.collect();
    for log in site.rpc.uses(&signed, head).await? {
        let of_log = |payment: &&&Payment| {
            let terms = &payment.authorization;
            log.address == payment.asset
                && log.topics.get(1..) == Some(&[terms.from.into_word(), terms.nonce])
        };
        if let Some(payment) = payments.iter().find(of_log) {
            let (asset, terms) = (payment.asset, &payment.authorization);
            let used = site.rpc.use_in(asset, terms, log.transaction_hash).await?;
            if let AuthorizationUse::Transferred { location, .. } = used {
                moved.push((*payment, location));
            }
        }
    }
    Ok(moved)
}

/// What Permit2 says: one question for all nonces, and a search for each that is used.
async fn moved_by_permit2<'a>(
    site: &Site,
    payments: &[&'a Payment],
    head: u64,
) -> Result<Vec<(&'a Payment, Location)>, NotNow> {
    let mut moved = Vec::new();
    if payments.is_empty() {
        return Ok(moved);
    }
    let signed: Vec<_> = payments.iter().map(|payment| payment.signed()).collect();
    let used = site.rpc.used_at_permit2(&signed).await?;
    let tokens = site.policy.tokens();
    for (payment, _) in payments.iter().zip(used).filter(|(_, used)| *used) {
        let used = site
            .rpc
            .authorization_use(payment.signed(), head, &tokens)
            .await?;
        if let AuthorizationUse::Transferred { location, .. } = used {
            moved.push((*payment, location));
        }
    }
    Ok(moved)
}

/// Settles a payment whose money a transaction of somebody else's has moved. `false`: that is not deep enough yet.
async fn settle(
    site: &Site,
    payment: &Payment,
    location: &Location,
    head: u64,
) -> Result<bool, NotNow> {
    let deep = location.is_deep(head, payment.confirmations);
    if site
        .ledger
        .settled_by_others(payment.id, location, deep)
        .await?
    {
        tracing::warn!(payment.id = %payment.id, transaction = %location.transaction, "somebody else submitted the authorization of a payment that had been given up; it is settled after all");
        site.note_shallow();
        site.waiters.wake([payment.id]);
    }
    Ok(deep)
}
