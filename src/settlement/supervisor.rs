//! Keeps the engine's tasks running. A task that panics or ends is logged, counted and restarted after a delay. A task that keeps failing
//! ends the process, so that the operator's process supervisor restarts it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, error_span};

use crate::protocol::Network;

/// A task that fails this often within [`FAILURE_WINDOW`] is not restarted.
const FAILURES_MAX: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_mins(1);
/// The delay before the first restart; doubled after each further failure.
const FIRST_RESTART_DELAY: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task {
    /// `lane`, `watch` and so on.
    pub name: &'static str,
    /// `None` for a task of the whole process.
    pub network: Option<Network>,
    /// The signer of a lane.
    pub signer: Option<Address>,
}

impl Task {
    /// The task that follows the chain.
    pub const WATCH: &'static str = "watch";
    pub const LANE: &'static str = "lane";

    pub const fn of_process(name: &'static str) -> Self {
        Self {
            name,
            network: None,
            signer: None,
        }
    }

    pub const fn of(network: Network, name: &'static str) -> Self {
        Self {
            name,
            network: Some(network),
            signer: None,
        }
    }

    pub const fn lane(network: Network, signer: Address) -> Self {
        Self {
            name: Self::LANE,
            network: Some(network),
            signer: Some(signer),
        }
    }
}

impl Task {
    /// The span that names network and signer in each log line of the task. An error span, so that no log level leaves it out.
    pub fn span(&self) -> Span {
        error_span!(
            "engine",
            task = self.name,
            network = self.network.map(tracing::field::display),
            signer = self.signer.map(tracing::field::display),
        )
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

/// A task that has failed within the last minute, or is not running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailingTask {
    pub task: Task,
    /// Whether it is not running now.
    pub down: bool,
    /// Failures within the last minute.
    pub failures: usize,
}

/// A task of the engine failed too often, or cannot be restarted; the process has to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {task} failed for good (the log says why); x402d exits so that it can be restarted; the ledger has the state of every payment"
)]
pub struct EngineFailed {
    task: String,
}

/// Starts tasks and restarts them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tasks: TaskTracker,
    stopped: CancellationToken,
    failed: CancellationToken,
    failure: Mutex<Option<EngineFailed>>,
    failures: Mutex<HashMap<Task, Failures>>,
}

#[derive(Debug, Default)]
struct Failures {
    /// Times of the latest failures.
    at: VecDeque<Instant>,
    down: bool,
}

impl Failures {
    /// Number of failures within [`FAILURE_WINDOW`].
    fn recent(&mut self, now: Instant) -> usize {
        self.at
            .retain(|at| now.duration_since(*at) < FAILURE_WINDOW);
        self.at.len()
    }
}

impl Supervisor {
    /// Keeps `tasks` running until `stopped`.
    pub fn new(tasks: TaskTracker, stopped: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            tasks,
            stopped,
            failed: CancellationToken::new(),
            failure: Mutex::default(),
            failures: Mutex::default(),
        }))
    }

    /// Starts a task, and restarts it whenever it fails. `begin` returns `None` when the task cannot be restarted.
    pub fn keep_running<Running>(
        &self,
        task: Task,
        begin: impl FnMut() -> Option<Running> + Send + 'static,
    ) where
        Running: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.0
            .tasks
            .spawn(async move { this.restart_loop(task, begin).await });
    }

    /// Starts a task that cannot be restarted: its failure ends the process.
    pub fn run(&self, task: Task, running: impl Future<Output = ()> + Send + 'static) {
        let mut once = Some(running);
        self.keep_running(task, move || once.take());
    }

    /// Ends when a task has failed too often.
    pub async fn failed(&self) -> EngineFailed {
        self.0.failed.cancelled().await;
        let failure = self.0.failure.lock();
        let failure = failure.unwrap_or_else(PoisonError::into_inner).clone();
        failure.unwrap_or_else(|| EngineFailed {
            task: "engine".to_owned(),
        })
    }

    /// Tasks of a network, or of the process (`None`), that have failed within a minute.
    pub fn failing(&self, network: Option<Network>) -> Vec<FailingTask> {
        let now = Instant::now();
        let mut all = self.failures();
        let mine = all.iter_mut().filter(|(task, _)| task.network == network);
        let failing = mine.map(|(task, failures)| FailingTask {
            task: *task,
            down: failures.down,
            failures: failures.recent(now),
        });
        failing.filter(|one| one.down || one.failures > 0).collect()
    }

    async fn restart_loop<Running>(&self, task: Task, mut begin: impl FnMut() -> Option<Running>)
    where
        Running: Future<Output = ()> + Send + 'static,
    {
        let mut running = begin();
        while let Some(future) = running {
            let why = outcome_of(future.instrument(task.span())).await;
            if self.0.stopped.is_cancelled() {
                return;
            }
            let failures = self.note_failure(task);
            running = if failures < FAILURES_MAX {
                begin()
            } else {
                None
            };
            let delay = FIRST_RESTART_DELAY * (1 << failures.min(FAILURES_MAX).saturating_sub(1));
            if running.is_some() {
                tracing::error!(%task, network = task.network.map(tracing::field::display), why, failures, pause_ms = delay.as_millis(), "engine task failed: restarting it");
            } else {
                let what = if failures < FAILURES_MAX {
                    "engine task failed and cannot be restarted: the process ends"
                } else {
                    "engine task failed too often: the process ends"
                };
                tracing::error!(%task, network = task.network.map(tracing::field::display), why, failures, "{what}");
                self.stop_process(task);
                return;
            }
            tokio::select! {
                () = self.0.stopped.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            self.failures().entry(task).or_default().down = false;
        }
    }

    /// Records a failure. Returns how many there were within a minute.
    fn note_failure(&self, task: Task) -> usize {
        let now = Instant::now();
        let mut all = self.failures();
        let failures = all.entry(task).or_default();
        failures.down = true;
        failures.at.push_back(now);
        failures.recent(now)
    }

    fn stop_process(&self, task: Task) {
        let failure = self.0.failure.lock();
        failure
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(EngineFailed {
                task: task.to_string(),
            });
        self.0.failed.cancel();
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<Task, Failures>> {
        self.0
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a task to its end, which is not expected, and returns why it ended.
async fn outcome_of(future: impl Future<Output = ()> + Send + 'static) -> String {
    let mut task = JoinSet::new();
    task.spawn(future);
    match task.join_next().await {
        Some(Err(error)) => panic_text(error),
        Some(Ok(())) | None => "it ended by itself".to_owned(),
    }
}

/// The panic message of a failed task.
fn panic_text(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "it was cancelled".to_owned();
    };
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Logs that a part of a task's work panicked. The payments are in the ledger, and their work is done again.
pub(super) fn report_panic(part: &'static str, error: JoinError) {
    if error.is_panic() {
        tracing::error!(
            part,
            why = panic_text(error),
            "engine task: a part of its work panicked and is done again"
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
    async fn failure_of_a_task_without_restart_ends_the_engine() {
        let (supervisor, _) = supervisor();
        supervisor.run(TASK, async {});
        let failure = supervisor.failed().await;
        assert!(failure.to_string().contains("the test failed"), "{failure}");
        let down = FailingTask {
            task: TASK,
            down: true,
            failures: 1,
        };
        assert_eq!(supervisor.failing(None), vec![down]);
    }

    #[tokio::test]
    async fn task_that_ends_during_shutdown_has_not_failed() {
        let (supervisor, stopped) = supervisor();
        stopped.cancel();
        supervisor.run(TASK, async {});
        supervisor.0.tasks.close();
        supervisor.0.tasks.wait().await;
        assert!(!supervisor.0.failed.is_cancelled());
        assert_eq!(supervisor.failing(None), vec![]);
    }

    #[tokio::test]
    async fn panic_is_reported_with_its_message() {
        let text = |what: &'static str| async move { assert!(what.is_empty(), "it said {what}") };
        assert_eq!(outcome_of(text("this")).await, "it said this");
        assert_eq!(outcome_of(text("")).await, "it ended by itself");
    }

    #[test]
    fn failures_of_the_last_minute_count() {
        let mut failures = Failures::default();
        let now = Instant::now();
        failures.at.extend([now, now + FAILURE_WINDOW / 2]);
        assert_eq!(failures.recent(now + FAILURE_WINDOW / 2), 2);
        assert_eq!(failures.recent(now + FAILURE_WINDOW), 1);
        assert_eq!(failures.recent(now + FAILURE_WINDOW * 2), 0);
    }
}
