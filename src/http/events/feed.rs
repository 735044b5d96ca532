//! One reader of the feed for all streams of a process, and the places for streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};

use crate::ledger::{EventPosition, FeedPage, Ledger, LedgerError};
use crate::payment::Who;
use crate::telemetry::causes;
use crate::telemetry::metrics::{Limit, reached};

/// How often the ledger is asked for new events, while somebody listens.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Rows that are read at a time.
const ROWS_READ: u16 = 1000;
/// Parts of the feed that a stream may be behind; a slower one is ended.
const BEHIND_MAX: usize = 32;
/// Streams of a process, and of one caller.
const STREAMS_MAX: usize = 256;
const STREAMS_PER_CALLER_MAX: usize = 16;

/// A part of the feed, as all streams get it.
#[derive(Debug)]
pub(super) struct Part {
    /// Where it begins: whoever is not there yet has to read what is before it.
    pub(super) after: EventPosition,
    pub(super) page: FeedPage,
}

/// Passes new events to the streams of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventFeed {
    parts: broadcast::Sender<Arc<Part>>,
    listening: Arc<Notify>,
    places: Arc<Mutex<HashMap<Who, usize>>>,
}

impl Default for EventFeed {
    fn default() -> Self {
        Self {
            parts: broadcast::channel(BEHIND_MAX).0,
            listening: Arc::default(),
            places: Arc::default(),
        }
    }
}

/// The place of a stream; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    caller: Who,
    places: Arc<Mutex<HashMap<Who, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = locked(&self.places);
        if let Some(count) = places.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                places.remove(&self.caller);
            }
        }
    }
}

impl EventFeed {
    /// A place for a stream; `None`: all are taken, or the caller has as many as it may have.
    pub(super) fn place(&self, caller: Who) -> Option<Place> {
        let mut places = locked(&self.places);
        let total: usize = places.values().sum();
        let count = places.entry(caller).or_default();
        if total >= STREAMS_MAX || *count >= STREAMS_PER_CALLER_MAX {
            places.retain(|_, count| *count > 0);
            reached(Limit::EventStreams);
            return None;
        }
        *count += 1;
        drop(places);
        Some(Place {
            caller,
            places: Arc::clone(&self.places),
        })
    }

    /// New parts from now on. What a stream reads from the ledger after this call meets them without a gap.
    pub(super) fn listen(&self) -> broadcast::Receiver<Arc<Part>> {
        let parts = self.parts.subscribe();
        self.listening.notify_one();
        parts
    }

    /// Reads new events as long as somebody listens.
    pub async fn run(self, ledger: Ledger) {
        let mut position = None;
        let mut failing = false;
        loop {
            if self.parts.receiver_count() == 0 {
                position = None;
                self.listening.notified().await;
                continue;
            }
            let read = self.read(&ledger, position).await;
            let has_failed = read.is_err();
            match read {
                Ok((next, more)) => {
                    position = Some(next);
                    failing = false;
                    if more {
                        continue;
                    }
                }
                Err(error) if !failing => {
                    tracing::warn!(error = causes(&error), "events not read: streams wait");
                }
                Err(_) => {}
            }
            failing = has_failed;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Reads and passes on the next part; `None`: begins at the end, and says to all streams where that is.
    async fn read(
        &self,
        ledger: &Ledger,
        position: Option<EventPosition>,
    ) -> Result<(EventPosition, bool), LedgerError> {
        let page = match position {
            Some(after) => ledger.events_after(after, ROWS_READ).await?,
            None => None,
        };
        let (after, page) = match (position, page) {
            (Some(after), Some(page)) if page.end == after => return Ok((after, false)),
            (Some(after), Some(page)) => (after, page),
            _ => {
                let end = ledger.event_place(0).await?;
                (end, FeedPage::empty_at(end))
            }
        };
        let (end, more) = (page.end, page.more);
        // Nobody may listen any more.
        self.parts.send(Arc::new(Part { after, page })).ok();
        Ok((end, more))
    }
}

fn locked(places: &Mutex<HashMap<Who, usize>>) -> MutexGuard<'_, HashMap<Who, usize>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_places_by_caller_and_in_total() {
        let feed = EventFeed::default();
        let held: Vec<_> = (0..STREAMS_PER_CALLER_MAX)
            .map(|_| feed.place(Who::Operator).unwrap())
            .collect();
        assert!(feed.place(Who::Operator).is_none());
        let other = feed.place(Who::Anonymous).unwrap();
        drop(held);
        assert!(feed.place(Who::Operator).is_some());
        drop(other);
        assert!(locked(&feed.places).is_empty());
    }
}
