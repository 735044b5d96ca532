//! Logging in with a key of the operator, and out.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;

use super::form::{self, Form};
use super::layout;
use super::session::{COOKIE, LASTS};
use super::viewer::{check_origin, is_https, no_randomness, refused};
use crate::facilitator::check_scope;
use crate::http::AppState;
use crate::http::caller::is_admin_token;
use crate::http::operator::OperatorBy;
use crate::payment::{PresentedKey, Scope};
use crate::protocol::Reason;

/// The form to log in, in the place of a page.
pub(super) fn form(uri: &Uri, wrong: Option<&str>) -> Response {
    let page = html! {
        section.login {
            h1 { "x402d" }
            p { "This page is for the operator of this facilitator." }
            @if let Some(wrong) = wrong {
                p.wrong role="alert" { (wrong) }
            }
            form method="post" action="/login" {
                input type="hidden" name="next" value=(own_path(uri.path()));
                label for="key" { "Key with the scope admin, or the admin token" }
                input #key type="password" name="key" required autofocus autocomplete="current-password" spellcheck="false";
                button type="submit" { "Log in" }
            }
            p.hint { code { "x402d keys create NAME --scope admin" } " makes a key." }
        }
    };
    let bearer = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
    let page = layout::bare("Log in", &page);
    (StatusCode::UNAUTHORIZED, bearer, page).into_response()
}

/// `POST /login`
pub(super) async fn log_in(State(state): State<AppState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if let Err(why) = check_origin(&parts) {
        return refused(&why);
    }
    let fields = match form::read(body).await {
        Ok(fields) => fields,
        Err(problem) => return problem.into_response(),
    };
    let next = own_path(fields.text("next"));
    let by = match operator(&state, fields.text("key").trim()) {
        Ok(by) => by,
        Err(why) => {
            // At a level that a stranger does not fill.
            tracing::debug!("page: log in refused");
            return form(&next.parse().unwrap_or_default(), Some(why));
        }
    };
    let Some(cookie) = state.page.begin(by) else {
        return no_randomness().into_response();
    };
    match by {
        OperatorBy::Key(key) => tracing::info!(key = %key.id, "page: operator logged in"),
        OperatorBy::Token | OperatorBy::Loopback => tracing::info!("page: operator logged in"),
    }
    let cookie = format!(
        "{COOKIE}={cookie}; Max-Age={}; {}",
        LASTS.as_secs(),
        attributes(is_https(&parts))
    );
    ([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response()
}

/// What a key or token makes its holder.
fn operator(state: &AppState, text: &str) -> Result<OperatorBy, &'static str> {
    if is_admin_token(state, text) {
        return Ok(OperatorBy::Token);
    }
    let key = state.facilitator.access.key(text).map_err(|rejection| {
        if rejection.reason == Reason::KeysUnavailable {
            "The keys cannot be read from the database now; try again."
        } else {
            "This is no key of this facilitator, or it is revoked or has expired."
        }
    })?;
    check_scope(&key, Scope::Admin)
        .map_err(|_| "This key does not have the scope admin: the page is the operator's.")?;
    let presented = PresentedKey::parse(text).ok_or("This is no key of this facilitator.")?;
    Ok(OperatorBy::Key(presented))
}

/// `POST /logout`
pub(super) async fn log_out(State(state): State<AppState>, form: Form) -> Response {
    state.page.end(&form.headers);
    let cookie = format!("{COOKIE}=; Max-Age=0; {}", attributes(false));
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

fn attributes(is_https: bool) -> &'static str {
    if is_https {
        "Path=/; HttpOnly; SameSite=Strict; Secure"
    } else {
        "Path=/; HttpOnly; SameSite=Strict"
    }
}

/// A path of the page; anything else, also the address of another host, becomes its beginning.
fn own_path(path: &str) -> &str {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.');
    if path.starts_with("/page/") && path.bytes().all(is_plain) {
        path
    } else {
        "/"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_leads_to_the_page_alone() {
        for (path, expected) in [
            ("/page/payments", "/page/payments"),
            ("/", "/"),
            ("", "/"),
            ("//evil.example", "/"),
            ("https://evil.example/page/", "/"),
            ("/page/\r\nset-cookie: a=b", "/"),
            ("/payments", "/"),
        ] {
            assert_eq!(own_path(path), expected, "{path}");
        }
    }
}
