//! Payment sessions from the buyer's side. Only id, expiry and transaction hash are taken from a facilitator's responses: the nonce is
//! computed here, and typed data from a facilitator is never signed.

use std::time::Duration;

use alloy::primitives::B256;
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::buyer::exchange::Http;
use crate::buyer::journal::OpenSession;
use crate::buyer::reach::{is_loopback, may_be_public};
use crate::buyer::scheme::Binding;
use crate::buyer::verdict::is_hash;
use crate::buyer::{SessionFailure, Signer};
use crate::protocol::PaymentRequired;
use crate::protocol::challenge::Offer;
use crate::protocol::session::{
    EXTENSION, Rail, SessionId, SessionRequest, SessionState, SessionView, TransferSubmission,
    nonce, requirements_hash,
};
use crate::protocol::text::{escaped, escaped_start};

/// The wait of one long poll of a session, in seconds.
const LONG_POLL_S: u64 = 20;
/// The pause between two polls, for a facilitator that does not hold long polls.
const POLL_PAUSE: Duration = Duration::from_millis(250);

/// An open session, to which a payment is going to be bound.
pub(super) struct NegotiatedSession {
    pub(super) id: SessionId,
    pub(super) facilitator: Facilitator,
    pub(super) requirements_hash: B256,
    pub(super) binding: Binding,
}

impl NegotiatedSession {
    /// The session as the journal records it.
    pub(super) fn record(&self, submission: Option<TransferSubmission>) -> OpenSession {
        OpenSession {
            id: self.id.to_string(),
            facilitator: self.facilitator.url.clone(),
            trusted: self.facilitator.trusted,
            submission,
        }
    }
}

/// The used members of the response that opens a session.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OpenResponse {
    session_id: SessionId,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Where sessions are negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facilitator {
    /// The base URL.
    pub(super) url: Url,
    /// The caller names it, or it is on this machine as its seller is. Otherwise it is reached at public addresses alone.
    pub(super) trusted: bool,
}

/// The facilitator: the caller's, else the one in the seller's challenge. `allow_http` concerns the caller's own.
pub(super) fn facilitator(
    (configured, allow_http): (Option<&Url>, bool),
    challenge: &PaymentRequired,
    offer: &Offer,
    seller: &Url,
) -> Result<Facilitator, SessionFailure> {
    if let Some(url) = configured {
        return own(url, allow_http);
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
    // A remote seller must not make this machine send requests to itself or into its network.
    let is_own_machine = is_loopback(&url) && is_loopback(seller);
    if !is_own_machine && (is_loopback(&url) || !may_be_public(&url)) {
        return Err(SessionFailure::UnsafeUrl);
    }
    Ok(Facilitator {
        url: checked(url, is_own_machine)?,
        trusted: is_own_machine,
    })
}

/// The caller's own facilitator.
pub(super) fn own(url: &Url, allow_http: bool) -> Result<Facilitator, SessionFailure> {
    let plain = allow_http || is_loopback(url);
    Ok(Facilitator {
        url: checked(url.clone(), plain)?,
        trusted: true,
    })
}

/// Accepts https URLs, and http ones where that is allowed; none with credentials or a query.
fn checked(url: Url, allow_http: bool) -> Result<Url, SessionFailure> {
    let safe = url.scheme() == "https" || (allow_http && url.scheme() == "http");
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (safe && plain)
        .then_some(url)
        .ok_or(SessionFailure::UnsafeUrl)
}

pub(super) fn endpoint(facilitator: &Url, path: &str) -> Option<Url> {
    let base = facilitator.as_str().trim_end_matches('/');
    Url::parse(&format!("{base}/{path}")).ok()
}

/// Opens a session for `offer`. Costs nothing and commits the payer to nothing.
pub(super) async fn open(
    http: &Http,
    facilitator: Facilitator,
    (signer, offer, rail): (&Signer, &Offer, Rail),
    resource: &Url,
    (now, validity_max_s): (u64, u64),
) -> Result<NegotiatedSession, SessionFailure> {
    let terms = requirements_hash(&offer.raw).map_err(|_| SessionFailure::Unanswered)?;
    let mut resource = resource.clone();
    // The query may contain the caller's secrets, and the facilitator does not need it.
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
    let url = endpoint(&facilitator.url, "sessions").ok_or(SessionFailure::UnsafeUrl)?;
    let answer = http
        .post_to_facilitator((&url, facilitator.trusted), &request)
        .await;
    let (status, body) = answer.ok_or(SessionFailure::Unanswered)?;
    if (300..400).contains(&status) {
        let target = escaped(body.as_str().unwrap_or_default());
        return Err(SessionFailure::Redirected(target));
    }
    if status != 201 && status != 200 {
        let code = body
            .get("code")
            .and_then(Value::as_str)
            .unwrap_or("no code given");
        return Err(SessionFailure::Refused(escaped_start(code, 100)));
    }
    let opened: OpenResponse =
        serde_json::from_value(body).map_err(|_| SessionFailure::Unanswered)?;
    let valid_before = u64::try_from(opened.expires_at.unix_timestamp()).unwrap_or_default();
    if valid_before <= now || valid_before > now.saturating_add(validity_max_s) {
        return Err(SessionFailure::Expiry);
    }
    Ok(NegotiatedSession {
        binding: Binding {
            nonce: nonce(&opened.session_id, terms),
            valid_before,
        },
        id: opened.session_id,
        requirements_hash: terms,
        facilitator,
    })
}

/// Submits the session's transfer and waits until it is settled or has failed, at most until `deadline`. Returns the transaction hash,
/// once there is one. A failure here is no error: the payment header is presented next in any case.
pub(super) async fn pay_first(
    http: &Http,
    session: &OpenSession,
    submission: &TransferSubmission,
    deadline: Instant,
) -> Option<String> {
    let path = format!("sessions/{}/transfer", session.id);
    let url = endpoint(&session.facilitator, &path)?;
    let (status, body) = http
        .post_to_facilitator((&url, session.trusted), submission)
        .await?;
    if status != 200 {
        let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
        tracing::debug!(
            status,
            code,
            "early transfer refused by the facilitator: the payment header pays"
        );
        return None;
    }
    let mut view: SessionView = serde_json::from_value(body).ok()?;
    while matches!(view.state, SessionState::Open | SessionState::Submitted)
        && Instant::now() < deadline
    {
        view = read(http, session, LONG_POLL_S).await?;
        if matches!(view.state, SessionState::Open | SessionState::Submitted) {
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }
    view.transaction.filter(|hash| is_hash(hash))
}

/// Reads the session from its facilitator, waiting up to `wait_s` seconds for a change.
pub(super) async fn read(http: &Http, session: &OpenSession, wait_s: u64) -> Option<SessionView> {
    let path = format!("sessions/{}?wait={wait_s}", session.id);
    let url = endpoint(&session.facilitator, &path)?;
    let (status, body) = http.get_from_facilitator((&url, session.trusted)).await?;
    let mut view: SessionView = (status == 200).then(|| serde_json::from_value(body).ok())??;
    view.transaction = view.transaction.filter(|hash| is_hash(hash));
    (view.session_id.as_str() == session.id).then_some(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chosen(
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
        facilitator((None, false), &challenge, &offer, &seller).map(|found| {
            assert_eq!(found.trusted, is_loopback(&found.url));
            found.url.into()
        })
    }

    #[test]
    fn facilitator_url_is_read_from_extension_and_offer() {
        let shop = "https://shop.example/report";
        assert_eq!(chosen(shop, None, None), Err(SessionFailure::NoFacilitator));
        assert_eq!(
            chosen(shop, Some("https://pay.example"), None).unwrap(),
            "https://pay.example/"
        );
        assert_eq!(
            chosen(shop, None, Some("https://pay.example/api")).unwrap(),
            "https://pay.example/api"
        );
        let url = "https://pay.example/api/".parse().unwrap();
        assert_eq!(
            endpoint(&url, "sessions").unwrap().as_str(),
            "https://pay.example/api/sessions"
        );
    }

    #[test]
    fn own_facilitator_needs_https_unless_http_is_allowed() {
        let challenge = json!({"x402Version": 2, "accepts": [{"scheme": "exact", "network": "eip155:84532", "amount": "1",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0x2222222222222222222222222222222222222222",
            "maxTimeoutSeconds": 300, "extra": {}}]});
        let challenge: PaymentRequired = serde_json::from_value(challenge).unwrap();
        let offer = challenge.offers().remove(0);
        let seller: Url = "https://shop.example/report".parse().unwrap();
        for (url, allow_http, accepted) in [
            ("https://10.0.0.1:4402", false, true),
            ("http://127.0.0.1:4402", false, true),
            ("http://10.0.0.1:4402", false, false),
            ("http://10.0.0.1:4402", true, true),
        ] {
            let url: Url = url.parse().unwrap();
            let own = (Some(&url), allow_http);
            let found = facilitator(own, &challenge, &offer, &seller);
            assert_eq!(found.is_ok_and(|found| found.trusted), accepted, "{url}");
        }
    }

    #[test]
    fn remote_facilitator_needs_https_loopback_needs_local_seller() {
        for url in [
            "http://pay.example",
            "ftp://pay.example",
            "file:///etc/passwd",
            "https://user:secret@pay.example",
            "http://127.0.0.1:8545",
            "https://localhost/x",
            "http://[::ffff:127.0.0.1]:80",
            "https://10.0.0.1/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[fd00::1]/x",
            "https://192.168.1.1:8443",
            "nothing",
        ] {
            let answer = chosen("https://shop.example/report", Some(url), None);
            assert_eq!(answer, Err(SessionFailure::UnsafeUrl), "{url}");
        }
        for url in [
            "http://127.0.0.1:4402",
            "http://localhost:4402",
            "http://[::1]:4402",
        ] {
            chosen("http://127.0.0.1:3000/report", Some(url), None).unwrap();
        }
    }
}
