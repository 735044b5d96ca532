//! `GET /supported`

use axum::Json;
use axum::extract::State;

use crate::http::AppState;
use crate::protocol::Supported;

/// List what can be paid here
///
/// One kind per scheme, network and version. Sellers' SDKs read it when they start.
#[utoipa::path(get, path = "/supported", tag = "facilitator", responses((status = 200, description = "the kinds", body = Supported)))]
pub(super) async fn supported(State(state): State<AppState>) -> Json<Supported> {
    Json(state.facilitator.supported())
}
