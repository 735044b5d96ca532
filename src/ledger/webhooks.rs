//! Webhooks: receivers of events, and deliveries to them. Each receiver has its place in the feed; behind it the deliveries are written by
//! whichever process is first.

use std::time::Duration;

use alloy::primitives::Address;
use secrecy::{ExposeSecret as _, SecretSlice};
use time::OffsetDateTime;
use uuid::Uuid;

use super::events::{EventPosition, EventTypes, FeedEvent};
use super::row::address;
use super::{Ledger, LedgerError};

/// Events that are made into deliveries at a time.
const EVENTS_READ: u16 = 500;
/// Rows that one statement deletes.
const GROUP_MAX: i64 = 1000;
/// So long no other process sends what this one has claimed, unless the claim is renewed. What a killed process has claimed is this late.
const CLAIM_SECONDS: f64 = 1.2;

/// Where events are sent.
#[derive(Debug)]
pub struct Receiver {
    pub id: Uuid,
    pub url: String,
    /// Names and groups of types.
    pub types: String,
    /// Only payments to this payee.
    pub payee: Option<Address>,
    pub secret: SecretSlice<u8>,
    /// Its host may have an address that is not public.
    pub may_be_private: bool,
    pub created_at: OffsetDateTime,
    /// Deliveries that wait, and that were given up.
    pub waiting: i64,
    pub dead: i64,
}

impl Receiver {
    /// Whether an event is for this receiver.
    fn is_told(&self, event: &FeedEvent) -> bool {
        let types = self.types.parse::<EventTypes>();
        let payee = event
            .payment
            .as_ref()
            .and_then(|payment| payment.payee_address);
        types.is_ok_and(|types| types.contains(event.kind))
            && self.payee.is_none_or(|wanted| payee == Some(wanted))
    }
}

/// A delivery that this process sends now.
#[derive(Debug)]
pub struct ClaimedDelivery {
    pub id: i64,
    /// `webhook-id`: the event's, or that of a test.
    pub message_id: String,
    pub body: String,
    /// Number of tries with this one.
    pub tries: i32,
}

/// What became of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// The receiver has taken it.
    Delivered { status: u16 },
    Failed {
        status: Option<u16>,
        problem: String,
    },
}

/// A receiver that does not take what is sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingReceiver {
    pub receiver: Uuid,
    /// Deliveries that were tried and are tried again.
    pub waiting: u64,
    /// For how long the oldest of them.
    pub since: Duration,
    /// What was wrong with the newest one.
    pub problem: String,
}

/// A delivery as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: i64,
    pub receiver: Uuid,
    pub message_id: String,
    pub state: String,
    pub tries: i32,
    pub next_try_at: OffsetDateTime,
    pub created_at: OffsetDateTime,
    pub status: Option<i32>,
    pub problem: Option<String>,
}

impl Ledger {
    /// Adds a receiver of what happens from now on.
    pub async fn add_receiver(&self, new: &Receiver) -> Result<(), LedgerError> {
        let place = self.event_place(0).await?;
        sqlx::query!(
            "insert into webhook_receivers (id, url, types, payee, secret, may_be_private, position_xact, position_id)
            values ($1, $2, $3, $4, $5, $6, ($7::text)::xid8, $8)",
            new.id,
            new.url,
            new.types,
            new.payee.as_ref().map(|payee| payee.as_slice()),
            new.secret.expose_secret(),
            new.may_be_private,
            place.xact_text(),
            place.id(),
        )
        .execute(&self.history)
        .await?;
        Ok(())
    }

    /// All receivers, in order of their making.
    pub async fn receivers(&self) -> Result<Vec<Receiver>, LedgerError> {
        let rows = sqlx::query!(
            r#"select id, url, types, payee, secret, may_be_private, created_at,
                (select count(*) from webhook_deliveries d where d.receiver_id = r.id and d.state = 'waiting') as "waiting!",
                (select count(*) from webhook_deliveries d where d.receiver_id = r.id and d.state = 'dead') as "dead!"
            from webhook_receivers r order by created_at, id"#
        )
        .fetch_all(&self.history)
        .await?;
        let receivers = rows.into_iter().map(|row| Receiver {
            id: row.id,
            url: row.url,
            types: row.types,
            payee: row.payee.as_deref().and_then(address),
            secret: row.secret.into(),
            may_be_private: row.may_be_private,
            created_at: row.created_at,
            waiting: row.waiting,
            dead: row.dead,
        });
        Ok(receivers.collect())
    }

    /// Removes a receiver with everything that waits for it. `false`: there is none.
    pub async fn remove_receiver(&self, id: Uuid) -> Result<bool, LedgerError> {
        let removed = sqlx::query!("delete from webhook_receivers where id = $1", id)
            .execute(&self.history)
            .await?;
        Ok(removed.rows_affected() == 1)
    }

    /// Writes the deliveries of the events behind a receiver's place. `false`: there are no more of them now.
    pub async fn write_deliveries(
        &self,
        receiver: &Receiver,
        render: impl Fn(&FeedEvent) -> String,
    ) -> Result<bool, LedgerError> {
        let place = sqlx::query!(
            r#"select position_xact::text as "xact!", position_id from webhook_receivers where id = $1"#,
            receiver.id,
        )
        .fetch_optional(&self.history)
        .await?;
        let Some(place) = place else { return Ok(false) };
        let after = EventPosition::new(&place.xact, place.position_id);
        let (events, end, more) = match self.events_after(after, EVENTS_READ).await? {
            Some(page) if page.end == after => return Ok(false),
            Some(page) => (page.events, page.end, page.more),
            None => {
                tracing::error!(receiver = %receiver.id, "webhook: its place in the events is not there any more, because the ledger was restored; it gets what happens from now on, read /events for the rest");
                (Vec::new(), self.event_place(0).await?, false)
            }
        };
        let told: Vec<&FeedEvent> = events
            .iter()
            .filter(|event| receiver.is_told(event))
            .collect();
        let ids: Vec<String> = told.iter().map(|event| event.public_id()).collect();
        let payments = told
            .iter()
            .map(|event| event.payment.as_ref().map(|payment| payment.id.0));
        let payments: Vec<Uuid> = payments.map(Option::unwrap_or_default).collect();
        let bodies: Vec<String> = told.iter().map(|event| render(event)).collect();
        // Of several processes, one moves the place; the others write nothing.
        sqlx::query!(
            "with moved as (
                update webhook_receivers set position_xact = ($2::text)::xid8, position_id = $3
                where id = $1 and position_xact = ($4::text)::xid8 and position_id = $5
                returning id
            )
            insert into webhook_deliveries (receiver_id, message_id, payment_id, body)
            select moved.id, new.message_id, new.payment_id, new.body
            from moved cross join unnest($6::text[], $7::uuid[], $8::text[]) with ordinality as new (message_id, payment_id, body, place)
            order by new.place
            on conflict on constraint webhook_deliveries_one_per_message do nothing",
            receiver.id,
            end.xact_text(),
            end.id(),
            after.xact_text(),
            after.id(),
            &ids,
            &payments,
            &bodies,
        )
        .execute(&self.history)
        .await?;
        Ok(more)
    }

    /// Takes deliveries that are due, for a while: of one payment the first that waits.
    pub async fn claim_deliveries(
        &self,
        receiver: Uuid,
        limit: i64,
    ) -> Result<Vec<ClaimedDelivery>, LedgerError> {
        let mut claimed = sqlx::query_as!(
            ClaimedDelivery,
            "update webhook_deliveries set tries = tries + 1, next_try_at = clock_timestamp() + make_interval(secs => $3),
                first_tried_at = coalesce(first_tried_at, now())
            where id = any(array(
                select w.id from webhook_deliveries w
                where w.receiver_id = $1 and w.state = 'waiting' and w.next_try_at <= now() and (w.payment_id = $4 or not exists (
                    select from webhook_deliveries earlier
                    where earlier.receiver_id = $1 and earlier.payment_id = w.payment_id and earlier.state = 'waiting' and earlier.id < w.id
                ))
                order by w.next_try_at, w.id limit $2 for update skip locked
            ))
            returning id, message_id, body, tries",
            receiver,
            limit,
            CLAIM_SECONDS,
            Uuid::nil(),
        )
        .fetch_all(&self.history)
        .await?;
        claimed.sort_unstable_by_key(|delivery| delivery.id);
        Ok(claimed)
    }

    /// Keeps what this process has claimed a while longer.
    pub async fn renew_claims(&self, claimed: &[ClaimedDelivery]) -> Result<(), LedgerError> {
        let ids: Vec<i64> = claimed.iter().map(|claimed| claimed.id).collect();
        let numbers: Vec<i32> = claimed.iter().map(|claimed| claimed.tries).collect();
        sqlx::query!(
            "update webhook_deliveries d set next_try_at = greatest(d.next_try_at, clock_timestamp() + make_interval(secs => $3))
            from unnest($1::bigint[], $2::integer[]) as claimed (id, number)
            -- Unless another process has claimed it since.
            where d.id = claimed.id and d.tries = claimed.number and d.state = 'waiting'",
            &ids,
            &numbers,
            CLAIM_SECONDS,
        )
        .execute(&self.engine)
        .await?;
        Ok(())
    }

    /// Records what became of tries. After a failure the next one waits twice as long, from one second to eight hours; three days after
    /// the first one the delivery is given up.
    pub async fn record_tries(
        &self,
        tries: &[(&ClaimedDelivery, Tried)],
    ) -> Result<(), LedgerError> {
        let ids: Vec<i64> = tries.iter().map(|(claimed, _)| claimed.id).collect();
        let numbers: Vec<i32> = tries.iter().map(|(claimed, _)| claimed.tries).collect();
        let (mut delivered, mut statuses, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (_, tried) in tries {
            let (is_delivered, status, problem) = match tried {
                Tried::Delivered { status } => (true, *status, ""),
                Tried::Failed { status, problem } => {
                    (false, status.unwrap_or_default(), problem.as_str())
                }
            };
            delivered.push(is_delivered);
            statuses.push(i32::from(status));
            problems.push(problem.to_owned());
        }
        sqlx::query!(
            "with recorded as (
                update webhook_deliveries d set state = now_is.state, ended_at = case when now_is.state <> 'waiting' then now() end,
                    status = now_is.status, problem = now_is.problem,
                    next_try_at = now() + make_interval(secs => least(28800, power(2, least(d.tries, 20) - 1)))
                from (
                    select w.id, tried.number, tried.delivered, nullif(tried.status, 0) as status, nullif(tried.problem, '') as problem, case
                        when tried.delivered then 'delivered'
                        when w.first_tried_at < now() - interval '3 days' then 'dead'
                        else 'waiting'
                    end as state
                    from unnest($1::bigint[], $2::integer[], $3::boolean[], $4::integer[], $5::text[])
                        as tried (id, number, delivered, status, problem)
                    join webhook_deliveries w on w.id = tried.id
                ) now_is
                -- A late answer to an earlier try counts if it took the event.
                where d.id = now_is.id and d.state = 'waiting' and (d.tries = now_is.number or now_is.delivered)
                returning d.id, d.receiver_id, d.payment_id, d.state, d.next_try_at
            )
            -- Those behind it in its payment wait as long as it does. Due, each claim would look at all of them.
            update webhook_deliveries later
            set next_try_at = case when recorded.state = 'waiting' then recorded.next_try_at else now() end
            from recorded
            where later.receiver_id = recorded.receiver_id and later.payment_id = recorded.payment_id and later.payment_id <> $6
                and later.id > recorded.id and later.state = 'waiting' and later.tries = 0
                and case when recorded.state = 'waiting' then later.next_try_at < recorded.next_try_at else later.next_try_at > now() end",
            &ids,
            &numbers,
            &delivered,
            &statuses,
            &problems,
            Uuid::nil(),
        )
        .execute(&self.history)
        .await?;
        Ok(())
    }

    /// The newest deliveries, newest first: of one receiver or of all, all or those that were given up.
    pub async fn deliveries(
        &self,
        receiver: Option<Uuid>,
        (only_dead, limit): (bool, u16),
    ) -> Result<Vec<Delivery>, LedgerError> {
        let deliveries = sqlx::query_as!(
            Delivery,
            "select id, receiver_id as receiver, message_id, state, tries, next_try_at, created_at, status, problem from webhook_deliveries
            where ($1::uuid is null or receiver_id = $1) and (not $2 or state = 'dead') order by id desc limit $3",
            receiver,
            only_dead,
            i64::from(limit),
        )
        .fetch_all(&self.history)
        .await?;
        Ok(deliveries)
    }

    /// The receivers that did not take what was sent to them, and get it again.
    pub async fn failing_receivers(&self) -> Result<Vec<FailingReceiver>, LedgerError> {
        let rows = sqlx::query!(
            r#"select receiver_id, count(*) as "waiting!", extract(epoch from now() - min(first_tried_at))::bigint as "since!",
                (array_agg(problem order by id desc))[1] as problem
            from webhook_deliveries where state = 'waiting' and problem is not null and first_tried_at is not null
            group by receiver_id order by receiver_id"#,
        )
        .fetch_all(&self.history)
        .await?;
        let failing = rows.into_iter().map(|row| FailingReceiver {
            receiver: row.receiver_id,
            waiting: u64::try_from(row.waiting).unwrap_or_default(),
            since: Duration::from_secs(u64::try_from(row.since).unwrap_or_default()),
            problem: row.problem.unwrap_or_default(),
        });
        Ok(failing.collect())
    }

    /// Has deliveries sent again that have ended: this one, or all that a receiver did not take. Returns how many.
    pub async fn replay_deliveries(
        &self,
        receiver: Uuid,
        delivery: Option<i64>,
    ) -> Result<u64, LedgerError> {
        let again = sqlx::query!(
            "update webhook_deliveries set state = 'waiting', ended_at = null, first_tried_at = null, tries = 0, next_try_at = now()
            where receiver_id = $1 and case when $2::bigint is null then state = 'dead' else id = $2 and state <> 'waiting' end",
            receiver,
            delivery,
        )
        .execute(&self.history)
        .await?;
        Ok(again.rows_affected())
    }

    /// Has a test sent to a receiver. Returns its delivery; `None`: there is no such receiver.
    pub async fn test_receiver(
        &self,
        receiver: Uuid,
        (message_id, body): (&str, &str),
    ) -> Result<Option<i64>, LedgerError> {
        let id = sqlx::query_scalar!(
            "insert into webhook_deliveries (receiver_id, message_id, payment_id, body)
            select id, $2, $3, $4 from webhook_receivers where id = $1
            returning id",
            receiver,
            message_id,
            Uuid::nil(),
            body,
        )
        .fetch_optional(&self.history)
        .await?;
        Ok(id)
    }

    /// Deletes a group of deliveries that ended a month ago.
    pub async fn forget_deliveries(&self) -> Result<(), LedgerError> {
        sqlx::query!(
            "delete from webhook_deliveries where id = any(array(
                select id from webhook_deliveries where ended_at < now() - interval '30 days' order by id limit $1
            ))",
            GROUP_MAX,
        )
        .execute(&self.history)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
