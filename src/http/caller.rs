//! Recognises the caller of a request.

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use tower_http::request_id::RequestId;

use crate::facilitator::Caller;
use crate::http::AppState;
use crate::http::connection::Connection;
use crate::payment::Who;

impl FromRequestParts<AppState> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        let request_id = parts.extensions.get::<RequestId>();
        let request_id = request_id.and_then(|id| id.header_value().to_str().ok());
        let request_id = request_id.unwrap_or_default().to_owned();
        let connection = ConnectInfo::<Connection>::from_request_parts(parts, state).await;
        // Every connection that the listener accepts has one.
        let ConnectInfo(connection) =
            connection.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
        Ok(Self {
            who: Who::Anonymous,
            client: connection.client,
            request_id,
        })
    }
}
