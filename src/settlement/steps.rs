//! Counts and logs each step of a payment, with all that is known of it.

use alloy::primitives::{Address, B256};

use crate::ledger::SettledPayment;
use crate::payment::{Location, Payment, PaymentId};
use crate::protocol::{Network, Rejection, Scheme};
use crate::settlement::ServedNetwork;
use crate::telemetry::metrics::Step;

/// A payment as the log names it.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    payment: PaymentId,
    scheme: Scheme,
    payer: Address,
    signer: Option<Address>,
    transaction: Option<B256>,
}

impl Named {
    pub const fn new(payment: PaymentId, scheme: Scheme, payer: Address) -> Self {
        Self {
            payment,
            scheme,
            payer,
            signer: None,
            transaction: None,
        }
    }

    pub const fn of(payment: &Payment) -> Self {
        let terms = &payment.terms;
        Self::new(payment.id, terms.method.scheme(), terms.from)
    }

    pub const fn payment(self) -> PaymentId {
        self.payment
    }

    pub const fn payer(self) -> Address {
        self.payer
    }

    /// With the signer of ours that sends, or has sent, its transaction.
    #[must_use]
    pub const fn by(self, signer: Option<Address>) -> Self {
        Self { signer, ..self }
    }

    #[must_use]
    pub const fn in_transaction(self, transaction: Option<B256>) -> Self {
        Self {
            transaction,
            ..self
        }
    }
}

impl From<&SettledPayment> for Named {
    fn from(settled: &SettledPayment) -> Self {
        Self {
            payment: settled.payment,
            scheme: settled.scheme,
            payer: settled.payer,
            signer: settled.signer,
            transaction: settled.transaction,
        }
    }
}

/// Logs a step of a payment.
pub fn log_step(network: Network, named: Named, step: Step) {
    let Named {
        payment,
        payer,
        signer,
        transaction,
        ..
    } = named;
    let signer = signer.map(tracing::field::display);
    let transaction = transaction.map(tracing::field::display);
    tracing::info!(%payment, %network, %payer, signer, transaction, code = step.code(), "payment {}", step.name());
}

impl ServedNetwork {
    /// Counts and logs a step of a payment.
    pub fn note_step(&self, named: Named, step: Step) {
        self.metrics.count(named.scheme.name(), step);
        log_step(self.policy.network, named, step);
    }

    /// The same for a payment that was accepted and is refused now.
    pub fn note_refused(&self, named: Named, rejection: &Rejection) {
        self.note_step(named, Step::Refused(rejection.reason.code()));
    }

    /// The same for one that a transaction of somebody else has transferred, once it has its confirmations; the watch does it for those that
    /// get them later.
    pub fn note_found(&self, named: Named, location: &Location, confirmed: bool) {
        if confirmed {
            let named = named.in_transaction(Some(location.transaction));
            self.note_step(named, Step::Settled);
        }
    }
}
