//! Sends events to the receivers of the ledger, signed by Standard Webhooks.
//!
//! Each receiver has a task of its own, so that a slow one holds up no other. Several processes share the work: a delivery is claimed in the
//! ledger before it is sent, and one whose process was killed is claimed again. So an event is delivered at least once, and those of one
//! payment in order.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use hmac::{Hmac, Mac as _};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use secrecy::ExposeSecret as _;
use sha2::Sha256;
use time::format_description::well_known::Rfc3339;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use crate::buyer::reach::{PublicOnly, may_be_public};
use crate::clock::Clock as _;
use crate::http::EventView;
use crate::ledger::{ClaimedDelivery, FeedEvent, Ledger, LedgerError, Receiver, Tried};
use crate::telemetry::causes;
use crate::telemetry::metrics::Metrics;

/// What the text of every secret begins with.
const SECRET_PREFIX: &str = "whsec_";
/// How long a receiver may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often receivers are read, and how often each looks for new events.
const RECEIVERS_INTERVAL: Duration = Duration::from_secs(2);
const EVENTS_INTERVAL: Duration = Duration::from_millis(250);
/// Deliveries to one receiver that a process claims at a time, and sends at a time; and how often it renews its claim.
const CLAIMED: i64 = 32;
const AT_A_TIME: usize = 16;
const RENEWAL: Duration = Duration::from_millis(300);
/// How long a receiver is left alone that took nothing of the last deliveries: twice as long each time.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// A secret as a receiver is configured with it.
pub fn secret_text(secret: &[u8]) -> String {
    format!("{SECRET_PREFIX}{}", STANDARD.encode(secret))
}

/// Sends events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webhooks {
    ledger: Ledger,
    metrics: Metrics,
    /// Connects to public addresses alone.
    guarded: Client,
    unguarded: Client,
}

/// What became of the deliveries that were due.
enum Sent {
    /// There were none.
    Nothing,
    /// The receiver took some of them, or there may be more.
    Taken,
    /// It took none of them.
    Refused,
}

/// When a receiver's events were last read.
#[derive(Default)]
struct Reading {
    at: Option<Instant>,
    /// There were more of them than were read.
    more: bool,
}

impl Reading {
    fn after(more: bool) -> Self {
        Self {
            at: Some(Instant::now()),
            more,
        }
    }

    fn is_due(&self) -> bool {
        self.more || self.at.is_none_or(|at| at.elapsed() >= EVENTS_INTERVAL)
    }
}

impl Webhooks {
    /// # Errors
    /// The TLS of this machine cannot be used.
    pub fn new(ledger: Ledger, metrics: Metrics) -> Result<Self, reqwest::Error> {
        let client = || {
            Client::builder()
                .timeout(ANSWER_LIMIT)
                .redirect(Policy::none())
                .no_proxy()
                .user_agent(concat!("x402d/", env!("CARGO_PKG_VERSION")))
        };
        Ok(Self {
            ledger,
            metrics,
            guarded: client().dns_resolver(Arc::new(PublicOnly::new())).build()?,
            unguarded: client().build()?,
        })
    }

    /// Keeps a task for each receiver.
    pub async fn run(self) {
        let mut interval = tokio::time::interval(RECEIVERS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tasks = JoinSet::new();
        let mut running: HashMap<Uuid, AbortHandle> = HashMap::new();
        loop {
            interval.tick().await;
            while tasks.try_join_next().is_some() {}
            let receivers = match self.ledger.receivers().await {
                Ok(receivers) => receivers,
                Err(error) => {
                    tracing::debug!(error = causes(&error), "webhooks: receivers not read");
                    continue;
                }
            };
            running.retain(|id, task| {
                let is_there = receivers.iter().any(|receiver| receiver.id == *id);
                if !is_there {
                    task.abort();
                }
                is_there && !task.is_finished()
            });
            for receiver in receivers {
                running
                    .entry(receiver.id)
                    .or_insert_with(|| tasks.spawn(self.clone().deliver_to(receiver)));
            }
        }
    }

    async fn deliver_to(self, receiver: Receiver) {
        let mut is_failing = false;
        let mut rest = FIRST_REST;
        let mut reading = Reading::default();
        loop {
            match self.deliver(&receiver, &mut reading).await {
                Ok(Sent::Taken) => {
                    rest = FIRST_REST;
                    continue;
                }
                Ok(Sent::Refused) => {
                    tokio::time::sleep(rest).await;
                    rest = LONGEST_REST.min(rest * 2);
                    continue;
                }
                Ok(Sent::Nothing) => {
                    is_failing = false;
                    rest = FIRST_REST;
                }
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(receiver = %receiver.id, error = causes(&error), "webhook: database statement failed; trying again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(EVENTS_INTERVAL).await;
        }
    }

    /// Sends what is due.
    async fn deliver(
        &self,
        receiver: &Receiver,
        reading: &mut Reading,
    ) -> Result<Sent, LedgerError> {
        if reading.is_due() {
            let more = self.ledger.write_deliveries(receiver, body).await?;
            *reading = Reading::after(more);
        }
        let claimed = self.ledger.claim_deliveries(receiver.id, CLAIMED).await?;
        if claimed.is_empty() {
            return Ok(if reading.more {
                Sent::Taken
            } else {
                Sent::Nothing
            });
        }
        let mut sending = pin!(self.send_all(receiver, &claimed));
        let tries = loop {
            match tokio::time::timeout(RENEWAL, &mut sending).await {
                Ok(tries) => break tries,
                Err(_) => self.renew(&claimed).await,
            }
        };
        self.ledger.record_tries(&tries).await?;
        let is_taken = |(_, tried): &(_, Tried)| matches!(tried, Tried::Delivered { .. });
        Ok(if tries.iter().any(is_taken) {
            Sent::Taken
        } else {
            Sent::Refused
        })
    }

    async fn send_all<'a>(
        &self,
        receiver: &Receiver,
        claimed: &'a [ClaimedDelivery],
    ) -> Vec<(&'a ClaimedDelivery, Tried)> {
        let mut tries = Vec::new();
        for together in claimed.chunks(AT_A_TIME) {
            let sent = together.iter().map(async |delivery| {
                let tried = self.send(receiver, delivery).await;
                self.metrics
                    .tried_delivery(matches!(tried, Tried::Delivered { .. }));
                (delivery, tried)
            });
            tries.extend(join_all(sent).await);
        }
        tries
    }

    async fn renew(&self, claimed: &[ClaimedDelivery]) {
        // Without it another process sends them too, under the same ids.
        if let Err(error) = self.ledger.renew_claims(claimed).await {
            tracing::debug!(error = causes(&error), "webhook: claim not renewed");
        }
    }

    async fn send(&self, receiver: &Receiver, delivery: &ClaimedDelivery) -> Tried {
        let failed = |problem: &str| Tried::Failed {
            status: None,
            problem: problem.to_owned(),
        };
        let Ok(url) = receiver.url.parse::<Url>() else {
            return failed("its URL cannot be read");
        };
        let http = if receiver.may_be_private {
            &self.unguarded
        } else if may_be_public(&url) {
            &self.guarded
        } else {
            return failed(
                "its address is not public; add it with --allow-private if that is meant",
            );
        };
        let timestamp = self.ledger.clock().now().unix_timestamp().to_string();
        let Some(signature) = signature(
            receiver.secret.expose_secret(),
            &delivery.message_id,
            &timestamp,
            &delivery.body,
        ) else {
            return failed("its secret cannot be used");
        };
        let request = http
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &delivery.message_id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(delivery.body.clone());
        // The answer's body is not read: whatever it is, it changes nothing.
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Tried::Delivered {
                status: answer.status().as_u16(),
            },
            Ok(answer) => Tried::Failed {
                status: Some(answer.status().as_u16()),
                problem: format!("it answered {}", answer.status()),
            },
            // Without the URL, which may contain a secret.
            Err(error) if error.is_timeout() => failed("no answer within 10 s"),
            Err(error) if error.is_connect() => {
                failed("no connection, or its address is not public")
            }
            Err(_) => failed("the connection broke"),
        }
    }
}

fn body(event: &FeedEvent) -> String {
    serde_json::to_string(&EventView::from(event)).unwrap_or_default()
}

/// A test: its id and its body.
pub fn test_message() -> (String, String) {
    let id = format!("evt_test_{}", Uuid::now_v7().simple());
    let at = crate::clock::SystemClock.now();
    let body = serde_json::json!({
        "id": id,
        "type": "webhook.test",
        "at": at.format(&Rfc3339).unwrap_or_default(),
    });
    (id, body.to_string())
}

/// Standard Webhooks, scheme v1: HMAC-SHA256 over id, time and body.
fn signature(secret: &[u8], id: &str, timestamp: &str, body: &str) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    for part in [id, ".", timestamp, ".", body] {
        mac.update(part.as_bytes());
    }
    Some(format!(
        "v1,{}",
        STANDARD.encode(mac.finalize().into_bytes())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn signature_is_that_of_standard_webhooks() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = signature(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            r#"{"test": 2432232314}"#,
        );
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signature.as_deref(), Some(expected));
        assert_eq!(secret_text(&[0; 3]), "whsec_AAAA");
    }
}
