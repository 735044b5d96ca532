//! Times every filter: the first page, a page from the middle and the widest page.

use std::fmt::Write;
use std::time::{Duration, Instant};

use alloy::primitives::Address;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;
use x402d::ledger::{Cursor, Entry, HistoryFilter, Ledger, Page};
use x402d::payment::{PaymentId, PaymentState};

use super::{Outcome, milliseconds};

/// Reads per page; the median and the slowest are reported.
const RUNS: usize = 15;
const LIMIT: u16 = 50;
const LIMIT_MAX: u16 = 500;
/// Unix seconds: 2026-01-02, 2026-01-03, and the middle of the ninety days.
const SECOND_DAY: &str = "1767312000";
const THIRD_DAY: &str = "1767398400";
const MIDDLE: &str = "1771113600";

/// Each filter with many, some, few and no matches, and the combinations that are hard on an index. `one` is a payment of the second
/// day with its own session; payees and payers are given by number.
const FILTERS: &[(&str, &str)] = &[
    ("none", ""),
    ("payer", "payer=one"),
    ("payer, no match", "payer=9999"),
    ("payee of half of all", "payee=1"),
    ("payee of 3 %", "payee=3"),
    ("payee, 30 old ones", "payee=20"),
    ("payee, no match", "payee=99"),
    ("network of 95 %", "network=eip155:84532"),
    ("network of 5 %", "network=eip155:8453"),
    ("network, no match", "network=eip155:1"),
    ("asset of 95 %", "asset=3"),
    ("asset, no match", "asset=9"),
    (
        "asset and a network where it is not",
        "asset=3&network=eip155:8453",
    ),
    ("state final, 95 %", "state=final"),
    ("state settled, the newest 3 %", "state=settled"),
    ("state failed, 1 %", "state=failed"),
    ("state queued, ten new ones", "state=queued"),
    ("state mined, no match", "state=mined"),
    ("amount, upper half", "min=500000"),
    ("amount, 2 %", "min=500000&max=520000"),
    ("amount, 0.1 %", "min=500000&max=501000"),
    ("amount, one old one", "min=987654321"),
    ("amount, no match", "max=5"),
    ("time, one old day", "from=second&to=third"),
    ("time, older half", "to=middle"),
    ("time, no match", "to=0"),
    ("resource, 0.5 %", "resource=https://seller-7.test/report"),
    ("resource, no match", "resource=https://nowhere.test/"),
    ("session", "session=one"),
    ("clientReference of 10 %", "reference=agent-7"),
    ("clientReference of one", "reference=one"),
    ("clientReference, no match", "reference=nothing"),
    ("transaction", "transaction=one"),
    ("transaction, no match", "transaction=none"),
    ("payee of half of all, state failed", "payee=1&state=failed"),
    ("payee of 3 %, state failed", "payee=3&state=failed"),
    (
        "payee of 3 %, network of 5 %, no match",
        "payee=3&network=eip155:8453",
    ),
    ("payee of the old ones, newer half", "payee=20&from=middle"),
    ("state queued, older half", "state=queued&to=middle"),
    ("payer and payee", "payer=one&payee=5"),
    (
        "payee of half of all, resource",
        "payee=1&resource=https://seller-7.test/report",
    ),
    (
        "clientReference of 10 %, payee of 3 %",
        "reference=agent-7&payee=9",
    ),
    (
        "clientReference of 10 %, state failed",
        "reference=agent-7&state=failed",
    ),
    (
        "clientReference of 10 %, amount",
        "reference=agent-7&min=1000990",
    ),
    (
        "payee, network, asset, state, amount, time",
        "payee=1&network=eip155:84532&asset=3&state=final&min=900000&to=middle",
    ),
];

/// Times all filters and returns the slowest median.
pub(crate) async fn measure(ledger: &Ledger) -> Outcome<Duration> {
    println!(
        "{:<44} {:>4} {:>14} {:>4} {:>14} {:>4} {:>14}",
        "filter", "rows", "first 50", "rows", "50 from middle", "rows", "first 500"
    );
    let one = one(ledger).await?;
    let middle = cursor(MIDDLE)?;
    let mut slowest = Duration::ZERO;
    for (name, text) in FILTERS {
        let filter = filter(text, &one)?;
        let mut line = format!("{name:<44}");
        for (after, limit) in [(None, LIMIT), (Some(middle), LIMIT), (None, LIMIT_MAX)] {
            let (rows, median, worst) = page(ledger, &filter, Page { after, limit }).await?;
            let times = format!("{} / {}", milliseconds(median), milliseconds(worst));
            write!(line, " {rows:>4} {times:>14}")?;
            slowest = slowest.max(median);
        }
        println!("{line}");
    }
    println!(
        "\nmilliseconds: median / slowest of {RUNS}, from question to decoded rows; the slowest median is {}\n",
        milliseconds(slowest)
    );
    Ok(slowest)
}

async fn page(
    ledger: &Ledger,
    filter: &HistoryFilter,
    page: Page,
) -> Outcome<(usize, Duration, Duration)> {
    let mut times = Vec::with_capacity(RUNS);
    let mut rows = 0;
    for _ in 0..RUNS {
        let began = Instant::now();
        rows = ledger.history(filter, page).await?.len();
        times.push(began.elapsed());
    }
    times.sort();
    let median = times.get(RUNS / 2).copied().unwrap_or_default();
    Ok((rows, median, times.last().copied().unwrap_or_default()))
}

async fn one(ledger: &Ledger) -> Outcome<Entry> {
    let page = Page {
        after: Some(cursor(THIRD_DAY)?),
        limit: LIMIT_MAX,
    };
    let entries = ledger.history(&HistoryFilter::default(), page).await?;
    let own = entries.into_iter().find(|entry| {
        let session = entry.session.as_ref();
        let reference = session.and_then(|session| session.client_reference.as_deref());
        reference.is_some_and(|reference| reference != "agent-7") && entry.transaction.is_some()
    });
    Ok(own.ok_or("no payment has a session of its own")?)
}

fn filter(text: &str, one: &Entry) -> Outcome<HistoryFilter> {
    let mut filter = HistoryFilter::default();
    for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
        let is_one = value == "one";
        match key.as_ref() {
            "payer" if is_one => filter.payer = Some(one.payer.parse()?),
            "payer" => filter.payer = Some(numbered(0xaa, value.parse()?)),
            "payee" => filter.payee = Some(numbered(0xee, value.parse()?)),
            "network" => filter.network = Some(value.parse()?),
            "asset" => filter.asset = Some(Address::repeat_byte(value.parse()?)),
            "state" => filter.state = PaymentState::NAMES.into_iter().find(|name| *name == value),
            "min" => filter.amount_min = Some(value.parse()?),
            "max" => filter.amount_max = Some(value.parse()?),
            "from" => filter.from = Some(moment(&value)?),
            "to" => filter.to = Some(moment(&value)?),
            "resource" => filter.resource = Some(value.into_owned()),
            "session" => filter.session = one.session.as_ref().and_then(|own| own.id.parse().ok()),
            "reference" if is_one => {
                filter.client_reference = one
                    .session
                    .as_ref()
                    .and_then(|own| own.client_reference.clone());
            }
            "reference" => filter.client_reference = Some(value.into_owned()),
            "transaction" if is_one => filter.transaction = one.transaction,
            "transaction" => filter.transaction = Some([0; 32].into()),
            other => return Err(format!("no filter {other}").into()),
        }
    }
    Ok(filter)
}

/// The address that `fill.sql` derives from a number: `fill` repeated, then the number.
fn numbered(fill: u8, number: u16) -> Address {
    let [high, low] = number.to_be_bytes();
    let mut bytes = [fill; 20];
    // The number takes four bytes in a payer's address and one in a payee's.
    if fill == 0xaa {
        bytes[16..].copy_from_slice(&[0, 0, high, low]);
    } else {
        bytes[19] = low;
    }
    Address::from(bytes)
}

fn cursor(seconds: &str) -> Outcome<Cursor> {
    let id = PaymentId(Uuid::max());
    let at = moment(seconds)?;
    Ok(Cursor { at, id })
}

fn moment(text: &str) -> Outcome<OffsetDateTime> {
    let seconds = match text {
        "second" => SECOND_DAY,
        "third" => THIRD_DAY,
        "middle" => MIDDLE,
        other => other,
    };
    Ok(OffsetDateTime::from_unix_timestamp(seconds.parse()?)?)
}
