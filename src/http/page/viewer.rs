//! Recognises the operator in a browser: by the session's cookie, or like every other call of the operator.

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::login;
use super::problem::PageProblem;
use super::session::Token;
use crate::facilitator::check_scope;
use crate::http::caller::Refused;
use crate::http::connection::Connection;
use crate::http::operator::{OperatorBy, Reader, recognise};
use crate::http::{AppState, Problem, error};
use crate::payment::Scope;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// The operator, who looks at the page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Viewer {
    pub(super) by: OperatorBy,
    /// Stands in every form of the page.
    pub(super) form_token: Token,
    /// Whether there is a session that the viewer can end.
    pub(super) is_logged_in: bool,
}

impl Viewer {
    /// Whether the viewer may change something. Programs on this machine may read without a key; what forwards to this machine is one too.
    pub(super) const fn may_change(&self) -> bool {
        !matches!(self.by, OperatorBy::Loopback)
    }
}

impl FromRequestParts<AppState> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        if parts.method != Method::GET && parts.method != Method::HEAD {
            check_origin(parts).map_err(|why| refused(&why))?;
            // Checked: to the loopback rule, which knows no forms, the origin of a page is always a foreign one.
            parts.headers.remove(header::ORIGIN);
        }
        let access = &state.facilitator.access;
        if let Some(session) = state.page.find(&parts.headers) {
            if Reader::Operator(session.by).may_still_read(access) {
                return Ok(Self {
                    by: session.by,
                    form_token: session.form_token,
                    is_logged_in: true,
                });
            }
            if access.has_had_admin_key().is_err() {
                let why = "the database does not answer, so it is not known whether your key is still good; try again, you stay logged in meanwhile";
                return Err(PageProblem::new(StatusCode::SERVICE_UNAVAILABLE, why).into_response());
            }
        }
        let problem = match recognise(parts, state).await {
            Ok(Reader::Operator(by)) => {
                let form_token = state.page.form_token();
                let form_token = form_token.ok_or_else(|| no_randomness().into_response())?;
                return Ok(Self {
                    by,
                    form_token,
                    is_logged_in: false,
                });
            }
            Ok(Reader::Key(key)) => match check_scope(&key, Scope::Admin) {
                Ok(()) => Problem::operator_only("expected a key of the operator"),
                Err(rejection) => Refused::from(rejection).into(),
            },
            Err(problem) => problem,
        };
        Err(not_the_operator(parts, problem).await)
    }
}

/// The answer to strangers: to browsers the form to log in; to programs what they got before there was a page.
async fn not_the_operator(parts: &Parts, problem: Problem) -> Response {
    if accepts_html(&parts.headers) {
        // What a form was to change is not repeated after the login.
        let is_reading = parts.method == Method::GET;
        let next = if is_reading {
            &parts.uri
        } else {
            &Uri::default()
        };
        return login::form(next, None);
    }
    if parts.uri.path() == "/" {
        return error::no_such_path().await.into_response();
    }
    problem.into_response()
}

/// The answer where no secret can be made.
pub(super) fn no_randomness() -> PageProblem {
    let why = "the system provides no randomness, so no secret can be made; try again";
    PageProblem::new(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// The answer to what another page may have sent.
pub(super) fn refused(why: &str) -> Response {
    PageProblem::new(StatusCode::FORBIDDEN, why).into_response()
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.contains("text/html"))
}

/// Rejects what a page of another origin has sent, or may have: browsers name the origin with everything that changes something.
pub(super) fn check_origin(parts: &Parts) -> Result<(), String> {
    let site = parts.headers.get(FETCH_SITE);
    let mut origins = parts.headers.get_all(header::ORIGIN).iter();
    let (origin, further) = (origins.next(), origins.next());
    let origin = origin.and_then(|origin| origin.to_str().ok()?.parse::<Uri>().ok());
    let origin = origin.filter(|_| further.is_none());
    let host = parts.headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let is_own = origin.zip(host).is_some_and(|(origin, host)| {
        origin
            .authority()
            .is_some_and(|named| is_same(named, &host, comes_from_proxy(parts)))
    });
    if is_own && site.is_none_or(|site| site == "same-origin") {
        return Ok(());
    }
    Err("this was not sent by a page of this service: expected the header Origin with the address that Host names; a proxy has to pass Host on as it was".to_owned())
}

/// Whether an origin is the host that was asked. Proxies often leave out the port.
fn is_same(origin: &Authority, host: &Authority, is_proxied: bool) -> bool {
    let is_port = origin.port_u16() == host.port_u16() || (is_proxied && host.port().is_none());
    let is_plain = !origin.as_str().contains('@') && !host.as_str().contains('@');
    is_plain && is_port && origin.host().eq_ignore_ascii_case(host.host())
}

fn comes_from_proxy(parts: &Parts) -> bool {
    let connection = parts.extensions.get::<ConnectInfo<Connection>>();
    connection.is_some_and(|ConnectInfo(connection)| connection.is_proxy)
}

/// Whether the browser has reached a trusted proxy by https.
pub(super) fn is_https(parts: &Parts) -> bool {
    let proto = parts.headers.get(FORWARDED_PROTO);
    let proto = proto.and_then(|proto| proto.to_str().ok());
    let nearest = proto.and_then(|proto| proto.rsplit(',').next());
    comes_from_proxy(parts) && nearest.is_some_and(|nearest| nearest.trim() == "https")
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn is_accepted(headers: &[(&str, &str)]) -> bool {
        let mut request = Request::post("/logout");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check_origin(&parts).is_ok()
    }

    #[test]
    fn form_comes_from_this_origin() {
        let host = ("host", "localhost:4402");
        for (origin, expected) in [
            ("http://localhost:4402", true),
            ("https://localhost:4402", true),
            ("http://localhost:4403", false),
            ("http://localhost", false),
            ("http://evil.example", false),
            ("http://evil.example@localhost:4402", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(
                is_accepted(&[host, ("origin", origin)]),
                expected,
                "{origin}"
            );
        }
        assert!(!is_accepted(&[host]));
        let own = ("origin", "http://localhost:4402");
        assert!(!is_accepted(&[own]));
        assert!(!is_accepted(&[host, own, own]));
        for (site, expected) in [
            ("same-origin", true),
            ("none", false),
            ("cross-site", false),
        ] {
            let headers = [host, own, ("sec-fetch-site", site)];
            assert_eq!(is_accepted(&headers), expected, "{site}");
        }
    }
}
