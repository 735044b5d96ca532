//! The purchase: request, 402, choose, sign, request again.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url, redirect};
use serde_json::{Value, json};

use super::{PayError, Signer, settlement_of};
use crate::clock::{Clock, SystemClock};
use crate::protocol::assets::default_assets;
use crate::protocol::challenge::Offer;
use crate::protocol::{
    Amount, Authorization, DomainSeparator, ExactPayload, PaymentRequired, PaymentRequirements,
    SettleResponse, X402Version, header,
};

/// The longest body that is read, in bytes.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long one request may take: sellers wait for a block.
const REQUEST_LIMIT: Duration = Duration::from_secs(90);
/// How often a payment whose outcome is open is presented again within one call.
const PRESENTATIONS_MAX: u32 = 3;
/// An authorization is never made valid for longer, whatever a seller asks.
const VALIDITY_MAX_S: u64 = 3600;

/// What one purchase may cost, and in what.
#[derive(Debug, Clone)]
pub struct PayOptions {
    /// Atomic units of the asset at most.
    pub ceiling: Amount,
    /// Only pay in this dialect; any, preferring v2, when `None`.
    pub version: Option<X402Version>,
    /// Tokens that may be paid with besides the networks' default tokens.
    pub assets: Vec<Address>,
}

impl PayOptions {
    /// At most `ceiling` atomic units of a network's default token, in any dialect.
    pub const fn up_to(ceiling: Amount) -> Self {
        Self {
            ceiling,
            version: None,
            assets: Vec::new(),
        }
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Paid {
    /// The seller's status.
    pub status: StatusCode,
    /// The seller's headers.
    pub headers: HeaderMap,
    /// The seller's body.
    pub body: Vec<u8>,
    /// The outcome of the payment; `None` when nothing had to be paid.
    pub payment: Option<SettleResponse>,
}

/// A buyer for many purchases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    signer: Signer,
    http: reqwest::Client,
    clock: Arc<dyn Clock>,
}

/// Buys `url` once.
///
/// # Errors
/// [`PayError`] says what happened and whether money may have moved.
pub async fn pay(url: &str, signer: Signer, options: &PayOptions) -> Result<Paid, PayError> {
    Client::new(signer).get(url, options).await
}

impl Client {
    /// A buyer that pays with `signer`. It follows no redirects: a payment belongs to the origin that asked for it.
    pub fn new(signer: Signer) -> Self {
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(REQUEST_LIMIT)
            .build();
        // Building fails only when the machine has no usable TLS; a plain client then reports that with each request.
        Self {
            signer,
            http: http.unwrap_or_default(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Takes the time from somewhere else.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Buys the answer to a GET.
    ///
    /// # Errors
    /// [`PayError`] says what happened and whether money may have moved.
    pub async fn get(&self, url: &str, options: &PayOptions) -> Result<Paid, PayError> {
        let url = url
            .parse()
            .map_err(|_| PayError::Request("the URL cannot be read".to_owned()))?;
        let request = Purchase {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Vec::new(),
        };
        self.buy(&request, options).await
    }

    /// Buys the answer to any request.
    ///
    /// # Errors
    /// [`PayError`] says what happened and whether money may have moved.
    pub async fn buy(&self, request: &Purchase, options: &PayOptions) -> Result<Paid, PayError> {
        let first = self
            .send(request, None)
            .await
            .map_err(PayError::Unreachable)?;
        if first.status != StatusCode::PAYMENT_REQUIRED {
            return Ok(first);
        }
        let challenge = challenge(&first, options.version)?;
        let offer = choose(&challenge, options)?;
        let payload = self.sign(&offer.requirements)?;
        let payment = payment_header(&challenge, &offer, &payload)?;
        let mut transaction = String::new();
        for _ in 0..PRESENTATIONS_MAX {
            let answer = self
                .send(request, Some(&payment))
                .await
                .map_err(PayError::Interrupted)?;
            if answer.status != StatusCode::PAYMENT_REQUIRED {
                return Ok(answer);
            }
            match &answer.payment {
                Some(open) if open.error_reason.as_deref() == Some("settlement_pending") => {
                    open.transaction.clone_into(&mut transaction);
                }
                Some(_) | None => return Err(refused(&answer)),
            }
        }
        Err(PayError::Pending { transaction })
    }

    async fn send(
        &self,
        request: &Purchase,
        payment: Option<&(HeaderName, HeaderValue)>,
    ) -> Result<Paid, reqwest::Error> {
        let mut headers = request.headers.clone();
        if let Some((name, value)) = payment {
            headers.insert(name.clone(), value.clone());
        }
        let builder = self
            .http
            .request(request.method.clone(), request.url.clone())
            .headers(headers);
        let mut response = builder.body(request.body.clone()).send().await?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        let payment = settlement_of(response.headers());
        Ok(Paid {
            status: response.status(),
            headers: response.headers().clone(),
            body,
            payment,
        })
    }

    fn sign(&self, requirements: &PaymentRequirements) -> Result<ExactPayload, PayError> {
        let (Some(name), Some(version)) =
            (requirements.domain_name(), requirements.domain_version())
        else {
            return Err(PayError::Challenge(
                "extra.name and extra.version are missing".to_owned(),
            ));
        };
        let now = u64::try_from(self.clock.now().unix_timestamp()).unwrap_or_default();
        let until = now + requirements.max_timeout_seconds.min(VALIDITY_MAX_S);
        let authorization = Authorization {
            from: self.signer.address(),
            to: requirements.pay_to,
            value: requirements.amount,
            valid_after: Amount::ZERO,
            valid_before: Amount::from_atomic(U256::from(until)),
            nonce: B256::random(),
        };
        let domain =
            DomainSeparator::of_token(name, version, requirements.network, requirements.asset);
        self.signer
            .authorize(authorization, domain)
            .ok_or(PayError::Signing)
    }
}

/// A request whose answer is for sale. Its body is kept, because it is sent twice.
#[derive(Debug, Clone)]
pub struct Purchase {
    /// The method.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// Headers of the caller.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// The header of v2, else the body of v1; the other way round for who wants v1.
fn challenge(answer: &Paid, wanted: Option<X402Version>) -> Result<PaymentRequired, PayError> {
    let header = answer
        .headers
        .get(header::PAYMENT_REQUIRED)
        .and_then(|value| value.to_str().ok());
    let from_header = || {
        header.map(|text| {
            header::decode(text).map_err(|error| PayError::Challenge(error.to_string()))
        })
    };
    let from_body = || {
        let body: PaymentRequired = serde_json::from_slice(&answer.body).ok()?;
        (body.x402_version == X402Version::V1).then_some(Ok(body))
    };
    let found = match wanted {
        Some(X402Version::V1) => from_body(),
        Some(X402Version::V2) => from_header(),
        None => from_header().or_else(from_body),
    };
    found.unwrap_or_else(|| {
        Err(PayError::Challenge(
            "there is neither a PAYMENT-REQUIRED header nor a v1 body".to_owned(),
        ))
    })
}

/// The seller's first offer that this buyer can pay; it must be below the ceiling.
fn choose(challenge: &PaymentRequired, options: &PayOptions) -> Result<Offer, PayError> {
    let payable = |offer: &Offer| {
        let wanted = &offer.requirements;
        let known = default_assets(wanted.network).any(|asset| asset.address == wanted.asset)
            || options.assets.contains(&wanted.asset);
        known
            && matches!(
                wanted.extra_text("assetTransferMethod"),
                None | Some("eip3009")
            )
    };
    let seller_says = challenge
        .error
        .as_deref()
        .map(|text| format!("; the seller says {text:?}"))
        .unwrap_or_default();
    let offer = challenge
        .offers()
        .into_iter()
        .find(payable)
        .ok_or(PayError::NoOffer(seller_says))?;
    let price = offer.requirements.amount;
    if price > options.ceiling {
        return Err(PayError::TooDear {
            price,
            ceiling: options.ceiling,
        });
    }
    Ok(offer)
}

/// The payment in the dialect of the offer. In v2 the offer goes back verbatim, because sellers compare it.
fn payment_header(
    challenge: &PaymentRequired,
    offer: &Offer,
    payload: &ExactPayload,
) -> Result<(HeaderName, HeaderValue), PayError> {
    let (name, body) = match offer.version {
        X402Version::V2 => {
            let mut body = json!({ "x402Version": 2, "payload": payload, "accepted": offer.raw });
            if let (Some(members), Some(resource)) = (body.as_object_mut(), &challenge.resource) {
                members.insert(
                    "resource".to_owned(),
                    serde_json::to_value(resource).unwrap_or_default(),
                );
            }
            (header::PAYMENT_SIGNATURE, body)
        }
        X402Version::V1 => {
            let network = offer.raw.get("network").cloned().unwrap_or(Value::Null);
            (
                header::X_PAYMENT,
                json!({ "x402Version": 1, "scheme": "exact", "network": network, "payload": payload }),
            )
        }
    };
    let value = header::encode(&body)
        .ok()
        .and_then(|text| HeaderValue::from_str(&text).ok())
        .ok_or(PayError::Signing)?;
    Ok((HeaderName::from_static(name), value))
}

fn refused(answer: &Paid) -> PayError {
    let settlement = answer.payment.clone().map(Box::new);
    let told = settlement.as_ref().and_then(|settlement| {
        settlement
            .error_message
            .clone()
            .or_else(|| settlement.error_reason.clone())
    });
    let header = answer
        .headers
        .get(header::PAYMENT_REQUIRED)
        .and_then(|value| value.to_str().ok());
    let in_header = || header.and_then(|text| header::decode::<PaymentRequired>(text).ok()?.error);
    let in_body = || {
        serde_json::from_slice::<Value>(&answer.body)
            .ok()?
            .get("error")?
            .as_str()
            .map(str::to_owned)
    };
    let why = told
        .or_else(in_header)
        .or_else(in_body)
        .unwrap_or_else(|| "it gives no reason".to_owned());
    PayError::Refused(why.chars().take(300).collect(), settlement)
}
