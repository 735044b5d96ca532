//! Groups calls: an idle coalescer answers a call at once, a busy one gathers the calls that come meanwhile and answers them together.
//!
//! Used where one round trip can serve many callers: chain facts, and the statements on the path of a payment. Knows nothing of either.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// The limits of a coalescer.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    /// Calls in one group, at most.
    pub rows_max: usize,
    /// Groups in progress at once, at most.
    pub groups_max: usize,
    /// Least time between the starts of two groups that are not full; calls that come earlier are gathered.
    pub pace: Duration,
    /// Calls waiting, at most; further ones fail.
    pub waiting_max: usize,
}

/// There is no answer. A write may have happened or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The call was not begun.
    #[error("too many calls are waiting")]
    TooMany,
    /// The worker has stopped, or this group's answer was lost.
    #[error("worker stopped")]
    Gone,
}

struct Question<Q, A> {
    question: Q,
    answer: oneshot::Sender<A>,
}

/// The sender of calls. Cheap to clone.
pub struct Coalescer<Q, A> {
    questions: mpsc::Sender<Question<Q, A>>,
}

/// The worker behind a [`Coalescer`]: run it for as long as calls may come.
pub struct GroupWorker<Q, A> {
    questions: mpsc::Receiver<Question<Q, A>>,
    gathering: GroupLimits,
}

impl<Q, A> fmt::Debug for Coalescer<Q, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Coalescer").finish_non_exhaustive()
    }
}

impl<Q, A> fmt::Debug for GroupWorker<Q, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GroupWorker")
            .finish_non_exhaustive()
    }
}

impl<Q, A> Clone for Coalescer<Q, A> {
    fn clone(&self) -> Self {
        Self {
            questions: self.questions.clone(),
        }
    }
}

/// A coalescer and its worker.
pub fn coalescer<Q, A>(gathering: GroupLimits) -> (Coalescer<Q, A>, GroupWorker<Q, A>) {
    let (sender, questions) = mpsc::channel(gathering.waiting_max);
    let answering = GroupWorker {
        questions,
        gathering,
    };
    (Coalescer { questions: sender }, answering)
}

impl<Q, A> Coalescer<Q, A> {
    /// Sends a call, and waits for its answer.
    pub async fn ask(&self, question: Q) -> Result<A, Unanswered> {
        let (answer, waiting) = oneshot::channel();
        self.questions
            .try_send(Question { question, answer })
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => Unanswered::TooMany,
                mpsc::error::TrySendError::Closed(_) => Unanswered::Gone,
            })?;
        waiting.await.map_err(|_| Unanswered::Gone)
    }
}

impl<Q: Send + 'static, A: Send + 'static> GroupWorker<Q, A> {
    /// Answers until every [`Coalescer`] is dropped. `answer` returns one answer for each call, in their order.
    pub async fn run<F, Answers>(mut self, answer: F)
    where
        F: Fn(Vec<Q>) -> Answers,
        Answers: Future<Output = Vec<A>> + Send + 'static,
    {
        let mut groups = JoinSet::new();
        let mut due = Instant::now();
        loop {
            let mut group = Vec::new();
            if self.gather(&mut group, due).await == 0 {
                break;
            }
            while groups.len() >= self.gathering.groups_max {
                groups.join_next().await;
            }
            while group.len() < self.gathering.rows_max
                && let Ok(question) = self.questions.try_recv()
            {
                group.push(question);
            }
            // A caller that stopped waiting needs no answer.
            group.retain(|question| !question.answer.is_closed());
            if group.is_empty() {
                continue;
            }
            let (questions, callers): (Vec<_>, Vec<_>) = group
                .into_iter()
                .map(|waiting| (waiting.question, waiting.answer))
                .unzip();
            let answers = answer(questions);
            groups.spawn(async move {
                for (answer, caller) in answers.await.into_iter().zip(callers) {
                    caller.send(answer).ok();
                }
            });
            due = Instant::now() + self.gathering.pace;
            while groups.try_join_next().is_some() {}
        }
        groups.join_all().await;
    }

    /// Waits for a call, and then for more until `due` or until the group is full.
    async fn gather(&mut self, group: &mut Vec<Question<Q, A>>, due: Instant) -> usize {
        let full = self.gathering.rows_max;
        self.questions.recv_many(group, full).await;
        while !group.is_empty() && group.len() < full {
            let room = full - group.len();
            match timeout_at(due, self.questions.recv_many(group, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        group.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const GROUP_LIMITS: GroupLimits = GroupLimits {
        rows_max: 10,
        groups_max: 2,
        pace: Duration::from_millis(500),
        waiting_max: 25,
    };

    #[tokio::test]
    async fn first_call_goes_alone_and_later_ones_in_groups() {
        let (asking, answering) = coalescer::<u32, u32>(GROUP_LIMITS);
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let mut tasks = JoinSet::new();
        tasks.spawn(answering.run(move |questions| {
            seen.lock().unwrap().push(questions.len());
            async move { questions.iter().map(|question| question * 2).collect() }
        }));
        let began = Instant::now();
        assert_eq!(asking.ask(1).await, Ok(2));
        assert!(began.elapsed() < GROUP_LIMITS.pace);
        let asked = (0..13).map(|number| {
            let asking = asking.clone();
            async move { (number, asking.ask(number).await) }
        });
        let mut answers: JoinSet<_> = asked.collect();
        while let Some(Ok((number, answer))) = answers.join_next().await {
            assert_eq!(answer, Ok(number * 2));
        }
        drop(asking);
        tasks.join_all().await;
        assert_eq!(*sizes.lock().unwrap(), [1, 10, 3]);
    }

    #[tokio::test]
    async fn full_queue_and_stopped_worker_are_different_errors() {
        let (asking, answering) = coalescer::<u32, u32>(GROUP_LIMITS);
        let waiting: JoinSet<_> = (0..25)
            .map(|number| {
                let asking = asking.clone();
                async move { asking.ask(number).await }
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(asking.ask(99).await, Err(Unanswered::TooMany));
        drop(answering);
        assert_eq!(asking.ask(99).await, Err(Unanswered::Gone));
        for answer in waiting.join_all().await {
            assert_eq!(answer, Err(Unanswered::Gone));
        }
    }
}
