//! What a form of the page has sent: bounded, and with the token of the form.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use url::form_urlencoded;

use super::layout;
use super::problem::PageProblem;
use super::viewer::{Viewer, refused};
use crate::http::AppState;
use crate::http::body::bounded;

/// The name of the field with the token.
pub(super) const TOKEN: &str = "token";
/// The longest form, in bytes.
const BYTES_MAX: usize = 16 * 1024;

/// The fields of a form.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    #[cfg(test)]
    pub(super) const fn of(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The text of a field; empty if it is not there.
    pub(super) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// The words of a field, which stand on lines of their own or between commas and spaces.
    pub(super) fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        let words = self.text(name).split([',', ' ', '\n', '\r', '\t']);
        words.filter(|word| !word.is_empty())
    }
}

/// A form that the operator has sent from the page.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) viewer: Viewer,
    pub(super) headers: HeaderMap,
    pub(super) fields: Fields,
}

impl FromRequest<AppState> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let headers = parts.headers.clone();
        let viewer = Viewer::from_request_parts(&mut parts, state).await?;
        if !viewer.may_change() {
            return Err(refused(layout::LOGIN_TO_CHANGE));
        }
        let fields = read(body).await.map_err(IntoResponse::into_response)?;
        if !viewer.form_token.is(fields.text(TOKEN)) {
            return Err(refused(
                "this form is not of this session: load its page again, and send it from there",
            ));
        }
        Ok(Self {
            viewer,
            headers,
            fields,
        })
    }
}

/// Reads the fields in a body.
pub(super) async fn read(body: Body) -> Result<Fields, PageProblem> {
    let bytes = bounded(body, BYTES_MAX).await;
    let bytes = bytes.map_err(|(status, why)| PageProblem::new(status, &why))?;
    Ok(Fields(
        form_urlencoded::parse(&bytes).into_owned().collect(),
    ))
}
