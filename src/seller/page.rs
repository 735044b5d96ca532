//! The HTML page for a priced route that is opened in a browser.

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, USER_AGENT};

use crate::protocol::{PaymentRequired, Scheme};

/// Whether a browser requests a page, by the same rule as the official x402 SDKs.
pub(super) fn is_requested(headers: &HeaderMap) -> bool {
    let contains = |name, text: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.contains(text))
    };
    contains(ACCEPT, "text/html") && contains(USER_AGENT, "Mozilla")
}

/// A page without external resources: the offers as text, and the challenge as JSON for wallets that read pages.
pub(super) fn of(challenge: &PaymentRequired) -> String {
    let url = challenge
        .resource
        .as_ref()
        .map(|resource| resource.url.as_str());
    let description = challenge
        .resource
        .as_ref()
        .and_then(|resource| resource.description.as_deref());
    let mut offers = String::new();
    for offer in challenge.offers() {
        let terms = &offer.requirements;
        let token = terms.domain_name().unwrap_or("a token");
        let text = format!(
            "{}{} atomic units of {token} ({}) on {}, to {}",
            if terms.scheme == Scheme::Upto {
                "at most "
            } else {
                ""
            },
            terms.amount,
            terms.asset,
            terms.network,
            terms.pay_to
        );
        offers.extend(["<li>", &escaped(&text), "</li>"]);
    }
    let json = serde_json::to_string(challenge).unwrap_or_default();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Payment required</title><style>body{{font:16px/1.5 system-ui;max-width:40em;margin:4em auto;padding:0 1em;\
         overflow-wrap:anywhere}}</style><h1>Payment required</h1><p>{}</p><p><code>{}</code></p><ul>{offers}</ul>\
         <p>This resource is sold to programs that speak x402: open it with an x402 client.</p>\
         <script type=\"application/json\" id=\"payment-required\">{}</script></html>",
        escaped(description.unwrap_or("This resource has a price.")),
        escaped(url.unwrap_or_default()),
        json.replace('<', "\\u003c"),
    )
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn challenge_texts_are_escaped() {
        let challenge: PaymentRequired = serde_json::from_value(
            json!({"x402Version": 2, "error": "</script><b>", "accepts": [],
            "resource": {"url": "https://a/<script>alert(1)</script>", "description": "\"<i>'&"}}),
        )
        .unwrap();
        let page = of(&challenge);
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(!page.contains("<b>") && !page.contains("<i>"));
        assert!(page.contains("&quot;&lt;i&gt;&#39;&amp;"));
    }
}
