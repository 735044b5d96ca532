//! `x402d events`: what happened, from the database of the configuration, whether or not the service runs.

use std::time::Duration;

use clap::Args;

use crate::command::database::LedgerOptions;
use crate::command::shown::{clock_time, network_name};
use crate::command::{CommandError, say, wait_for_stop_signal};
use crate::http::EventView;
use crate::ledger::{EventPosition, EventTypes, FeedEvent, Ledger};

/// How often --follow looks for new events.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Rows that are read at a time.
const ROWS_READ: u16 = 500;

#[derive(Debug, Args)]
pub(super) struct EventsOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    /// Types such as payment.settled or signer.*, separated by commas; all unless given.
    #[arg(long, value_name = "TYPES")]
    types: Option<EventTypes>,
    /// Look at so many of the newest steps in the ledger, of all types.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 50,
        conflicts_with = "after"
    )]
    last: u16,
    /// Begin behind this place: the nextCursor of /events, or the id in its stream.
    #[arg(long, value_name = "CURSOR")]
    after: Option<EventPosition>,
    /// Go on with what happens, until Ctrl-C.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn run(options: EventsOptions) -> Result<(), CommandError> {
    let work = async |ledger: &Ledger| {
        tokio::select! {
            done = show(ledger, &options) => done,
            () = wait_for_stop_signal() => Ok(()),
        }
    };
    options.ledger.on_ledger(work).await
}

async fn show(ledger: &Ledger, options: &EventsOptions) -> Result<(), CommandError> {
    let types = options.types.clone().unwrap_or_default();
    let mut position = match options.after {
        Some(after) => after,
        None => ledger.event_place(options.last).await?,
    };
    loop {
        let page = ledger.events_after(position, ROWS_READ).await?;
        let page =
            page.ok_or("the ledger has no event at this place any more; leave out --after")?;
        let told = page.events.iter();
        for event in told.filter(|event| types.contains(event.kind)) {
            say(&line(event, options.ledger.json)?);
        }
        position = page.end;
        if page.more {
            continue;
        }
        if !options.follow {
            return Ok(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A JSON object, or the same for people.
fn line(event: &FeedEvent, json: bool) -> Result<String, CommandError> {
    let view = EventView::from(event);
    if json {
        return Ok(serde_json::to_string(&view)?);
    }
    let network = view.network.as_deref().map(|network| {
        let known = network.parse().ok();
        known.map_or_else(|| network.to_owned(), network_name)
    });
    let further = [
        network,
        view.payment,
        view.amount_shown,
        view.signer,
        view.key,
        view.budget,
        view.reason,
        view.transaction,
    ];
    let mut line = format!("{}  {:<20}", clock_time(event.at), view.kind);
    for text in further.into_iter().flatten() {
        line.push_str("  ");
        line.push_str(&text);
    }
    Ok(line)
}
