//! `x402d signers drain`: a signer goes out of work without a payment left behind.
//!
//! First every process stops accepting payments for the signer, while it still sends what is queued. Then it is paused, so that it writes
//! nothing more, and what it has sent is waited for.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{named, under_way};
use crate::command::shown::{count, length};
use crate::command::{CommandError, say, wait_for_stop_signal};
use crate::ledger::{LaneKey, LaneView, Ledger, Pause};

/// How long processes may still accept payments for a signer after it began to drain: they look every second, and a payment that has passed
/// the look is queued soon.
const NOTICED_AFTER: Duration = Duration::from_secs(3);
/// How often to look whether something is under way.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// Waits until nothing of the lane is under way. Afterwards it is paused. On an error it takes no new payments either.
pub(super) async fn drain(
    ledger: &Ledger,
    lane: LaneKey,
    limit: Duration,
    json: bool,
) -> Result<(), CommandError> {
    let name = named(lane);
    let mut draining = Draining {
        ledger,
        lane,
        quiet: json,
        said: String::new(),
    };
    let why = tokio::select! {
        done = draining.run() => return done,
        () = sleep(limit) => format!("not drained within {}", length(limit)),
        () = wait_for_stop_signal() => "interrupted".to_owned(),
    };
    Err(format!(
        "{why}: {}; {name} takes no new payments until `x402d signers resume`, and `x402d signers drain` goes on waiting",
        draining.said
    )
    .into())
}

struct Draining<'a> {
    ledger: &'a Ledger,
    lane: LaneKey,
    quiet: bool,
    /// The latest progress.
    said: String,
}

impl Draining<'_> {
    async fn run(&mut self) -> Result<(), CommandError> {
        self.tell(format!("{} takes no new payments", named(self.lane)));
        loop {
            self.send_queued().await?;
            self.ledger.pause_lane(self.lane, false).await?;
            if self.follow().await? {
                self.tell(format!(
                    "{} is drained and paused: nothing of it is under way",
                    named(self.lane)
                ));
                return Ok(());
            }
        }
    }

    /// Lets the lane send what is queued and nobody else can send.
    async fn send_queued(&mut self) -> Result<(), CommandError> {
        self.ledger.pause_lane(self.lane, true).await?;
        let noticed = Instant::now() + NOTICED_AFTER;
        loop {
            let waiting = self.ledger.waiting_for(self.lane).await?;
            let left = if waiting.others_work {
                waiting.naming
            } else {
                waiting.all
            };
            if left == 0 && Instant::now() >= noticed {
                return Ok(());
            }
            if left > 0 {
                self.tell(format!(
                    "waiting for {} in the queue",
                    count(left, "payment")
                ));
            }
            sleep(LOOK_INTERVAL).await;
            self.view_while(|pause| pause.draining).await?;
        }
    }

    /// The lane. Fails when its pause is not the one of this drain any more.
    async fn view_while(
        &self,
        is_ours: impl FnOnce(&Pause) -> bool,
    ) -> Result<Option<LaneView>, CommandError> {
        let lanes = self.ledger.lanes().await?;
        let view = lanes.into_iter().find(|view| view.lane == self.lane);
        let pause = view.as_ref().and_then(|view| view.pause);
        if pause.as_ref().is_some_and(is_ours) {
            return Ok(view);
        }
        Err(format!(
            "somebody else resumed {} or drained it again: it is not drained",
            named(self.lane)
        )
        .into())
    }

    /// Waits for the end of what the paused lane has sent. `false`: a payment came late and only this lane can send it.
    async fn follow(&mut self) -> Result<bool, CommandError> {
        loop {
            if self.ledger.waiting_for(self.lane).await?.naming > 0 {
                return Ok(false);
            }
            let view = self.view_while(|pause| !pause.draining).await?;
            let open = view.filter(|view| view.open > 0);
            let Some(open) = open else { return Ok(true) };
            self.tell(format!("waiting for {} under way", under_way(&open)));
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Prints progress once.
    fn tell(&mut self, what: String) {
        if what != self.said && !self.quiet {
            say(&what);
        }
        self.said = what;
    }
}
