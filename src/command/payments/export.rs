//! The history as CSV for bookkeepers: amounts in whole tokens, times that a spreadsheet takes for times, names for networks and tokens.

use std::io::{BufWriter, StdoutLock, Write};

use super::view::{PaymentView, explorer_url, network_of};
use crate::command::CommandError;
use crate::command::shown::clock_time;
use crate::http::write_cell;
use crate::ledger::{Entry, HistoryFilter, Ledger, Page};
use crate::protocol::assets::{decimal, known_token};

/// Payments that are read at a time.
const BATCH: u16 = 500;
const COLUMNS: &str = "accepted (UTC),state,amount,token,network,payer,payee,mined (UTC),transaction,explorer,resource,session,\
    buyer's name,accepted for,reason,message,id,atomic units\r\n";

/// Writes every payment that matches to stdout. A stdout that is closed ends it without an error.
pub(super) async fn export(
    ledger: &Ledger,
    filter: &HistoryFilter,
    json: bool,
) -> Result<(), CommandError> {
    let mut after = None;
    let mut is_first = true;
    loop {
        let page = Page {
            after,
            limit: BATCH,
        };
        let entries = ledger.history(filter, page).await?;
        let head = if is_first && !json { COLUMNS } else { "" };
        is_first = false;
        match write(head, &entries, json) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        after = entries.last().map(Entry::cursor);
        if entries.len() < usize::from(BATCH) {
            return Ok(());
        }
    }
}

fn write(head: &str, entries: &[Entry], json: bool) -> std::io::Result<()> {
    let mut out: BufWriter<StdoutLock<'_>> = BufWriter::new(std::io::stdout().lock());
    out.write_all(head.as_bytes())?;
    for entry in entries {
        if json {
            serde_json::to_writer(&mut out, &PaymentView::new(entry))?;
            out.write_all(b"\n")?;
        } else {
            out.write_all(line(entry).as_bytes())?;
        }
    }
    out.flush()
}

fn line(entry: &Entry) -> String {
    let session = entry.session.as_ref();
    let network = entry.network.parse().ok();
    let token = network.and_then(|network| known_token(network, &entry.asset));
    let amount = token.zip(entry.amount.parse().ok());
    let amount = amount.map(|(known, amount)| decimal(amount, known.decimals));
    let cells = [
        Some(clock_time(entry.created_at)),
        Some(entry.state.clone()),
        // Empty for a token without known decimals: atomic units would be added to whole tokens.
        amount,
        Some(token.map_or_else(|| entry.asset.clone(), |known| known.symbol.to_owned())),
        Some(network_of(entry)),
        Some(entry.payer.clone()),
        Some(entry.payee.clone()),
        entry.block_time.map(clock_time),
        entry.transaction.map(|hash| hash.to_string()),
        explorer_url(entry),
        entry.resource.clone(),
        session.map(|session| session.id.clone()),
        session.and_then(|session| session.client_reference.clone()),
        entry.caller.clone(),
        entry.reason.clone(),
        entry.message.clone(),
        Some(entry.id.to_string()),
        Some(entry.amount.clone()),
    ];
    let mut line = String::new();
    for (index, cell) in cells.iter().enumerate() {
        if index > 0 {
            line.push(',');
        }
        write_cell(&mut line, cell.as_deref().unwrap_or_default());
    }
    line.push_str("\r\n");
    line
}
