//! `GET /events`: what happened to payments, signers, networks, budgets and keys, in pages and as a stream.

mod feed;
pub(super) mod stream;
mod view;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::operator::Reader;
use crate::http::payments::query::{QueryReader, RawQuery, page_limit, parsed};
use crate::http::{AppState, Problem};
use crate::ledger::{EventPosition, EventTypes, FeedEvent, Ledger};

pub use self::feed::EventFeed;
pub use self::view::EventView;

/// Default of the events on a page.
const PAGE_DEFAULT: u16 = 100;
/// Rows that one statement reads, and statements of one page: what others were told is read over.
const ROWS_READ: u16 = 500;
const READS_MAX: usize = 4;
/// With which position a reader of a stream left off.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A page of events, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventPage {
    /// The events.
    events: Vec<EventView>,
    /// Pass it as `after` to read on, also when there is nothing more now.
    next_cursor: String,
    /// There is more to read now. A page may be empty all the same, where many events between were not for this reader.
    more: bool,
}

/// What a reader wants to be told, and may be.
#[derive(Debug, Clone)]
pub(super) struct Audience {
    pub(super) reader: Reader,
    pub(super) types: EventTypes,
}

impl Audience {
    fn is_told(&self, event: &FeedEvent) -> bool {
        self.types.contains(event.kind)
            && match (&self.reader, &event.payment) {
                (Reader::Operator(_), _) => true,
                (Reader::Key(key), Some(payment)) => payment
                    .payee_address
                    .is_some_and(|payee| key.payees.contains(&payee)),
                (Reader::Key(_), None) => false,
            }
    }
}

/// Read events
///
/// Oldest first, from the beginning unless `after` is given. `nextCursor` is always there: a reader that keeps it and asks again misses nothing
/// and gets nothing twice. An event appears when its transaction in the ledger, and every one that began before it, has ended. With
/// `Accept: text/event-stream` they come as server-sent events, new ones alone unless `after` or `Last-Event-ID` is given. The holder of a key
/// is told of payments to its payees.
#[utoipa::path(get, path = "/events", operation_id = "listEvents", tag = "history", params(
        ("after" = Option<String>, Query, description = "`nextCursor` of the page before, or the `id` of an event of the stream."),
        ("types" = Option<String>, Query, description = "Types such as `payment.settled` or `signer.*`, separated by commas; all unless given."),
        ("limit" = Option<u16>, Query, description = "Events on a page at most, 1 to 500; 100 unless given.", minimum = 1, maximum = 500),
        ("Last-Event-ID" = Option<String>, Header, description = "Of a stream: the `id` of the last event that was received."),
    ), security(("operator" = []), ("key" = []), ("apiKey" = [])), responses(
    (status = 200, description = "a page, or a stream of events whose data are the same objects", content(
        (EventPage = "application/json"), (EventView = "text/event-stream"),
    )),
    (status = 400, description = "a parameter cannot be read; the detail names it", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "neither the operator nor the holder of a key", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "the key does not have the scope history", body = Problem, content_type = "application/problem+json"),
    (status = 410, description = "the ledger has no event at this place any more: start without one", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too many streams are open", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    reader: Reader,
    State(state): State<AppState>,
    headers: HeaderMap,
    query: RawQuery,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query)?;
    let after = query.member("after", parsed::<EventPosition>)?;
    let types = query.member("types", parsed::<EventTypes>)?;
    let limit = query.member("limit", page_limit)?;
    query.end()?;
    let audience = Audience {
        reader,
        types: types.unwrap_or_default(),
    };
    if wants_stream(&headers) {
        // A browser that connects again sends both: the header is newer than the address.
        let last = last_event_id(&headers)?.or(after);
        return stream::answer(&state, audience, last).await;
    }
    let limit = usize::from(limit.unwrap_or(PAGE_DEFAULT));
    let page = page(
        &state.facilitator.ledger,
        &audience,
        (after.unwrap_or_default(), limit),
    )
    .await?;
    let vary = [(header::VARY, HeaderValue::from_static("accept"))];
    Ok((vary, Json(page)).into_response())
}

async fn page(
    ledger: &Ledger,
    audience: &Audience,
    (mut end, limit): (EventPosition, usize),
) -> Result<EventPage, Problem> {
    let mut events: Vec<EventView> = Vec::new();
    let mut more = true;
    for _ in 0..READS_MAX {
        let read = ledger.events_after(end, ROWS_READ).await?;
        let read = read.ok_or_else(unknown_position)?;
        let mut told = read
            .events
            .iter()
            .filter(|event| audience.is_told(event))
            .peekable();
        while events.len() < limit
            && let Some(event) = told.next()
        {
            events.push(EventView::from(event));
            end = event.position;
        }
        if told.peek().is_some() {
            break;
        }
        (end, more) = (read.end, read.more);
        if !more {
            break;
        }
    }
    Ok(EventPage {
        events,
        next_cursor: end.to_string(),
        more,
    })
}

fn unknown_position() -> Problem {
    Problem::new(
        StatusCode::GONE,
        "cursor_unknown",
        "the ledger has no event at this place: it was restored from a backup, or the event is too old; start without a cursor, and leave out the ids that you know",
    )
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<EventPosition>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let position = value.to_str().ok().and_then(|text| text.parse().ok());
    position.map(Some).ok_or_else(|| {
        Problem::invalid_parameter("Last-Event-ID: expected the id of an event of the stream")
    })
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let mut accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    accepted.any(|range| {
        let kind = range.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("text/event-stream")
    })
}
