//! What the facilitator knows of an open payment. A seller may not know the outcome, or hide it.

use serde_json::{Value, json};

use crate::buyer::journal::OpenPayment;
use crate::buyer::session::{endpoint, own};
use crate::buyer::verdict::is_hash;
use crate::buyer::{Client, session};
use crate::protocol::header;
use crate::protocol::status::StatusResponse;

impl Client {
    /// Asks the facilitator of the payment's session, or the caller's own. `None` when there is neither, when it does not say, as one without
    /// `/status` does not, or in version 1, where the header does not repeat the seller's requirements.
    pub(super) async fn status_of(&self, open: &OpenPayment) -> Option<StatusResponse> {
        let facilitator = match &open.session {
            Some(session) => session::Facilitator {
                url: session.facilitator.clone(),
                trusted: session.trusted,
            },
            None => own(self.facilitator.as_ref()?, self.allow_http).ok()?,
        };
        let payment: Value = header::decode(&open.header).ok()?;
        let requirements = payment.get("accepted")?.clone();
        let body = json!({
            "x402Version": open.version,
            "paymentPayload": payment,
            "paymentRequirements": requirements,
        });
        let url = endpoint(&facilitator.url, "status")?;
        let asked = self
            .http
            .post_to_facilitator((&url, facilitator.trusted), &body);
        let (http_status, answer) = asked.await?;
        let mut status: StatusResponse =
            (http_status == 200).then(|| serde_json::from_value(answer).ok())??;
        status.transaction = status.transaction.filter(|hash| is_hash(hash));
        Some(status)
    }
}
