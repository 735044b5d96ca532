//! `x402d payments`: the history, and the quarantine. Works on the database of the configuration, whether or not the service runs.

mod export;
mod filters;
mod story;
mod view;

use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use self::filters::FilterArguments;
use self::view::{PaymentView, table};
use crate::command::database::LedgerOptions;
use crate::command::{CommandError, say};
use crate::ledger::{Entry, EntryDetail, Ledger, Page};
use crate::payment::PaymentId;

/// Most payments of one list; `export` has no limit.
const LIST_MAX: u16 = 1_000;

#[derive(Debug, Args)]
pub(super) struct PaymentsOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    #[command(subcommand)]
    command: PaymentsCommand,
}

#[derive(Debug, Subcommand)]
enum PaymentsCommand {
    /// List payments, newest first.
    List {
        #[command(flatten)]
        filters: Box<FilterArguments>,
        /// Payments at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=i64::from(LIST_MAX)))]
        limit: u16,
        /// Only those in quarantine, which wait for you.
        #[arg(long, conflicts_with_all = FilterArguments::NAMES)]
        quarantined: bool,
    },
    /// Show a payment: what happened to it and when, its transactions, and what they cost.
    Show {
        /// Its id, as in the extra.paymentId of /settle.
        #[arg(value_parser = payment_id)]
        id: PaymentId,
    },
    /// Write payments as CSV for bookkeeping, or with --json an object on each line.
    Export {
        #[command(flatten)]
        filters: Box<FilterArguments>,
    },
    /// End the quarantine of a payment once you know what happened to it. The engine then decides it anew; nothing is decided here.
    Release {
        /// Its id.
        #[arg(value_parser = payment_id)]
        id: PaymentId,
    },
}

pub(super) async fn run(options: PaymentsOptions) -> Result<(), CommandError> {
    let PaymentsOptions { ledger, command } = options;
    let json = ledger.json;
    let work = async move |ledger: &Ledger| match command {
        PaymentsCommand::List {
            quarantined: true,
            limit,
            ..
        } => {
            let entries = ledger.quarantined(limit).await?;
            list(&entries, json);
            Ok(())
        }
        PaymentsCommand::List { filters, limit, .. } => {
            let page = Page { after: None, limit };
            let entries = ledger.history(&filters.filter()?, page).await?;
            list(&entries, json);
            Ok(())
        }
        PaymentsCommand::Show { id } => {
            say(&story::show(&find(ledger, id).await?, json));
            Ok(())
        }
        PaymentsCommand::Export { filters } => {
            export::export(ledger, &filters.filter()?, json).await
        }
        PaymentsCommand::Release { id } => release(ledger, id, json).await,
    };
    ledger.on_ledger(work).await
}

fn list(entries: &[Entry], json: bool) {
    if json {
        let views: Vec<_> = entries.iter().map(PaymentView::new).collect();
        say(&json!({ "payments": views }).to_string());
    } else if entries.is_empty() {
        say("no payments");
    } else {
        say(&table(entries));
    }
}

async fn find(ledger: &Ledger, id: PaymentId) -> Result<EntryDetail, CommandError> {
    let found = ledger.detail(id).await?;
    found.ok_or_else(|| {
        format!("there is no payment {id}: expected an id that `x402d payments list` shows; for a hash there is `x402d payments list --transaction`").into()
    })
}

async fn release(ledger: &Ledger, id: PaymentId, json: bool) -> Result<(), CommandError> {
    let detail = find(ledger, id).await?;
    let Some(why) = detail.entry.quarantine.as_deref() else {
        return Err(format!("{id} is not in quarantine").into());
    };
    if !json {
        say(&story::show(&detail, false));
    }
    if !ledger.release_from_quarantine(id, why).await? {
        return Err(format!("{id} is not in quarantine for this reason any more; look at it again with `x402d payments show {id}`").into());
    }
    if json {
        say(&story::show(&find(ledger, id).await?, true));
    } else {
        say(
            "\nreleased; a running service decides it anew within seconds, and quarantines it again if the contradiction is still there",
        );
    }
    Ok(())
}

fn payment_id(text: &str) -> Result<PaymentId, String> {
    let id = Uuid::parse_str(text).map(PaymentId);
    id.map_err(|_| {
        "expected a payment's id, such as 01a21f87-0c6e-7d3a-9b1f-5d2c3e4f5a6b".to_owned()
    })
}
