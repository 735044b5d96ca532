//! The checks of a run and their outcomes.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use super::wire::Reply;
use crate::command::say;
use crate::command::shown::{aligned, row};
use crate::protocol::text::escaped_start;

/// The most characters of an answer in the table.
const SHOWN_MAX: usize = 140;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// It is as the protocol has it.
    Ok,
    /// It is not offered, or official clients lose something by it; they can pay and be paid nevertheless.
    Lacks,
    /// A required part is not kept: official clients break, or money is at risk.
    Fails,
    /// It could not be checked.
    Skipped,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Lacks => "lacks",
            Self::Fails => "FAILS",
            Self::Skipped => "skipped",
        }
    }

    /// `Ok`, or `otherwise`.
    pub(super) const fn ok_or(holds: bool, otherwise: Self) -> Self {
        if holds { Self::Ok } else { otherwise }
    }
}

/// One part of the wire.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    outcome: Outcome,
    expected: String,
    came: String,
}

/// All checks of a run, in order.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<Check>);

impl Checks {
    pub(super) fn add(
        &mut self,
        name: impl Into<String>,
        outcome: Outcome,
        expected: impl Into<String>,
        came: impl Into<String>,
    ) {
        self.0.push(Check {
            name: name.into(),
            outcome,
            expected: expected.into(),
            came: came.into(),
        });
    }

    /// Adds what a reply showed.
    pub(super) fn add_reply(
        &mut self,
        name: impl Into<String>,
        outcome: Outcome,
        expected: impl Into<String>,
        reply: &Reply,
    ) {
        self.add(name, outcome, expected, reply.summary());
    }

    fn number(&self, outcome: Outcome) -> usize {
        let found = self.0.iter().filter(|check| check.outcome == outcome);
        found.count()
    }

    /// Prints the table, or JSON. The code tells whether a required part is not kept.
    pub(super) fn report(&self, as_json: bool) -> ExitCode {
        let [ok, lacks, fails, skipped] = [
            Outcome::Ok,
            Outcome::Lacks,
            Outcome::Fails,
            Outcome::Skipped,
        ]
        .map(|outcome| self.number(outcome));
        if as_json {
            let numbers = json!({"ok": ok, "lacks": lacks, "fails": fails, "skipped": skipped});
            say(&json!({"checks": self.0, "numbers": numbers}).to_string());
        } else {
            let mut rows = vec![row(["", "CHECK", "EXPECTED", "CAME"])];
            rows.extend(self.0.iter().map(|check| {
                let came = escaped_start(&check.came, SHOWN_MAX);
                row([check.outcome.word(), &check.name, &check.expected, &came])
            }));
            say(&format!(
                "{}\n\n{ok} ok, {lacks} lacking, {fails} failing, {skipped} skipped",
                aligned(&rows)
            ));
        }
        if fails == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
