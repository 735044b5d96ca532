//! Keeps the tasks of the engine alive: one that panics or ends is logged, counted and started again after a pause. One that keeps
//! dying ends the process, so that whatever supervises that starts it anew.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::protocol::Network;

/// A task that dies so often within [`LATELY`] is not started again.
const DEATHS_MAX: usize = 5;
const LATELY: Duration = Duration::from_mins(1);
/// The pause before a task is started again; twice as long after each further death.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A task of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task {
    /// What it does, in a word: `lane`, `watch`.
    pub name: &'static str,
    /// For which network, unless for the process.
    pub network: Option<Network>,
    /// For which signer, if it is a lane.
    pub signer: Option<Address>,
}

impl Task {
    /// The name of the tasks that follow the chain.
    pub const WATCH: &'static str = "watch";
    /// The name of the lanes.
    pub const LANE: &'static str = "lane";

    /// A task of the process.
    pub const fn of_process(name: &'static str) -> Self {
        Self {
            name,
            network: None,
            signer: None,
        }
    }

    /// A task of a network.
    pub const fn of(network: Network, name: &'static str) -> Self {
        Self {
            name,
            network: Some(network),
            signer: None,
        }
    }

    /// A lane.
    pub const fn lane(network: Network, signer: Address) -> Self {
        Self {
            name: Self::LANE,
            network: Some(network),
            signer: Some(signer),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)?;
        if let Some(signer) = self.signer {
            write!(formatter, " of {signer}")?;
        }
        Ok(())
    }
}

/// How a task is doing that has died lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ailing {
    /// Which.
    pub task: Task,
    /// Whether it does not run now.
    pub down: bool,
    /// How often it has died within a minute.
    pub deaths: usize,
}

/// A task of the engine died again and again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {task} died too often (see the log for why); x402d ends, so that it is started anew: what counts is in the ledger"
)]
pub struct EngineFailed {
    task: String,
}

/// Starts tasks and keeps them alive. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tasks: TaskTracker,
    stopped: CancellationToken,
    failed: CancellationToken,
    failure: Mutex<Option<EngineFailed>>,
    deaths: Mutex<HashMap<Task, Deaths>>,
}

#[derive(Debug, Default)]
struct Deaths {
    /// The latest.
    at: VecDeque<Instant>,
    down: bool,
}

impl Deaths {
    /// How many there were lately.
    fn lately(&mut self, now: Instant) -> usize {
        self.at.retain(|at| now.duration_since(*at) < LATELY);
        self.at.len()
    }
}

impl Supervisor {
    /// Keeps `tasks` alive until `stopped`.
    pub fn new(tasks: TaskTracker, stopped: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            tasks,
            stopped,
            failed: CancellationToken::new(),
            failure: Mutex::default(),
            deaths: Mutex::default(),
        }))
    }

    /// Starts a task, and starts it again whenever it dies. `begin` returns `None` when it cannot be started again.
    pub fn keep<Running>(&self, task: Task, begin: impl FnMut() -> Option<Running> + Send + 'static)
    where
        Running: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.0
            .tasks
            .spawn(async move { this.kept(task, begin).await });
    }

    /// Starts a task that cannot be started again: its death ends the process.
    pub fn run(&self, task: Task, running: impl Future<Output = ()> + Send + 'static) {
        let mut once = Some(running);
        self.keep(task, move || once.take());
    }

    /// Ends when a task has died too often.
    pub async fn failed(&self) -> EngineFailed {
        self.0.failed.cancelled().await;
        let failure = self.0.failure.lock();
        let failure = failure.unwrap_or_else(PoisonError::into_inner).clone();
        failure.unwrap_or_else(|| EngineFailed {
            task: "engine".to_owned(),
        })
    }

    /// The tasks of a network, or of the process, that have died within a minute.
    pub fn ailing(&self, network: Option<Network>) -> Vec<Ailing> {
        let now = Instant::now();
        let mut all = self.deaths();
        let mine = all.iter_mut().filter(|(task, _)| task.network == network);
        let ailing = mine.map(|(task, deaths)| Ailing {
            task: *task,
            down: deaths.down,
            deaths: deaths.lately(now),
        });
        ailing.filter(|one| one.down || one.deaths > 0).collect()
    }

    async fn kept<Running>(&self, task: Task, mut begin: impl FnMut() -> Option<Running>)
    where
        Running: Future<Output = ()> + Send + 'static,
    {
        let mut running = begin();
        while let Some(alive) = running {
            let why = ended(alive).await;
            if self.0.stopped.is_cancelled() {
                return;
            }
            let deaths = self.died(task);
            running = if deaths < DEATHS_MAX { begin() } else { None };
            let pause = FIRST_PAUSE * (1 << deaths.min(DEATHS_MAX).saturating_sub(1));
            if running.is_some() {
                tracing::error!(%task, network = task.network.map(tracing::field::display), why, deaths, pause_ms = pause.as_millis(), "engine task died: it is started again");
            } else {
                tracing::error!(%task, network = task.network.map(tracing::field::display), why, deaths, "engine task died: it is given up, and the process ends");
                self.give_up(task);
                return;
            }
            tokio::select! {
                () = self.0.stopped.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            self.deaths().entry(task).or_default().down = false;
        }
    }

    /// Takes note of a death. Returns how many there were within a minute.
    fn died(&self, task: Task) -> usize {
        let now = Instant::now();
        let mut all = self.deaths();
        let deaths = all.entry(task).or_default();
        deaths.down = true;
        deaths.at.push_back(now);
        deaths.lately(now)
    }

    fn give_up(&self, task: Task) {
        let failure = self.0.failure.lock();
        failure
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(EngineFailed {
                task: task.to_string(),
            });
        self.0.failed.cancel();
    }

    fn deaths(&self) -> MutexGuard<'_, HashMap<Task, Deaths>> {
        self.0.deaths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a task to its end, which is not expected. Returns why it ended.
async fn ended(alive: impl Future<Output = ()> + Send + 'static) -> String {
    let mut task = JoinSet::new();
    task.spawn(alive);
    match task.join_next().await {
        Some(Err(error)) => panic_text(error),
        Some(Ok(())) | None => "it ended by itself".to_owned(),
    }
}

/// What a task that did not come to its end said.
fn panic_text(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "it was cancelled".to_owned();
    };
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Logs that a part of a task's work panicked. What it was about is in the ledger, and is done again.
pub(super) fn say_panicked(part: &'static str, error: JoinError) {
    if error.is_panic() {
        tracing::error!(
            part,
            why = panic_text(error),
            "engine task panicked in part: what it had in hand is taken up again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Task = Task::of_process("test");

    fn supervisor() -> (Supervisor, CancellationToken) {
        let stopped = CancellationToken::new();
        (
            Supervisor::new(TaskTracker::new(), stopped.clone()),
            stopped,
        )
    }

    #[tokio::test]
    async fn a_task_that_ends_and_cannot_be_started_again_ends_the_engine() {
        let (supervisor, _) = supervisor();
        supervisor.run(TASK, async {});
        let failure = supervisor.failed().await;
        assert!(failure.to_string().contains("the test died"), "{failure}");
        let down = Ailing {
            task: TASK,
            down: true,
            deaths: 1,
        };
        assert_eq!(supervisor.ailing(None), vec![down]);
    }

    #[tokio::test]
    async fn a_task_that_ends_while_the_engine_stops_has_not_died() {
        let (supervisor, stopped) = supervisor();
        stopped.cancel();
        supervisor.run(TASK, async {});
        supervisor.0.tasks.close();
        supervisor.0.tasks.wait().await;
        assert!(!supervisor.0.failed.is_cancelled());
        assert_eq!(supervisor.ailing(None), vec![]);
    }

    #[tokio::test]
    async fn a_panic_is_told_by_its_text() {
        let text = |what: &'static str| async move { assert!(what.is_empty(), "it said {what}") };
        assert_eq!(ended(text("this")).await, "it said this");
        assert_eq!(ended(text("")).await, "it ended by itself");
    }

    #[test]
    fn deaths_of_the_last_minute_count() {
        let mut deaths = Deaths::default();
        let now = Instant::now();
        deaths.at.extend([now, now + LATELY / 2]);
        assert_eq!(deaths.lately(now + LATELY / 2), 2);
        assert_eq!(deaths.lately(now + LATELY), 1);
        assert_eq!(deaths.lately(now + LATELY * 2), 0);
    }
}
