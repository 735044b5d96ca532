//! The operator's page: what the ledger and this process know, for people, and the buttons that operators need.
//!
//! Rendered here, with a script and a style of its own and nothing from elsewhere. Always: what others have written is escaped and bounded,
//! nothing is changed without the token of the form, and a session ends with its key.

mod chart;
mod form;
mod keys;
mod layout;
mod login;
mod networks;
mod overview;
mod payment;
mod payments;
mod problem;
mod sellers;
mod session;
mod shown;
mod signers;
mod viewer;
mod webhooks;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Response, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};

use crate::http::events::{Audience, stream};
use crate::http::operator::Reader;
use crate::http::{AppState, Problem};
use crate::ledger::EventTypes;

use self::viewer::Viewer;

pub use self::session::PageSessions;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the browser may load and where forms may go: nothing but this service.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Headers of every answer of the page. `same-origin`: without a referrer at all, browsers would not name the origin of a form.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// The routes of the page.
pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/", get(overview::show))
        .route("/login", post(login::log_in))
        .route("/logout", post(login::log_out))
        .route("/page/payments", get(payments::list))
        .route("/page/payments.csv", get(payments::table))
        .route("/page/payments/{id}", get(payment::show))
        .route("/page/sellers", get(sellers::list))
        .route("/page/signers", get(signers::list).post(signers::change))
        .route("/page/keys", get(keys::list).post(keys::create))
        .route("/page/keys/revoke", post(keys::revoke))
        .route("/page/webhooks", get(webhooks::list).post(webhooks::replay))
        .route("/page/networks", get(networks::list))
        .route("/page/events", get(events))
        .route("/page/page.css", get(style))
        .route("/page/page.js", get(script))
        .layer(axum::middleware::map_response(with_headers))
}

async fn with_headers<B: Send>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let stored = headers.entry(header::CACHE_CONTROL);
    stored.or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", STYLE)
}

async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// New events, upon which the script reads the page again.
async fn events(
    viewer: Viewer,
    State(state): State<AppState>,
) -> Result<impl IntoResponse, Problem> {
    let audience = Audience {
        reader: Reader::Operator(viewer.by),
        types: EventTypes::default(),
    };
    stream::answer(&state, audience, None).await
}
