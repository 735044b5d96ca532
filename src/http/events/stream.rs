//! Events as they happen: server-sent events, which begin where the reader left off.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::feed::{Part, Place};
use super::{Audience, EventView, ROWS_READ, unknown_position};
use crate::facilitator::Access;
use crate::http::operator::Reader;
use crate::http::{AppState, Problem};
use crate::ledger::{EventPosition, FeedEvent, FeedPage, Ledger};
use crate::payment::Who;

/// A silent stream says so often that it is there. Proxies close silent connections after a minute at the earliest.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// nginx would collect the events until its buffer is full.
const UNBUFFERED: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-accel-buffering"),
    HeaderValue::from_static("no"),
);

/// One stream.
struct Follower {
    ledger: Ledger,
    access: Access,
    audience: Audience,
    parts: broadcast::Receiver<Arc<Part>>,
    /// Up to here the feed was read; what of it is told waits in `told`.
    position: EventPosition,
    /// There is more behind `position` that the parts to come do not contain.
    is_behind: bool,
    told: VecDeque<FeedEvent>,
    heartbeat: Instant,
    stopping: CancellationToken,
    _place: Place,
}

/// The answer to a request for a stream: from the events after `last`, or from now on.
pub(in crate::http) async fn answer(
    state: &AppState,
    audience: Audience,
    last: Option<EventPosition>,
) -> Result<Response, Problem> {
    let caller = match &audience.reader {
        Reader::Operator(_) => Who::Operator,
        Reader::Key(key) => Who::Key(key.id),
    };
    let place = state.events.place(caller).ok_or_else(|| {
        let why = "too many streams of events are open; close one, or read pages";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", why).retryable(true)
    })?;
    let ledger = &state.facilitator.ledger;
    let parts = state.events.listen();
    let mut follower = Follower {
        ledger: ledger.clone(),
        access: state.facilitator.access.clone(),
        audience,
        parts,
        position: EventPosition::default(),
        is_behind: false,
        told: VecDeque::new(),
        heartbeat: Instant::now() + HEARTBEAT,
        stopping: state.facilitator.stopping.clone(),
        _place: place,
    };
    match last {
        None => follower.position = ledger.event_place(0).await?,
        Some(last) => {
            follower.position = last;
            let page = ledger.events_after(last, ROWS_READ).await?;
            follower.take(page.ok_or_else(unknown_position)?);
        }
    }
    let events = unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(([UNBUFFERED], Sse::new(events)).into_response())
}

impl Follower {
    /// The next event or heartbeat. `None` ends the stream; its reader connects again and misses nothing.
    async fn next(&mut self) -> Option<Event> {
        loop {
            // Before each event: a stream that is never silent would outlive its key otherwise.
            if self.stopping.is_cancelled() || !self.audience.reader.may_still_read(&self.access) {
                return None;
            }
            if let Some(event) = self.told.pop_front() {
                return Some(self.event(&event));
            }
            if self.is_behind {
                let page = self.ledger.events_after(self.position, ROWS_READ).await;
                self.take(page.ok()??);
                continue;
            }
            tokio::select! {
                part = self.parts.recv() => self.hear(&*part.ok()?),
                () = sleep_until(self.heartbeat) => {
                    if self.audience.reader.may_still_read(&self.access) {
                        return Some(self.still_there());
                    }
                }
                () = self.stopping.cancelled() => return None,
            }
        }
    }

    fn hear(&mut self, part: &Part) {
        if part.after > self.position {
            self.is_behind = true;
        } else {
            let events = part.page.events.iter();
            let new = events
                .filter(|event| event.position > self.position && self.audience.is_told(event));
            self.told.extend(new.cloned());
            self.position = self.position.max(part.page.end);
        }
    }

    fn take(&mut self, page: FeedPage) {
        self.position = page.end;
        self.is_behind = page.more;
        let events = page.events.into_iter();
        let told = events.filter(|event| self.audience.is_told(event));
        self.told.extend(told);
    }

    fn event(&mut self, event: &FeedEvent) -> Event {
        self.heartbeat = Instant::now() + HEARTBEAT;
        let told = Event::default()
            .id(event.position.to_string())
            .event(event.kind.name());
        told.json_data(EventView::from(event)).unwrap_or_default()
    }

    /// Says that the stream is there, and how far it has read: what was not for this reader is not read again.
    fn still_there(&mut self) -> Event {
        self.heartbeat = Instant::now() + HEARTBEAT;
        let position = self.position.to_string();
        Event::default().comment("still there").id(position)
    }
}
