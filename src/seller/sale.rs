//! One sale: from the payment header to the handler and the receipt.

use std::convert::Infallible;

use axum::body::{Body, to_bytes};
use axum::extract::{OriginalUri, Request};
use axum::http::header::HOST;
use axum::response::Response;
use serde_json::Value;
use tower::Service;
use url::Url;

use crate::protocol::challenge::network_name;
use crate::protocol::header::{PAYMENT_SIGNATURE, X_PAYMENT};
use crate::protocol::{
    PaymentRequirements, PresentedPayment, Reason, SettleResponse, X402Version, field,
};
use crate::seller::answer::{Quote, broken, outage, receipt};
use crate::seller::{FacilitatorClient, FacilitatorError, Flow, Payment, Priced};

/// The longest answer of a handler that is held back until its payment is settled.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is sold, and who settles.
#[derive(Debug)]
pub(super) struct Shop {
    pub(super) facilitator: FacilitatorClient,
    pub(super) routes: Vec<Priced>,
    pub(super) public_url: Option<Url>,
}

/// Why a sale ends before its resource is served.
enum Ends {
    /// Ask for a payment, saying what was wrong with this one.
    Ask(Option<String>),
    /// The facilitator refused to settle.
    Refused(Box<SettleResponse>),
    /// The facilitator gave no answer.
    Outage(FacilitatorError),
    /// The handler's answer cannot be used.
    Broken,
}

impl From<FacilitatorError> for Ends {
    fn from(error: FacilitatorError) -> Self {
        Self::Outage(error)
    }
}

/// A payment that fits the offer, on its way to the facilitator.
struct Tendered<'a> {
    payment: PresentedPayment,
    requirements: &'a Value,
    facts: Payment,
}

impl Shop {
    /// Serves the route with this index to whoever pays for it.
    pub(super) async fn sell<S>(&self, index: usize, request: Request, inner: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let Some(priced) = self.routes.get(index) else {
            return broken();
        };
        let Ok(quote) = Quote::new(priced, self.url_of(&request)) else {
            return broken();
        };
        let version = dialect(&request);
        match self.trade(priced, &quote, request, inner).await {
            Ok(response) => response,
            Err(Ends::Broken) => broken(),
            Err(Ends::Ask(error)) => quote.challenge(error.as_deref()),
            Err(Ends::Refused(outcome)) => quote.refuse(version, &outcome),
            Err(Ends::Outage(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "a payment could not be processed");
                outage()
            }
        }
    }

    async fn trade<S>(
        &self,
        priced: &Priced,
        quote: &Quote,
        mut request: Request,
        mut inner: S,
    ) -> Result<Response, Ends>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let mut tendered = tendered(&request, &priced.requirements, quote)?;
        let version = tendered.payment.version;
        match priced.flow {
            Flow::Upfront => {
                let outcome = self.settle(&tendered).await?;
                tendered.facts.learn(&outcome);
                request.extensions_mut().insert(tendered.facts);
                let Ok(response) = inner.call(request).await;
                Ok(receipt(response, version, &outcome))
            }
            Flow::AfterHandler => {
                self.verify(&tendered).await?;
                request.extensions_mut().insert(tendered.facts.clone());
                let Ok(response) = inner.call(request).await;
                if response.status().as_u16() >= 400 {
                    return Ok(response);
                }
                let (parts, body) = response.into_parts();
                let Ok(held) = to_bytes(body, HELD_BYTES_MAX).await else {
                    tracing::error!(
                        bytes_max = HELD_BYTES_MAX,
                        "the answer broke off or is too long to be held back; nothing was settled"
                    );
                    return Err(Ends::Broken);
                };
                let outcome = self.settle(&tendered).await?;
                let response = Response::from_parts(parts, Body::from(held));
                Ok(receipt(response, version, &outcome))
            }
        }
    }

    async fn verify(&self, tendered: &Tendered<'_>) -> Result<(), Ends> {
        let payment = &tendered.payment;
        let verdict = self
            .facilitator
            .verify(payment.version, payment.raw(), tendered.requirements)
            .await?;
        if verdict.is_valid {
            return Ok(());
        }
        let reason = verdict.invalid_reason;
        Err(Ends::Ask(Some(
            reason.unwrap_or_else(|| "the payment is not valid".to_owned()),
        )))
    }

    /// Has the payment settled; an outcome that is not known yet is asked for once more.
    async fn settle(&self, tendered: &Tendered<'_>) -> Result<SettleResponse, Ends> {
        let payment = &tendered.payment;
        let ask = || {
            self.facilitator
                .settle(payment.version, payment.raw(), tendered.requirements)
        };
        let mut outcome = ask().await?;
        if !outcome.success
            && outcome.error_reason.as_deref() == Some(Reason::SettlementPending.code())
        {
            // The first answer names a transaction: it must not be lost to a failing second call.
            if let Ok(second) = ask().await {
                outcome = second;
            }
        }
        if outcome.network.is_empty() {
            outcome.network =
                network_name(payment.version, tendered.facts.network).unwrap_or_default();
        }
        if outcome.success {
            Ok(outcome)
        } else {
            Err(Ends::Refused(Box::new(outcome)))
        }
    }

    /// The URL of what is sold, as the outside knows it.
    fn url_of(&self, request: &Request) -> String {
        let uri = request
            .extensions()
            .get::<OriginalUri>()
            .map_or_else(|| request.uri(), |original| &original.0);
        let path = uri
            .path_and_query()
            .map_or("/", axum::http::uri::PathAndQuery::as_str);
        if let Some(base) = &self.public_url {
            return format!("{}{path}", base.as_str().trim_end_matches('/'));
        }
        let host = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .or_else(|| uri.authority().map(axum::http::uri::Authority::as_str))
            .unwrap_or("localhost");
        format!("http://{host}{path}")
    }
}

impl Payment {
    /// What only a settlement tells.
    fn learn(&mut self, outcome: &SettleResponse) {
        self.payment_id = Some(outcome.transaction.clone()).filter(|hash| !hash.is_empty());
        let extra = |member: &str| {
            let text = outcome.extra.as_ref()?.get(member)?.as_str()?;
            Some(text.to_owned())
        };
        self.id = extra("paymentId");
        self.session_id = extra("sessionId");
        let payer = outcome.payer.as_deref();
        if let Some(payer) = payer.and_then(|payer| field::parse_address(payer).ok()) {
            self.payer = payer;
        }
    }
}

/// v2's header wins where both are there.
fn dialect(request: &Request) -> X402Version {
    let v1 = request.headers().contains_key(X_PAYMENT)
        && !request.headers().contains_key(PAYMENT_SIGNATURE);
    if v1 { X402Version::V1 } else { X402Version::V2 }
}

/// The payment of the request, if it has one that is for this offer.
fn tendered<'a>(
    request: &Request,
    offered: &PaymentRequirements,
    quote: &'a Quote,
) -> Result<Tendered<'a>, Ends> {
    let version = dialect(request);
    let name = match version {
        X402Version::V1 => X_PAYMENT,
        X402Version::V2 => PAYMENT_SIGNATURE,
    };
    let refuse = |why: &str| Ends::Ask(Some(why.to_owned()));
    let value = request.headers().get(name).ok_or(Ends::Ask(None))?;
    let payment = value
        .to_str()
        .ok()
        .and_then(|text| PresentedPayment::read(version, text).ok())
        .ok_or_else(|| refuse("the payment header is not base64 of a JSON object"))?;
    let requirements = quote
        .requirements(version)
        .filter(|_| payment.accepts(offered))
        .ok_or_else(|| refuse("No matching payment requirements"))?;
    let payer = payment
        .payer()
        .ok_or_else(|| refuse(Reason::InvalidPayload.code()))?;
    Ok(Tendered {
        payment,
        requirements,
        facts: Payment {
            id: None,
            payment_id: None,
            payer,
            amount: offered.amount,
            network: offered.network,
            asset: offered.asset,
            session_id: None,
        },
    })
}
