//! The URL of a resource as buyers see it.

use axum::extract::OriginalUri;
use axum::http::header::HOST;
use axum::http::request::Parts;
use url::Url;

/// The longest `Host` that is taken, in bytes: a name of 253 and a port.
const HOST_BYTES_MAX: usize = 260;

/// The request's `Host` is not one host name with an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidHost;

/// Path and query as the client sent them, also inside a nested router.
pub(super) fn path_of(parts: &Parts) -> &str {
    let uri = parts
        .extensions
        .get::<OriginalUri>()
        .map_or(&parts.uri, |original| &original.0);
    uri.path_and_query()
        .map_or("/", axum::http::uri::PathAndQuery::as_str)
}

/// The URL below the seller's public one.
pub(super) fn below(base: &Url, parts: &Parts) -> String {
    format!("{}{}", base.as_str().trim_end_matches('/'), path_of(parts))
}

/// The URL at the host that the request names. Anybody can name any host, so this is right only where nothing depends on it.
pub(super) fn at_named_host(parts: &Parts) -> Result<String, InvalidHost> {
    let mut named = parts.headers.get_all(HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host.to_str().map_err(|_| InvalidHost)?,
        (Some(_), Some(_)) => return Err(InvalidHost),
        (None, _) => parts
            .uri
            .authority()
            .map_or("localhost", axum::http::uri::Authority::as_str),
    };
    if !is_plausible(host) {
        return Err(InvalidHost);
    }
    Ok(format!("http://{host}{}", path_of(parts)))
}

/// Whether a text is a host name or an IP address, with an optional port.
fn is_plausible(host: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._:[]".contains(letter);
    let parsed = || Url::parse(&format!("http://{host}/")).ok();
    host.len() <= HOST_BYTES_MAX
        && host.chars().all(plain)
        && parsed().is_some_and(|url| url.has_host() && url.path() == "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_and_addresses_are_plausible() {
        for host in [
            "shop.example",
            "shop.example:8080",
            "127.0.0.1:3000",
            "[::1]:3000",
            "my_seller:3000",
            "localhost",
        ] {
            assert!(is_plausible(host), "{host}");
        }
        let long = "a".repeat(HOST_BYTES_MAX + 1);
        for host in [
            "",
            "shop.example/evil",
            "user@shop.example",
            "shop.example?x",
            "shop.example:99999",
            "shop example",
            "shop.example\"><script>",
            "[::1",
            "größe.example",
            &long,
        ] {
            assert!(!is_plausible(host), "{host}");
        }
    }
}
