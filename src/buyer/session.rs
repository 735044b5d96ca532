//! Payment sessions from the buyer's side. From a facilitator's answers come id, expiry and hash, and nothing that is signed.

use std::time::Duration;

use alloy::primitives::B256;
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::Instant;
use url::Host;

use crate::buyer::exchange::Http;
use crate::buyer::journal::OpenSession;
use crate::buyer::scheme::Binding;
use crate::buyer::{SessionFailure, Signer};
use crate::protocol::PaymentRequired;
use crate::protocol::challenge::Offer;
use crate::protocol::session::{
    EXTENSION, Rail, SessionId, SessionRequest, SessionState, SessionView, TransferSubmission,
    nonce, requirements_hash,
};

/// How long one question about a session is left waiting, in seconds.
const LONG_POLL_S: u64 = 20;
/// Between two looks at a session whose facilitator answers at once.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// A session that a payment is going to be bound to.
pub(super) struct Negotiated {
    pub(super) id: SessionId,
    pub(super) facilitator: Url,
    pub(super) requirements_hash: B256,
    pub(super) binding: Binding,
}

impl Negotiated {
    /// What the journal keeps of it.
    pub(super) fn kept(&self, submission: Option<TransferSubmission>) -> OpenSession {
        OpenSession {
            id: self.id.to_string(),
            facilitator: self.facilitator.clone(),
            submission,
        }
    }
}

/// Of the answer that opens a session, all that is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Opened {
    session_id: SessionId,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// The facilitator to negotiate with: the one that the caller names, else the seller's.
pub(super) fn facilitator(
    configured: Option<&Url>,
    challenge: &PaymentRequired,
    offer: &Offer,
    seller: &Url,
) -> Result<Url, SessionFailure> {
    if let Some(url) = configured {
        return allowed(url.clone(), true);
    }
    let extension = challenge
        .extensions
        .as_ref()
        .and_then(|all| all.get(EXTENSION));
    let announced = extension
        .and_then(|extension| extension.pointer("/info/url")?.as_str())
        .or_else(|| offer.requirements.extra_text("sessionUrl"))
        .ok_or(SessionFailure::NoFacilitator)?;
    let url = Url::parse(announced).map_err(|_| SessionFailure::UnsafeUrl)?;
    // Only a seller on this machine may send this machine to itself.
    allowed(url, is_loopback(seller))
}

fn allowed(url: Url, loopback_too: bool) -> Result<Url, SessionFailure> {
    let here = is_loopback(&url);
    let safe = match url.scheme() {
        "https" => loopback_too || !here,
        "http" => loopback_too && here,
        _ => false,
    };
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (safe && plain)
        .then_some(url)
        .ok_or(SessionFailure::UnsafeUrl)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn endpoint(facilitator: &Url, path: &str) -> Option<Url> {
    let base = facilitator.as_str().trim_end_matches('/');
    Url::parse(&format!("{base}/{path}")).ok()
}

/// Opens a session for `offer`. Costs nothing and commits to nothing.
pub(super) async fn open(
    http: &Http,
    facilitator: Url,
    (signer, offer, rail): (&Signer, &Offer, Rail),
    resource: &Url,
    (now, validity_max_s): (u64, u64),
) -> Result<Negotiated, SessionFailure> {
    let terms = requirements_hash(&offer.raw).map_err(|_| SessionFailure::Unanswered)?;
    let mut resource = resource.clone();
    // A query may hold the caller's secrets; the facilitator needs to know the place alone.
    resource.set_query(None);
    resource.set_fragment(None);
    let request = SessionRequest {
        x402_version: offer.version,
        accepted: offer.raw.clone(),
        payer: signer.address(),
        rail,
        resource: Some(Value::String(resource.into())),
        client_reference: None,
    };
    let url = endpoint(&facilitator, "sessions").ok_or(SessionFailure::UnsafeUrl)?;
    let answer = http.post_json(&url, &request).await;
    let (status, body) = answer.ok_or(SessionFailure::Unanswered)?;
    if (300..400).contains(&status) {
        let target = body.as_str().unwrap_or_default().to_owned();
        return Err(SessionFailure::Redirected(target));
    }
    if status != 201 && status != 200 {
        let code = body
            .get("code")
            .and_then(Value::as_str)
            .unwrap_or("no code given");
        return Err(SessionFailure::Refused(code.chars().take(100).collect()));
    }
    let opened: Opened = serde_json::from_value(body).map_err(|_| SessionFailure::Unanswered)?;
    let valid_before = u64::try_from(opened.expires_at.unix_timestamp()).unwrap_or_default();
    if valid_before <= now || valid_before > now.saturating_add(validity_max_s) {
        return Err(SessionFailure::Expiry);
    }
    Ok(Negotiated {
        binding: Binding {
            nonce: nonce(&opened.session_id, terms),
            valid_before,
        },
        id: opened.session_id,
        requirements_hash: terms,
        facilitator,
    })
}

/// Submits the session's transfer and waits until its money has moved or cannot, at most until `deadline`. The hash, once there
/// is one. Whatever goes wrong here, the header still decides.
pub(super) async fn pay_first(
    http: &Http,
    session: &OpenSession,
    submission: &TransferSubmission,
    deadline: Instant,
) -> Option<String> {
    let path = format!("sessions/{}/transfer", session.id);
    let url = endpoint(&session.facilitator, &path)?;
    let (status, body) = http.post_json(&url, submission).await?;
    if status != 200 {
        let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
        tracing::debug!(
            status,
            code,
            "the facilitator does not send the transfer early"
        );
        return None;
    }
    let mut view: SessionView = serde_json::from_value(body).ok()?;
    while matches!(view.state, SessionState::Open | SessionState::Submitted)
        && Instant::now() < deadline
    {
        view = read(http, session, LONG_POLL_S).await?;
        if matches!(view.state, SessionState::Open | SessionState::Submitted) {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
    view.transaction
}

/// The session as its facilitator tells it.
pub(super) async fn read(http: &Http, session: &OpenSession, wait_s: u64) -> Option<SessionView> {
    let path = format!("sessions/{}?wait={wait_s}", session.id);
    let (status, body) = http
        .get_json(&endpoint(&session.facilitator, &path)?)
        .await?;
    let view: SessionView = (status == 200).then(|| serde_json::from_value(body).ok())??;
    (view.session_id.as_str() == session.id).then_some(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(
        seller: &str,
        extension: Option<&str>,
        extra: Option<&str>,
    ) -> Result<String, SessionFailure> {
        let mut entry = json!({"scheme": "exact", "network": "eip155:84532", "amount": "1", "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {}});
        if let Some(url) = extra {
            entry["extra"]["sessionUrl"] = json!(url);
        }
        let mut challenge = json!({"x402Version": 2, "accepts": [entry]});
        if let Some(url) = extension {
            challenge["extensions"] = json!({"payment-session": {"info": {"url": url}}});
        }
        let challenge: PaymentRequired = serde_json::from_value(challenge).unwrap();
        let offer = challenge.offers().remove(0);
        let seller = seller.parse().unwrap();
        facilitator(None, &challenge, &offer, &seller).map(String::from)
    }

    #[test]
    fn a_facilitator_is_found_in_the_extension_and_in_the_entry() {
        let shop = "https://shop.example/report";
        assert_eq!(named(shop, None, None), Err(SessionFailure::NoFacilitator));
        assert_eq!(
            named(shop, Some("https://pay.example"), None).unwrap(),
            "https://pay.example/"
        );
        assert_eq!(
            named(shop, None, Some("https://pay.example/api")).unwrap(),
            "https://pay.example/api"
        );
        let url = "https://pay.example/api/".parse().unwrap();
        assert_eq!(
            endpoint(&url, "sessions").unwrap().as_str(),
            "https://pay.example/api/sessions"
        );
    }

    #[test]
    fn a_facilitator_elsewhere_is_https_and_only_a_local_seller_may_name_this_machine() {
        for url in [
            "http://pay.example",
            "ftp://pay.example",
            "file:///etc/passwd",
            "https://user:secret@pay.example",
            "http://127.0.0.1:8545",
            "https://localhost/x",
            "http://[::ffff:127.0.0.1]:80",
            "nothing",
        ] {
            let answer = named("https://shop.example/report", Some(url), None);
            assert_eq!(answer, Err(SessionFailure::UnsafeUrl), "{url}");
        }
        for url in [
            "http://127.0.0.1:4402",
            "http://localhost:4402",
            "http://[::1]:4402",
        ] {
            named("http://127.0.0.1:3000/report", Some(url), None).unwrap();
        }
    }
}
