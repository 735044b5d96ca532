//! Bar charts, as SVG without styles of their own.

use alloy::primitives::U256;
use maud::{Markup, html};
use time::{Duration, OffsetDateTime};

use super::shown::clock_time;
use crate::http::AppState;
use crate::ledger::{Bar, LedgerError};
use crate::protocol::assets::micro_dollars;
use crate::protocol::{Amount, assets::decimal};

/// Of a bar with its gap, and of the chart, in the units of the picture.
const BAR: usize = 10;
const HEIGHT: u64 = 100;

/// The length of time that a bar stands for, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Per {
    Minute,
    Hour,
    Day,
}

impl Per {
    pub(super) const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// The time that the whole chart shows.
    pub(super) const fn whole(self) -> &'static str {
        match self {
            Self::Minute => "the last hour",
            Self::Hour => "the last 24 hours",
            Self::Day => "the last 30 days",
        }
    }

    const fn seconds(self) -> u32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    const fn bars(self) -> u32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 24,
            Self::Day => 30,
        }
    }

    /// Where the first bar begins.
    pub(super) fn from(self, now: OffsetDateTime) -> OffsetDateTime {
        let length = i64::from(self.seconds());
        let whole = Duration::seconds(now.unix_timestamp().rem_euclid(length));
        let newest = now - whole - Duration::nanoseconds(i64::from(now.nanosecond()));
        newest - Duration::seconds(length * i64::from(self.bars() - 1))
    }
}

/// Payments and dollars of each bar, oldest first.
#[derive(Debug)]
pub(super) struct Series {
    per: Per,
    bars: Vec<(OffsetDateTime, u64, U256)>,
    /// Of tokens whose worth is not known there are payments, and no dollars.
    has_others: bool,
}

impl Series {
    /// Reads what was transferred, to one payee or to all.
    pub(super) async fn read(
        state: &AppState,
        payee: Option<alloy::primitives::Address>,
        per: Per,
    ) -> Result<Self, LedgerError> {
        let from = per.from(state.facilitator.clock.now());
        let ledger = &state.facilitator.ledger;
        let bars = ledger.bars(payee, from, per.seconds()).await?;
        Ok(Self::of(&bars, from, per))
    }

    fn of(found: &[Bar], from: OffsetDateTime, per: Per) -> Self {
        let mut has_others = false;
        let length = Duration::seconds(i64::from(per.seconds()));
        let mut bars = Vec::new();
        let mut at = from;
        for _ in 0..per.bars() {
            let mut sum = (at, 0_u64, U256::ZERO);
            for bar in found.iter().filter(|bar| bar.at == at) {
                let dollars = micro_dollars(&bar.network, &bar.asset, &bar.amount);
                has_others |= dollars.is_none();
                sum.1 = sum.1.saturating_add(bar.payments);
                sum.2 = sum.2.saturating_add(dollars.unwrap_or_default());
            }
            bars.push(sum);
            at += length;
        }
        Self {
            per,
            bars,
            has_others,
        }
    }

    /// Both charts, with their sums.
    pub(super) fn shown(&self) -> Markup {
        let payments = self.bars.iter().map(|(at, count, _)| {
            let value = U256::from(*count);
            (*at, value, value.to_string())
        });
        let dollars = self.bars.iter();
        let dollars = dollars.map(|(at, _, micro)| (*at, *micro, in_dollars(*micro)));
        let (payments, dollars): (Vec<_>, Vec<_>) = (payments.collect(), dollars.collect());
        let sum = |values: &[(OffsetDateTime, U256, String)]| {
            let values = values.iter().map(|(_, value, _)| *value);
            values.fold(U256::ZERO, U256::saturating_add)
        };
        let (count, micro) = (sum(&payments), sum(&dollars));
        html! {
            div.charts {
                (chart("Payments", self.per, &count.to_string(), &payments))
                (chart("Dollars", self.per, &in_dollars(micro), &dollars))
            }
            @if self.has_others {
                p.hint { "Tokens that are not in the list of known ones are among the payments, and not among the dollars." }
            }
        }
    }
}

/// Millionths of a dollar, rounded down to cents from a dollar on.
fn in_dollars(micro: U256) -> String {
    const CENT: u64 = 10_000;
    const DOLLAR: u64 = 1_000_000;
    let shown = if micro >= U256::from(DOLLAR) {
        micro - micro % U256::from(CENT)
    } else {
        micro
    };
    format!("${}", decimal(Amount::from_atomic(shown), 6))
}

fn chart(name: &str, per: Per, sum: &str, values: &[(OffsetDateTime, U256, String)]) -> Markup {
    let most = values.iter().max_by_key(|(_, value, _)| *value);
    let (highest, most) = most.map_or((U256::ZERO, ""), |(_, value, text)| (*value, text));
    let width = values.len() * BAR;
    let label = format!(
        "{name} per {}: {sum} in {}, {most} at most",
        per.name(),
        per.whole()
    );
    html! {
        figure {
            figcaption { (name) " in " (per.whole()) ": " b { (sum) } }
            svg viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
                @for (index, (at, value, text)) in values.iter().enumerate() {
                    @let height = height(*value, highest);
                    g {
                        title { (clock_time(*at)) ": " (text) }
                        rect.ground x=(index * BAR) y="0" width=(BAR) height=(HEIGHT) {}
                        rect.bar x=(index * BAR + 1) y=(HEIGHT - height) width=(BAR - 2) height=(height) {}
                    }
                }
            }
            @if let (Some((first, ..)), Some((last, ..))) = (values.first(), values.last()) {
                div.axis aria-hidden="true" {
                    span { (clock_time(*first)) }
                    span { "at most " (most) }
                    span { (clock_time(*last)) }
                }
            }
        }
    }
}

/// In the units of the picture; what is there can be seen.
fn height(value: U256, highest: U256) -> u64 {
    let part = value
        .saturating_mul(U256::from(HEIGHT))
        .checked_div(highest);
    let part = part.map_or(0, |part| u64::try_from(part).unwrap_or(HEIGHT));
    if value.is_zero() {
        0
    } else {
        part.clamp(1, HEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn newest_bar_is_the_one_of_now() {
        let now = datetime!(2026-11-28 10:30:15.5 UTC);
        assert_eq!(Per::Hour.from(now), datetime!(2026-11-27 11:00 UTC));
        assert_eq!(Per::Minute.from(now), datetime!(2026-11-28 09:31 UTC));
        assert_eq!(Per::Day.from(now), datetime!(2026-10-30 00:00 UTC));
    }

    #[test]
    fn bars_without_payments_are_there() {
        let from = datetime!(2026-11-28 10:00 UTC);
        let bar = |asset: &str, minute| Bar {
            at: from + Duration::minutes(minute),
            network: "eip155:8453".to_owned(),
            asset: asset.to_owned(),
            payments: 2,
            amount: "1234567".to_owned(),
        };
        let usdc = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
        let found = [bar(usdc, 0), bar(usdc, 59), bar("0x00", 59)];
        let series = Series::of(&found, from, Per::Minute);
        assert_eq!(series.bars.len(), 60);
        assert_eq!(series.bars[0].1, 2);
        assert_eq!(series.bars[1].1, 0);
        assert_eq!(
            (series.bars[59].1, series.bars[59].2),
            (4, U256::from(1_234_567))
        );
        assert!(series.has_others);
        let shown = series.shown().into_string();
        assert!(shown.contains("$2.46"), "{shown}");
        assert!(!shown.contains("style="), "{shown}");
    }

    #[test]
    fn smallest_value_can_be_seen() {
        assert_eq!(height(U256::ZERO, U256::ZERO), 0);
        assert_eq!(height(U256::ONE, U256::MAX), 1);
        assert_eq!(height(U256::from(50), U256::from(100)), 50);
        assert_eq!(height(U256::from(7), U256::from(7)), HEIGHT);
    }
}
