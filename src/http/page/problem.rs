//! What is wrong, as a page.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

use super::layout;
use crate::http::Problem;
use crate::ledger::LedgerError;

/// An error that people read.
#[derive(Debug)]
pub(super) struct PageProblem {
    status: StatusCode,
    why: String,
}

impl PageProblem {
    pub(super) fn new(status: StatusCode, why: &str) -> Self {
        Self {
            status,
            why: why.to_owned(),
        }
    }

    pub(super) fn not_found(why: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, why)
    }

    pub(super) fn invalid(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }
}

impl From<Problem> for PageProblem {
    fn from(problem: Problem) -> Self {
        let (status, why) = problem.told();
        Self::new(status, why)
    }
}

impl From<LedgerError> for PageProblem {
    fn from(error: LedgerError) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for PageProblem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let page = html! {
            section.login {
                h1 { (title) }
                p role="alert" { (self.why) }
                p { a href="/" { "To the overview" } }
            }
        };
        (self.status, layout::bare(title, &page)).into_response()
    }
}
