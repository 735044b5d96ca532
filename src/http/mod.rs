//! The HTTP surface: the standard facilitator calls, sessions, the history, health and the API specification.
//!
//! Uses axum and the facilitator. Must not know how a payment is settled. Always: status codes are chosen here and nowhere else; a body is
//! bounded before it is read, and parsed once; the three standard calls answer x402 shapes, all others camelCase JSON and RFC 9457
//! problems; no response contains an error's cause, a key or an RPC URL.

pub mod accept;
mod body;
mod caller;
mod client;
mod connection;
mod deadline;
mod error;
mod events;
mod health;
mod metrics;
mod openapi;
mod operator;
mod page;
mod paths;
mod payments;
mod places;
mod refusals;
mod sessions;
mod settle;
mod signers;
mod status;
mod supported;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, Method, Request, Response, header};
use secrecy::SecretString;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::classify::ServerErrorsFailureClass;
use tower_http::cors::{Any, CorsLayer};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};
use uuid::Uuid;

use crate::facilitator::{Facilitator, Sessions};
use crate::http::connection::Connection;
use crate::settlement::Supervisor;

pub use caller::Refused;
pub use error::Problem;
pub use events::{EventFeed, EventView};
pub use health::LastReadiness;
pub use metrics::LastBacklog;
pub use openapi::specification;
pub use page::PageSessions;
pub use payments::write_cell;

/// The header with the id of a request, in responses and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a browser may cache a preflight response; browsers keep it for two hours at most.
const PREFLIGHT_AGE: Duration = Duration::from_hours(2);

/// The state that handlers share.
#[derive(Debug, Clone)]
pub struct AppState {
    pub facilitator: Facilitator,
    pub sessions: Sessions,
    /// The operator's bearer token; without one, callers on the loopback address are the operator.
    pub admin_token: Option<Arc<SecretString>>,
    /// The longest body that is read, in bytes.
    pub body_bytes_max: usize,
    pub readiness: LastReadiness,
    pub backlog: LastBacklog,
    /// Where a private Postgres keeps the ledger.
    pub data_dir: Option<PathBuf>,
    /// Passes new events to streams.
    pub events: EventFeed,
    /// Operators who are logged in to the page.
    pub page: PageSessions,
    /// Knows which tasks of the engine have failed.
    pub supervisor: Supervisor,
}

/// The service: the same routes at `/` and below `/api`, where hosted facilitators have them.
pub fn router(state: AppState) -> Router {
    let routes = Router::new()
        .merge(api())
        .nest("/api", api())
        .merge(docs())
        .merge(page::routes())
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(CatchPanicLayer::custom(error::after_panic))
        .layer(axum::middleware::from_fn(error::render))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_response(log)
                .on_failure(log_broken),
        )
        .layer(axum::middleware::from_fn(body::discard_rest))
        .layer(SetRequestIdLayer::new(REQUEST_ID, FreshId))
        .layer(axum::middleware::map_request(without_foreign_id))
        .with_state(state);
    // Outside of the routes' own router: a layer of that router would run after the route is chosen.
    Router::new()
        .fallback_service(routes)
        .layer(axum::middleware::map_request(paths::normalize))
}

/// `GET /metrics` for whoever reaches the listener, and nothing else.
pub fn metrics_router(state: AppState) -> Router {
    Router::new()
        .route("/metrics", axum::routing::get(metrics::unguarded))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(CatchPanicLayer::custom(error::after_panic))
        .layer(axum::middleware::from_fn(error::render))
        .with_state(state)
}

/// Every call. Pages of any origin may make the calls of sellers and buyers, but never the operator's: a browser on the operator's machine
/// would make them from the loopback address, with the operator's rights.
fn api() -> Router<AppState> {
    let (callers, _) = callers().split_for_parts();
    let (operators, _) = operators().split_for_parts();
    with_specification(callers)
        // Before the CORS layer: the fallback replaces the response to methods that a route does not have, and a preflight is one.
        .method_not_allowed_fallback(error::no_such_method)
        .layer(any_origin())
        .merge(operators)
}

fn any_origin() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(Any)
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(PREFLIGHT_AGE)
}

fn docs() -> Router<AppState> {
    // The page's script loads the specification from the same origin; every asset is in the binary.
    SwaggerUi::new("/docs")
        .config(Config::new(["/openapi.json"]))
        .into()
}

/// All routes with their documentation.
fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::frame())
        .merge(callers())
        .merge(operators())
}

/// Calls without authentication.
fn callers() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // Sellers' SDKs
        .routes(routes!(supported::supported))
        .routes(routes!(verify::verify))
        .routes(routes!(settle::settle))
        // Sellers and buyers
        .routes(routes!(status::status))
        // Buyers
        .routes(routes!(sessions::open))
        .routes(routes!(sessions::show))
        .routes(routes!(sessions::transfer))
        .routes(routes!(sessions::cancel))
        .routes(routes!(health::healthz))
}

/// Calls of the operator and of monitoring.
fn operators() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(payments::list))
        .routes(routes!(payments::show))
        .routes(routes!(payments::of_transaction))
        .routes(routes!(payments::stats::stats))
        .routes(routes!(refusals::list))
        .routes(routes!(events::list))
        .routes(routes!(signers::signers))
        .routes(routes!(metrics::metrics))
        .routes(routes!(health::readyz))
}

fn with_specification(callers: Router<AppState>) -> Router<AppState> {
    let specification = specification();
    callers.route(
        "/openapi.json",
        axum::routing::get(async move || axum::Json(specification)),
    )
}

/// Request ids in the log and in responses are always made here: one from a caller could be too long, or equal another caller's.
#[derive(Debug, Clone, Copy)]
struct FreshId;

impl MakeRequestId for FreshId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        Uuid::now_v7().to_string().parse().ok().map(RequestId::new)
    }
}

/// Takes an id that came with the request out of its headers, where it would be kept instead of a fresh one. Grants record it.
async fn without_foreign_id(mut request: Request<Body>) -> Request<Body> {
    let foreign = request.headers_mut().remove(REQUEST_ID);
    if let Some(id) = foreign.as_ref().and_then(caller::CallersId::read) {
        request.extensions_mut().insert(id);
    }
    request
}

fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    // A key in a path would stand in the log.
    let path = request.uri().path();
    let path = if caller::contains_key(path) {
        "…"
    } else {
        path
    };
    let connection = request.extensions().get::<ConnectInfo<Connection>>();
    let client =
        connection.map(|ConnectInfo(connection)| tracing::field::display(connection.client));
    tracing::info_span!("http", method = %request.method(), path, client, request.id = id, caller = tracing::field::Empty)
}

fn log<B>(response: &Response<B>, latency: Duration, _: &tracing::Span) {
    let milliseconds = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
    let logged = response.extensions().get::<error::AlreadyLogged>();
    if response.status().is_server_error() && logged.is_none() {
        tracing::warn!(
            status = response.status().as_u16(),
            milliseconds,
            "request answered"
        );
    } else {
        tracing::debug!(
            status = response.status().as_u16(),
            milliseconds,
            "request answered"
        );
    }
}

/// Logs a response body that fails; a response with an error status was logged by `log`.
fn log_broken(failure: ServerErrorsFailureClass, _: std::time::Duration, _: &tracing::Span) {
    if let ServerErrorsFailureClass::Error(error) = failure {
        tracing::error!(error, "response body failed");
    }
}
