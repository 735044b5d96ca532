//! The filters of the history, as flags.

use alloy::primitives::{Address, B256};
use clap::Args;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, Time, UtcOffset};

use crate::command::CommandError;
use crate::command::shown::parse_network;
use crate::ledger::HistoryFilter;
use crate::payment::PaymentState;
use crate::protocol::assets::{default_assets, known_token};
use crate::protocol::field::{parse_address, parse_hash};
use crate::protocol::response::checksummed;
use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Network};

/// Which payments; all of them unless given.
#[derive(Debug, Args)]
pub(super) struct FilterArguments {
    /// From this address.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    payer: Option<Address>,
    /// To this address.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    payee: Option<Address>,
    /// On this network, such as base or eip155:8453.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    network: Option<Network>,
    /// In this token, by its address.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    asset: Option<Address>,
    /// In this state: queued, inflight, mined, settled, final, `late_settled`, refused or failed.
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<&'static str>,
    /// Accepted then or later: 2026-11-01, or 2026-11-01T12:00:00Z. A day begins at midnight UTC.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<OffsetDateTime>,
    /// Accepted before then.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<OffsetDateTime>,
    /// This much or more, in whole tokens such as 0.01; needs --network, and --asset for a token that is not the network's USDC.
    #[arg(long, value_name = "AMOUNT", requires = "network")]
    min_amount: Option<String>,
    /// This much or less.
    #[arg(long, value_name = "AMOUNT", requires = "network")]
    max_amount: Option<String>,
    /// For exactly this resource.
    #[arg(long, value_name = "TEXT")]
    resource: Option<String>,
    /// Of this session.
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// With this name that the buyer gave it.
    #[arg(long, value_name = "TEXT")]
    client_reference: Option<String>,
    /// With this transaction.
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    transaction: Option<B256>,
}

impl FilterArguments {
    /// The names of all filters.
    pub(super) const NAMES: [&'static str; 13] = [
        "payer",
        "payee",
        "network",
        "asset",
        "state",
        "from",
        "to",
        "min_amount",
        "max_amount",
        "resource",
        "session",
        "client_reference",
        "transaction",
    ];

    pub(super) fn filter(self) -> Result<HistoryFilter, CommandError> {
        let amount_min = self.amount("--min-amount", self.min_amount.as_deref())?;
        let amount_max = self.amount("--max-amount", self.max_amount.as_deref())?;
        // An amount is meant in one token.
        let by_amount = amount_min.is_some() || amount_max.is_some();
        let asset = self.asset.or_else(|| self.usdc().filter(|_| by_amount));
        Ok(HistoryFilter {
            payer: self.payer,
            payee: self.payee,
            network: self.network,
            asset,
            state: self.state,
            from: self.from,
            to: self.to,
            amount_min,
            amount_max,
            resource: self.resource,
            session: self.session,
            client_reference: self.client_reference,
            transaction: self.transaction,
            payees: None,
        })
    }

    fn usdc(&self) -> Option<Address> {
        let mut tokens = default_assets(self.network?);
        Some(tokens.find(|known| known.symbol == "USDC")?.address)
    }

    fn amount(&self, flag: &str, text: Option<&str>) -> Result<Option<Amount>, CommandError> {
        let Some(text) = text else { return Ok(None) };
        let token = self.asset.or_else(|| self.usdc());
        let known = self
            .network
            .zip(token)
            .and_then(|(network, token)| known_token(network, &checksummed(token)));
        let Some(known) = known else {
            return Err(format!(
                "{flag}: expected --asset with a token that `x402d networks` shows, because the decimals of others are not known"
            )
            .into());
        };
        let amount = Amount::from_dollars(text, known.decimals);
        let amount = amount.map_err(|_| {
            format!(
                "{flag}: expected an amount of {} such as 0.01, with {} decimals at most",
                known.symbol, known.decimals
            )
        })?;
        Ok(Some(amount))
    }
}

fn state(name: &str) -> Result<&'static str, String> {
    let known = PaymentState::NAMES.into_iter().find(|known| *known == name);
    known.ok_or_else(|| format!("expected one of {}", PaymentState::NAMES.join(", ")))
}

/// A time, or the beginning of a day in UTC.
fn moment(text: &str) -> Result<OffsetDateTime, String> {
    let day = Date::parse(text, format_description!("[year]-[month]-[day]"));
    let day = day.map(|day| day.with_time(Time::MIDNIGHT).assume_utc());
    let time = day.or_else(|_| OffsetDateTime::parse(text, &Rfc3339)).ok();
    time.and_then(|time| time.checked_to_offset(UtcOffset::UTC))
        .ok_or_else(|| {
            "expected a day such as 2026-11-01, or a time such as 2026-11-01T12:00:00Z".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn days_and_times_are_read() {
        for (text, expected) in [
            ("2026-11-01", Some(datetime!(2026-11-01 00:00 UTC))),
            (
                "2026-11-01T12:00:00Z",
                Some(datetime!(2026-11-01 12:00 UTC)),
            ),
            (
                "2026-11-01T12:00:00+02:00",
                Some(datetime!(2026-11-01 10:00 UTC)),
            ),
            ("yesterday", None),
            ("2026-13-01", None),
        ] {
            assert_eq!(moment(text).ok(), expected, "{text}");
        }
    }
}
