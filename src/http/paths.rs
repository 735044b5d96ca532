//! Normalises request paths, for calls of sellers and buyers alone.
//!
//! SDKs join a configured URL and a path by plain concatenation, so that a URL with a slash at its end gives `//supported`. The calls of
//! sellers and buyers are found all the same. The operator's are not: a path that a proxy in front blocks must not be reachable by another
//! spelling.

use axum::http::uri::PathAndQuery;
use axum::http::{Request, Uri};

/// The first segments of the calls of sellers and buyers. Every other path is matched exactly as received.
const CALLERS: [&str; 6] = [
    "supported",
    "verify",
    "settle",
    "sessions",
    "healthz",
    "openapi.json",
];

/// `path` without empty segments, if it is a call of sellers or buyers. `None`: it stays as it is.
fn normalized(path: &str) -> Option<String> {
    if !path.contains("//") && !path.ends_with('/') {
        return None;
    }
    let segments: Vec<&str> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let (["api", call, ..] | [call, ..]) = segments.as_slice() else {
        return None;
    };
    CALLERS
        .contains(call)
        .then(|| format!("/{}", segments.join("/")))
}

/// Normalises the path of a request. Runs before routing.
pub(super) async fn normalize<B: Send>(mut request: Request<B>) -> Request<B> {
    let uri = request.uri();
    let Some(path) = normalized(uri.path()) else {
        return request;
    };
    let path = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = path.parse::<PathAndQuery>().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_segments_are_removed_from_caller_paths_only() {
        for (path, expected) in [
            ("//supported", "/supported"),
            ("/supported/", "/supported"),
            ("/supported//", "/supported"),
            ("///api//verify//", "/api/verify"),
            ("/sessions//ps_1/transfer/", "/sessions/ps_1/transfer"),
        ] {
            assert_eq!(normalized(path).as_deref(), Some(expected), "{path}");
        }
        for path in [
            "/",
            "//",
            "/supported",
            "/api/",
            "//payments",
            "/payments/",
            "/api//stats",
            "//signers",
            "/docs/",
            "//nowhere",
        ] {
            assert_eq!(normalized(path), None, "{path}");
        }
    }

    #[tokio::test]
    async fn normalized_path_keeps_its_query() {
        let request = Request::get("//sessions/ps_1/?wait=3").body(()).unwrap();
        let request = normalize(request).await;
        assert_eq!(request.uri(), "/sessions/ps_1?wait=3");
    }
}
