//! Until when a connection may stay in the state that it is in.
//!
//! The stream says what was received and written, the service where a request begins and its answer ends. The task of the connection waits
//! for the deadline and closes the connection. A caller cannot move a deadline by sending single bytes: a head has ten seconds from its
//! first byte, and only what is written counts as progress of a request.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::ready;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How long the head of a request may take: on a new connection from the accept, later from its first byte.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may be idle between two requests: longer than common clients keep one.
const IDLE_LIMIT: Duration = Duration::from_secs(75);
/// How long a request may be without any part of its answer: longer than any call waits.
const ANSWER_LIMIT: Duration = Duration::from_mins(2);
/// How long the caller may take to receive the next `RECEIVED_LEAST` bytes of an answer that does not fit into the socket's buffer.
const RECEIVE_LIMIT: Duration = Duration::from_secs(30);
const RECEIVED_LEAST: usize = 16 * 1024;
/// How long a client has to read that its version of HTTP is refused.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No byte was received yet.
    New,
    /// Between the first byte of a head and the last.
    Head,
    /// Between the head of a request and the end of its answer.
    Request,
    /// The answer is complete, and a part of it not written yet.
    Answered,
    Idle,
    /// Its version of HTTP was refused.
    Refused,
}

/// An answer that the socket's buffer has no room for.
#[derive(Debug, Clone, Copy)]
struct Unreceived {
    bytes: usize,
    until: Instant,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    until: Instant,
    has_written: bool,
    unreceived: Option<Unreceived>,
}

/// The deadline of one connection.
#[derive(Debug, Clone)]
pub(super) struct Deadline(Arc<Mutex<State>>);

impl Deadline {
    pub(super) fn of_new_connection() -> Self {
        Self(Arc::new(Mutex::new(State {
            phase: Phase::New,
            until: Instant::now() + HEAD_LIMIT,
            has_written: false,
            unreceived: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes were received.
    pub(super) fn received(&self) {
        let mut state = self.state();
        match state.phase {
            Phase::New => state.phase = Phase::Head,
            Phase::Idle => state.enter(Phase::Head, HEAD_LIMIT),
            Phase::Head | Phase::Request | Phase::Answered | Phase::Refused => {}
        }
    }

    /// The head of a request is complete.
    pub(super) fn request_began(&self) {
        self.state().enter(Phase::Request, ANSWER_LIMIT);
    }

    /// The answer is complete, as far as the service is concerned.
    pub(super) fn answer_ended(&self) {
        self.state().phase = Phase::Answered;
    }

    /// The socket's buffer took bytes.
    pub(super) fn wrote(&self, bytes: usize) {
        let mut state = self.state();
        state.has_written = true;
        if let Some(unreceived) = &mut state.unreceived {
            unreceived.bytes += bytes;
            if unreceived.bytes >= RECEIVED_LEAST {
                *unreceived = Unreceived::now();
            }
        }
        if state.phase == Phase::Request {
            state.until = Instant::now() + ANSWER_LIMIT;
        }
    }

    /// The socket's buffer is full.
    pub(super) fn blocked(&self) {
        self.state().unreceived.get_or_insert_with(Unreceived::now);
    }

    /// Everything is written.
    pub(super) fn flushed(&self) {
        let mut state = self.state();
        state.unreceived = None;
        if std::mem::take(&mut state.has_written) && state.phase == Phase::Answered {
            state.enter(Phase::Idle, IDLE_LIMIT);
        }
    }

    /// The client's version of HTTP was refused.
    pub(super) fn refused(&self) {
        self.state().enter(Phase::Refused, REFUSAL_LIMIT);
    }

    fn instant(&self) -> Instant {
        let state = self.state();
        let unreceived = state.unreceived.map(|unreceived| unreceived.until);
        unreceived.map_or(state.until, |until| until.min(state.until))
    }

    /// Returns when the deadline has passed. Has to be polled whenever the connection was: its deadline may be an earlier one then.
    pub(super) async fn passed(&self) {
        let mut sleep = pin!(sleep_until(self.instant()));
        poll_fn(|context| {
            loop {
                let instant = self.instant();
                if instant < sleep.deadline() {
                    sleep.as_mut().reset(instant);
                }
                ready!(sleep.as_mut().poll(context));
                // A later deadline does not reset the timer each time: it is only looked at when the timer has run out.
                if instant <= sleep.deadline() {
                    return std::task::Poll::Ready(());
                }
                sleep.as_mut().reset(instant);
            }
        })
        .await;
    }
}

impl State {
    fn enter(&mut self, phase: Phase, limit: Duration) {
        self.phase = phase;
        self.until = Instant::now() + limit;
    }
}

impl Unreceived {
    fn now() -> Self {
        Self {
            bytes: 0,
            until: Instant::now() + RECEIVE_LIMIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds that are left, rounded up.
    fn left(deadline: &Deadline) -> u64 {
        let left = deadline.instant().saturating_duration_since(Instant::now());
        (left + Duration::from_millis(999)).as_secs()
    }

    /// As if so many seconds had passed.
    fn let_pass(deadline: &Deadline, seconds: u64) {
        let passed = Duration::from_secs(seconds);
        let mut state = deadline.state();
        state.until -= passed;
        if let Some(unreceived) = &mut state.unreceived {
            unreceived.until -= passed;
        }
    }

    #[test]
    fn single_bytes_move_no_deadline() {
        let deadline = Deadline::of_new_connection();
        for passed in 0..9 {
            assert_eq!(left(&deadline), 10 - passed);
            deadline.received();
            let_pass(&deadline, 1);
        }
    }

    #[test]
    fn each_phase_has_its_own_limit() {
        let deadline = Deadline::of_new_connection();
        deadline.received();
        deadline.request_began();
        assert_eq!(left(&deadline), 120);
        // The body of the request is no progress; an informational answer is no end.
        let_pass(&deadline, 5);
        deadline.received();
        assert_eq!(left(&deadline), 115);
        deadline.wrote(25);
        deadline.flushed();
        assert_eq!(left(&deadline), 120);
        deadline.answer_ended();
        deadline.wrote(100);
        deadline.flushed();
        assert_eq!(left(&deadline), 75);
        // hyper flushes again without having written: idle since then all the same.
        let_pass(&deadline, 1);
        deadline.flushed();
        assert_eq!(left(&deadline), 74);
        deadline.received();
        assert_eq!(left(&deadline), 10);
        deadline.refused();
        assert_eq!(left(&deadline), 2);
    }

    #[test]
    fn answer_that_is_not_received_has_thirty_seconds() {
        let deadline = Deadline::of_new_connection();
        deadline.request_began();
        deadline.wrote(100_000);
        deadline.blocked();
        assert_eq!(left(&deadline), 30);
        let_pass(&deadline, 20);
        deadline.wrote(1_000);
        deadline.blocked();
        // A pipelined request is no progress of this answer.
        deadline.request_began();
        assert_eq!(left(&deadline), 10);
        deadline.wrote(16_000);
        assert_eq!(left(&deadline), 30);
    }

    /// The timer was set for a later deadline than the one that came into force meanwhile.
    #[tokio::test]
    async fn earlier_deadline_is_noticed() {
        let deadline = Deadline::of_new_connection();
        deadline.request_began();
        let mut passed = pin!(deadline.passed());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(passed.as_mut().poll(&mut context).is_pending());
        deadline.answer_ended();
        deadline.wrote(1);
        deadline.flushed();
        deadline.received();
        let_pass(&deadline, 9);
        tokio::time::timeout(Duration::from_secs(30), passed)
            .await
            .unwrap();
    }
}
