//! The gate: every payment passes it before anything is asked of the chain for it, whatever its scheme, payment method, rail and endpoint.
//!
//! Its steps, in this order: the terms (asset, payee, smallest amount), the rate of the caller, the operator's deny list, payers that have
//! wasted gas, the gas budgets. A payment that the ledger has as being settled or settled has passed before. None of them makes an RPC call
//! or asks the ledger. Before that, requests of all kinds are counted, so that none costs a statement beyond a rate.

mod denied;
mod places;
mod rates;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, keccak256};
use reqwest::{Client, Url};
use tokio::time::Instant;

use crate::facilitator::recent::Recent;
use crate::facilitator::{Caller, Error, Facilitator, Unavailable};
use crate::ledger::Lookup;
use crate::payment::{Candidate, DenyList, Session, Who};
use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Rejection};
use crate::settlement::{GasParties, ServedNetwork};
use crate::telemetry::metrics::{Limit, reached};
use denied::{Denials, DeniedFile, PolicyService};
use places::{Attendant, Attended, Place, Places, attended};
use rates::Rates;

pub use rates::CallRates;
pub(super) use rates::{Call, Counted};

/// Valid payments remembered, at most.
const TOLD_MAX: usize = 50_000;

/// What an operator configures.
#[derive(Debug)]
pub struct GateRules {
    pub rates: CallRates,
    /// Settlements of one caller that outlive their requests, at most.
    pub unattended_max: usize,
    /// Reads of sessions of one caller that wait for a change, at most.
    pub waits_max: usize,
    /// The file with denied addresses, and what it held at the start.
    pub deny_list: Option<(PathBuf, DenyList)>,
    /// The operator's policy service, and whether payments are admitted while it does not answer.
    pub policy_service: Option<(Url, bool)>,
    /// For how long the settle of a payment is never refused for its rate, once its caller was told that it is valid.
    pub told_for: Duration,
}

/// The state of the gate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate(Arc<State>);

#[derive(Debug)]
struct State {
    rates: Rates,
    /// Payments that callers were told are valid: their handlers run, and stock sellers do not repeat a settle that was refused.
    told: Recent<(Counted, B256)>,
    /// Those of them whose next settle is counted already, with the verify.
    counted_ahead: Recent<(Counted, B256)>,
    denials: Denials,
    unattended: Places,
    waits: Places,
}

impl Gate {
    pub fn new(rules: GateRules) -> Self {
        let file = rules.deny_list;
        let service = rules.policy_service;
        Self(Arc::new(State {
            rates: Rates::new(rules.rates),
            told: Recent::new(rules.told_for, TOLD_MAX),
            counted_ahead: Recent::new(rules.told_for, TOLD_MAX),
            unattended: Places::new(rules.unattended_max),
            waits: Places::new(rules.waits_max),
            denials: Denials {
                file: file.map(|(path, list)| DeniedFile::new(path, list)),
                service: service.map(|(url, is_fail_open)| PolicyService {
                    url,
                    http: Client::new(),
                    is_fail_open,
                }),
            },
        }))
    }

    /// The two sides of a task that goes on when its caller leaves.
    ///
    /// # Errors
    /// [`Unavailable::Unattended`] when the caller has left too many behind already.
    pub(super) fn attend(&self, caller: &Caller) -> Result<(Attendant, Attended), Unavailable> {
        let unattended = &self.0.unattended;
        if unattended.are_taken(caller) {
            reached(Limit::Unattended);
            return Err(Unavailable::Unattended);
        }
        Ok(attended(unattended, caller))
    }

    /// A place to wait for a change of a session; `None` when the caller waits too often already.
    pub(super) fn place_to_wait(&self, caller: &Caller) -> Option<Place> {
        let place = self.0.waits.take(caller);
        if place.is_none() {
            reached(Limit::Waits);
        }
        place
    }

    /// Counts a request of any kind, before it costs a statement.
    ///
    /// # Errors
    /// [`Unavailable::RateLimited`].
    pub(super) fn count_request(&self, caller: &Caller) -> Result<(), Unavailable> {
        self.0.rates.count_request(caller)
    }

    /// The same for a request to settle. The first one after its caller was told that the payment is valid is not counted: it was with that
    /// verify.
    ///
    /// # Errors
    /// [`Unavailable::RateLimited`].
    pub(super) fn count_settle(&self, caller: &Caller, digest: B256) -> Result<(), Unavailable> {
        let counted = Counted::of(caller);
        let is_first = |counted| {
            self.0
                .counted_ahead
                .forget((counted, digest), Instant::now())
        };
        if counted.is_some_and(is_first) {
            return Ok(());
        }
        self.count_request(caller)
    }

    /// Remembers that a caller was told that a payment is valid.
    pub(super) fn tell_valid(&self, caller: &Caller, digest: B256) {
        if let Some(counted) = Counted::of(caller) {
            let now = Instant::now();
            self.0.told.remember((counted, digest), now);
            self.0.counted_ahead.remember((counted, digest), now);
        }
    }

    fn was_told_valid(&self, caller: &Caller, digest: B256) -> bool {
        Counted::of(caller).is_some_and(|counted| {
            let key = (counted, digest);
            self.0.told.since(key, Instant::now()).is_some()
        })
    }

    /// Reads the file with denied addresses whenever it changes. Without one, never ends.
    pub async fn follow_deny_list(self) {
        match &self.0.denials.file {
            Some(file) => file.follow().await,
            None => std::future::pending().await,
        }
    }
}

/// Names the proof of a transfer as a payment's digest names its authorization, without its session's row.
pub(super) fn proof_digest(session: &SessionId, transaction: B256) -> B256 {
    keccak256([session.as_str().as_bytes(), transaction.as_slice()].concat())
}

/// A payment before the gate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) served: &'a ServedNetwork,
    pub(super) caller: &'a Caller,
    pub(super) call: Call,
    pub(super) asset: Address,
    pub(super) payer: Address,
    pub(super) payee: Address,
    /// What would move: in scheme `upto` the maximum at `/verify`, the charge at `/settle`.
    pub(super) amount: Amount,
    /// The caller's rate does not matter.
    pub(super) is_exempt: bool,
    /// Whether budgets and the suspension of its payer apply. Not to a transfer, whose gas its payer pays, and not to a payment whose success
    /// was told: that is sent in any case.
    pub(super) needs_budget: bool,
}

impl Asked<'_> {
    /// To whom the payment would belong. What is submitted for a session belongs to the caller that settles it later.
    const fn owner(&self) -> Option<Who> {
        match self.call {
            Call::Verify | Call::Settle => Some(self.caller.who),
            Call::OpenSession | Call::Submit => None,
        }
    }
}

/// What the gate says of an authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admission {
    /// Why it is not accepted, if its money was not transferred before.
    pub(super) denied: Option<Rejection>,
    /// To whom its payment belongs from now on. What is submitted for a session belongs to the caller that settles it.
    pub(super) settler: Option<Who>,
}

impl Facilitator {
    /// The gate.
    ///
    /// # Errors
    /// A rejection, or an `Unavailable` when the caller asks too often or the operator's policy service does not answer.
    pub(super) async fn pass_gate(&self, asked: Asked<'_>) -> Result<(), Error> {
        let policy = &asked.served.policy;
        policy.check_terms(asked.asset, asked.payee, asked.amount)?;
        if !asked.is_exempt {
            self.gate.0.rates.count(asked.call, asked.caller)?;
        }
        self.gate.0.denials.check(&asked).await?;
        if asked.needs_budget {
            asked.served.check_sponsorship(GasParties {
                payee: Some(asked.payee),
                payer: asked.payer,
                caller: asked.owner(),
            })?;
        }
        Ok(())
    }

    /// Passes an authorization through the gate. One that the ledger has a payment for may have moved its money before it was refused, so
    /// it is admitted as denied: the chain is asked about that first.
    pub(super) async fn admit(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        known: &Lookup,
        (caller, call): (&Caller, Call),
    ) -> Result<Admission, Error> {
        let told = self.gate.was_told_valid(caller, candidate.terms.digest);
        let asked = Asked {
            served,
            caller,
            call,
            asset: candidate.terms.asset,
            payer: candidate.terms.from,
            payee: candidate.terms.to,
            amount: candidate.terms.value,
            is_exempt: call == Call::Settle && told,
            needs_budget: !known.was_told(),
        };
        let denied = match self.pass_gate(asked).await {
            Ok(()) => None,
            Err(Error::Rejected(rejection)) if known.payment.is_some() => Some(rejection),
            Err(error) => return Err(error),
        };
        Ok(Admission {
            denied,
            settler: (call == Call::Settle).then_some(caller.who),
        })
    }

    /// Passes a transfer of a session through the gate.
    pub(super) async fn admit_transfer(
        &self,
        served: &ServedNetwork,
        session: &Session,
        transaction: B256,
        (caller, call): (&Caller, Call),
    ) -> Result<(), Error> {
        let proof = proof_digest(&session.id, transaction);
        let asked = Asked {
            served,
            caller,
            call,
            asset: session.asset,
            payer: session.payer,
            payee: session.payee,
            amount: session.amount,
            is_exempt: call == Call::Settle && self.gate.was_told_valid(caller, proof),
            needs_budget: false,
        };
        self.pass_gate(asked).await
    }

    /// Counts a call that asks the chain about a signature that is not proven yet.
    pub(super) fn count(&self, call: Call, caller: &Caller) -> Result<(), Error> {
        Ok(self.gate.0.rates.count(call, caller)?)
    }
}
