//! The HTTP surface: the standard facilitator, the history, health and the contract.
//!
//! Knows axum and the facilitator. Must not know how a payment is settled. What always holds: status codes are chosen here and
//! nowhere else; a body is bounded before it is read and parsed once; the three standard calls answer x402 shapes, all others
//! camelCase JSON and RFC 9457 problems; nothing here shows a cause, a key or an RPC URL.

mod body;
pub mod connection;
mod error;
mod health;
mod openapi;
mod operator;
mod paths;
mod payments;
mod sessions;
mod settle;
mod signers;
mod state;
mod supported;
mod verify;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, Method, Request, Response, header};
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

pub use error::Problem;
pub use openapi::contract;
pub use state::{AppState, SaidReadiness};

/// Carries the id of a request, in answers and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a browser may remember what a preflight said; browsers keep it for two hours at most.
const PREFLIGHT_AGE: Duration = Duration::from_hours(2);

/// The service: the same routes at `/` and below `/api`, where the hosted facilitators have them.
pub fn router(state: AppState) -> Router {
    let routes = Router::new()
        .merge(api())
        .nest("/api", api())
        .merge(docs())
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
        .layer(SetRequestIdLayer::new(REQUEST_ID, FreshId))
        .layer(axum::middleware::map_request(without_foreign_id))
        .with_state(state);
    // A layer of the routes' own router would run after the route is chosen.
    Router::new()
        .fallback_service(routes)
        .layer(axum::middleware::map_request(paths::forgive))
}

/// Every call. Pages of any origin may make those of sellers and buyers, and never the operator's: on the operator's machine a browser
/// would make them in the operator's name.
fn api() -> Router<AppState> {
    let (callers, _) = callers().split_for_parts();
    let (operators, _) = operators().split_for_parts();
    with_contract(callers)
        // Before the layer: it replaces the answer to methods that a route does not know, which a preflight is.
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
    // The page's script looks for the contract beside itself: every asset is in the binary.
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

/// For everybody.
fn callers() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // Sellers' SDKs
        .routes(routes!(supported::supported))
        .routes(routes!(verify::verify))
        .routes(routes!(settle::settle))
        // Buyers
        .routes(routes!(sessions::open))
        .routes(routes!(sessions::show))
        .routes(routes!(sessions::transfer))
        .routes(routes!(sessions::cancel))
        .routes(routes!(health::healthz))
}

/// For the operator, and for whatever keeps the service alive.
fn operators() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(payments::list))
        .routes(routes!(payments::show))
        .routes(routes!(payments::of_transaction))
        .routes(routes!(payments::stats::stats))
        .routes(routes!(signers::signers))
        .routes(routes!(health::readyz))
}

fn with_contract(callers: Router<AppState>) -> Router<AppState> {
    let contract = contract();
    callers.route(
        "/openapi.json",
        axum::routing::get(async move || axum::Json(contract)),
    )
}

/// Ids are always ours: one that a caller chose could be too long, or somebody else's.
#[derive(Debug, Clone, Copy)]
struct FreshId;

impl MakeRequestId for FreshId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        Uuid::now_v7().to_string().parse().ok().map(RequestId::new)
    }
}

/// An id that came with the request would be kept instead of a fresh one.
async fn without_foreign_id(mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().remove(REQUEST_ID);
    request
}

fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    tracing::info_span!("http", method = %request.method(), path = request.uri().path(), request.id = id)
}

fn log<B>(response: &Response<B>, latency: Duration, _: &tracing::Span) {
    let milliseconds = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
    let said = response.extensions().get::<error::SaidElsewhere>();
    if response.status().is_server_error() && said.is_none() {
        tracing::warn!(
            status = response.status().as_u16(),
            milliseconds,
            "answered"
        );
    } else {
        tracing::debug!(
            status = response.status().as_u16(),
            milliseconds,
            "answered"
        );
    }
}

/// An answer that breaks off; those with a status of failure have their line already.
fn log_broken(failure: ServerErrorsFailureClass, _: std::time::Duration, _: &tracing::Span) {
    if let ServerErrorsFailureClass::Error(error) = failure {
        tracing::error!(error, "an answer broke off");
    }
}
