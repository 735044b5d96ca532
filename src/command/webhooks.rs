//! `x402d webhooks`: the receivers of events. Works on the database of the configuration; a running service notices within seconds.

use alloy::primitives::{Address, FixedBytes};
use clap::{Args, Subcommand};
use reqwest::Url;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::command::database::LedgerOptions;
use crate::command::shown::{aligned, clock_time, moment, row};
use crate::command::{CommandError, say};
use crate::ledger::{Delivery, EventTypes, Ledger, Receiver};
use crate::protocol::field::parse_address;
use crate::protocol::response::checksummed;
use crate::webhooks::{secret_text, test_message};

/// The most receivers of a ledger: each has a task and statements of its own.
const RECEIVERS_MAX: usize = 50;

#[derive(Debug, Args)]
pub(super) struct WebhooksOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    #[command(subcommand)]
    command: WebhooksCommand,
}

#[derive(Debug, Subcommand)]
enum WebhooksCommand {
    /// Have events sent to a URL from now on, and show the secret of their signatures, this once.
    Add(NewReceiver),
    /// List the receivers.
    List,
    /// Have a test event sent.
    Test {
        /// The receiver's id.
        receiver: Uuid,
    },
    /// List the newest deliveries, and what became of them.
    Deliveries {
        /// Of this receiver alone.
        receiver: Option<Uuid>,
        /// Only those that were given up.
        #[arg(long)]
        dead: bool,
        /// Deliveries at most.
        #[arg(long, default_value_t = 50)]
        limit: u16,
    },
    /// Have something sent again: a delivery, or all that were given up.
    Replay {
        /// The receiver's id.
        receiver: Uuid,
        /// The delivery's number; all that were given up unless given.
        delivery: Option<i64>,
    },
    /// Remove a receiver, with everything that waits for it.
    Remove {
        /// The receiver's id.
        receiver: Uuid,
    },
}

#[derive(Debug, Args)]
struct NewReceiver {
    /// Where events are posted.
    url: Url,
    /// Types such as payment.settled or signer.*, separated by commas.
    #[arg(long, value_name = "TYPES", value_parser = types)]
    events: String,
    /// Only payments to this payee.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    payee: Option<Address>,
    /// Allow plain http: anyone on the network path can read the events.
    #[arg(long)]
    insecure_http: bool,
    /// Allow addresses of this machine and of private networks.
    #[arg(long)]
    allow_private: bool,
}

pub(super) async fn run(options: WebhooksOptions) -> Result<(), CommandError> {
    let WebhooksOptions { ledger, command } = options;
    let json = ledger.json;
    let work = async move |ledger: &Ledger| match command {
        WebhooksCommand::Add(new) => add(ledger, new, json).await,
        WebhooksCommand::List => list(ledger, json).await,
        WebhooksCommand::Test { receiver } => {
            let (id, body) = test_message();
            let delivery = ledger.test_receiver(receiver, (&id, &body)).await?;
            let delivery = delivery.ok_or_else(|| unknown(receiver))?;
            done(
                json,
                "delivery",
                &delivery.into(),
                "queued; a running service sends it within seconds: `x402d webhooks deliveries` shows what became of it",
            );
            Ok(())
        }
        WebhooksCommand::Deliveries {
            receiver,
            dead,
            limit,
        } => {
            let found = ledger.deliveries(receiver, (dead, limit)).await?;
            deliveries(&found, json);
            Ok(())
        }
        WebhooksCommand::Replay { receiver, delivery } => {
            let again = ledger.replay_deliveries(receiver, delivery).await?;
            if again == 0 {
                return Err("there is nothing to send again: expected the id of a receiver with deliveries that were given up, or one of its deliveries that has ended".into());
            }
            done(
                json,
                "again",
                &again.into(),
                &format!("{again} to be sent again"),
            );
            Ok(())
        }
        WebhooksCommand::Remove { receiver } => {
            if !ledger.remove_receiver(receiver).await? {
                return Err(unknown(receiver));
            }
            done(json, "removed", &receiver.to_string().into(), "removed");
            Ok(())
        }
    };
    ledger.on_ledger(work).await
}

fn types(text: &str) -> Result<String, String> {
    let known = text.parse::<EventTypes>();
    known.map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn unknown(receiver: Uuid) -> CommandError {
    format!("there is no receiver {receiver}: expected an id that `x402d webhooks list` shows")
        .into()
}

fn done(json: bool, name: &str, value: &Value, text: &str) {
    if json {
        say(&json!({ name: value }).to_string());
    } else {
        say(text);
    }
}

async fn add(ledger: &Ledger, new: NewReceiver, json: bool) -> Result<(), CommandError> {
    match new.url.scheme() {
        "https" => {}
        "http" if new.insecure_http => {}
        _ => return Err("expected an https URL; --insecure-http allows plain http, where anyone on the network path can read the events".into()),
    }
    if ledger.receivers().await?.len() >= RECEIVERS_MAX {
        return Err(format!("there are {RECEIVERS_MAX} receivers already; remove one").into());
    }
    let secret: [u8; 32] = FixedBytes::random().0;
    let receiver = Receiver {
        id: Uuid::now_v7(),
        url: new.url.to_string(),
        types: new.events,
        payee: new.payee,
        secret: secret.to_vec().into(),
        may_be_private: new.allow_private,
        created_at: OffsetDateTime::UNIX_EPOCH,
        waiting: 0,
        dead: 0,
    };
    ledger.add_receiver(&receiver).await?;
    let (id, secret) = (receiver.id.to_string(), secret_text(&secret));
    if json {
        say(&json!({ "id": id, "secret": secret }).to_string());
    } else {
        say(&format!(
            "{secret}\nthis is the secret of the signatures, shown once; the receiver is {id}"
        ));
    }
    Ok(())
}

async fn list(ledger: &Ledger, json: bool) -> Result<(), CommandError> {
    let receivers = ledger.receivers().await?;
    if json {
        let shown = receivers.iter().map(|one| {
            json!({
                "id": one.id.to_string(),
                "url": one.url,
                "events": one.types,
                "payee": one.payee.map(checksummed),
                "createdAt": moment(one.created_at),
                "waiting": one.waiting,
                "dead": one.dead,
            })
        });
        say(&json!({ "webhooks": shown.collect::<Vec<_>>() }).to_string());
        return Ok(());
    }
    if receivers.is_empty() {
        say("no receivers");
        return Ok(());
    }
    let mut rows = vec![row(["ID", "WAITING", "GIVEN UP", "PAYEE", "EVENTS", "URL"])];
    rows.extend(receivers.iter().map(|one| {
        let payee = one.payee.map_or_else(|| "all".to_owned(), checksummed);
        let (id, waiting, dead) = (
            one.id.to_string(),
            one.waiting.to_string(),
            one.dead.to_string(),
        );
        row([&id, &waiting, &dead, &payee, &one.types, &one.url])
    }));
    say(&aligned(&rows));
    Ok(())
}

fn deliveries(found: &[Delivery], json: bool) {
    if json {
        let shown = found.iter().map(|one| {
            json!({
                "id": one.id,
                "receiver": one.receiver.to_string(),
                "event": one.message_id,
                "state": one.state,
                "tries": one.tries,
                "nextTryAt": (one.state == "waiting").then(|| moment(one.next_try_at)),
                "createdAt": moment(one.created_at),
                "status": one.status,
                "problem": one.problem,
            })
        });
        say(&json!({ "deliveries": shown.collect::<Vec<_>>() }).to_string());
        return;
    }
    if found.is_empty() {
        say("no deliveries");
        return;
    }
    let mut rows = vec![row([
        "ID",
        "EVENT",
        "WRITTEN (UTC)",
        "STATE",
        "TRIES",
        "RECEIVER",
        "PROBLEM",
    ])];
    rows.extend(found.iter().map(|one| {
        let (id, tries, receiver) = (
            one.id.to_string(),
            one.tries.to_string(),
            one.receiver.to_string(),
        );
        let problem = one.problem.as_deref().unwrap_or_default();
        let at = clock_time(one.created_at);
        row([
            &id,
            &one.message_id,
            &at,
            &one.state,
            &tries,
            &receiver,
            problem,
        ])
    }));
    say(&aligned(&rows));
}
