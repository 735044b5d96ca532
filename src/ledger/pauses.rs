//! Pauses: the operator takes a lane out of work and puts it back.

use time::OffsetDateTime;

use super::{LaneKey, LaneView, Ledger, LedgerError};

/// The operator's pause of a lane: no new payments are taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub at: OffsetDateTime,
    /// The lane still sends what is queued. Otherwise it writes no new transactions.
    pub draining: bool,
}

/// The queued payments that a lane can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Those that name its signer, so that no other lane can send them.
    pub naming: u64,
    /// All of them.
    pub all: u64,
    /// Whether another lane of the network is at work.
    pub others_work: bool,
}

impl LaneView {
    /// Its state in a word: `working`, `draining`, `paused`, `stopped`, or `unowned` when no process has it.
    pub fn state(&self, now: OffsetDateTime) -> &'static str {
        match self.pause {
            _ if self.stopped_reason.is_some() => "stopped",
            Some(pause) if pause.draining => "draining",
            Some(_) => "paused",
            None if self.owner.is_none() || self.lease_until <= now => "unowned",
            None => "working",
        }
    }
}

impl Ledger {
    /// Pauses a lane. A new epoch refuses every transaction that its owner has not committed yet, so nothing is written after this; a lane
    /// that drains keeps its epoch. `false`: it is paused in this way already, or there is none.
    pub async fn pause_lane(&self, lane: LaneKey, draining: bool) -> Result<bool, LedgerError> {
        let paused = sqlx::query!(
            "update lanes set paused_at = coalesce(paused_at, now()), draining = $3, epoch = epoch + case when $3 then 0 else 1 end
            where network = $1 and signer = $2 and (paused_at is null or draining <> $3)",
            lane.network.to_string(),
            lane.signer.as_slice(),
            draining,
        )
        .execute(&self.leases)
        .await?;
        Ok(paused.rows_affected() == 1)
    }

    /// Ends the pause of a lane, and the stop whose reason the operator has seen. `false`: it is neither paused nor stopped, or was stopped
    /// for another reason meanwhile, or there is none.
    pub async fn resume_lane(
        &self,
        lane: LaneKey,
        stopped_reason: Option<&str>,
    ) -> Result<bool, LedgerError> {
        let resumed = sqlx::query!(
            "update lanes set stopped_reason = null, paused_at = null, draining = false
            where network = $1 and signer = $2 and (stopped_reason is not null or paused_at is not null)
                and stopped_reason is not distinct from $3",
            lane.network.to_string(),
            lane.signer.as_slice(),
            stopped_reason,
        )
        .execute(&self.leases)
        .await?;
        Ok(resumed.rows_affected() == 1)
    }

    /// The queued payments that a lane can send. Those in quarantine are not among them: nobody sends them.
    pub async fn waiting_for(&self, lane: LaneKey) -> Result<Waiting, LedgerError> {
        let row = sqlx::query!(
            r#"select count(*) filter (where signer = $2) as "naming!", count(*) as "all!", exists (
                select from lanes
                where network = $1 and signer <> $2 and owner is not null and lease_until > now()
                    and stopped_reason is null and paused_at is null
            ) as "others_work!"
            from payments where network = $1 and state = 'queued' and quarantined_at is null and (signer is null or signer = $2)"#,
            lane.network.to_string(),
            lane.signer.as_slice(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Waiting {
            naming: u64::try_from(row.naming).unwrap_or_default(),
            all: u64::try_from(row.all).unwrap_or_default(),
            others_work: row.others_work,
        })
    }
}

#[cfg(test)]
mod tests;
