//! What to answer for a known payment: the table of the grant rule, pure.

use crate::ledger::{GrantStatus, Standing};
use crate::payment::PaymentState;
use crate::payment::state::Exit;

/// What a presenter of a known payment gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Its outcome is open: join it.
    Join,
    /// The money has moved and nobody was told: this presenter may be.
    Grant,
    /// Somebody is being told right now; wait until that answer has arrived or broken off.
    AwaitGrant,
    /// Somebody was told.
    Duplicate,
    /// Ejected before any broadcast; check it anew.
    CheckAgain(Exit),
    /// Proven unable to move money.
    Failed(Exit),
    /// Set aside for the operator; nothing more can be said.
    SetAside(String),
}

pub(super) fn decide(standing: &Standing) -> Decision {
    let payment = &standing.payment;
    if let Some(why) = &payment.quarantine {
        return Decision::SetAside(why.clone());
    }
    match &payment.state {
        PaymentState::Queued | PaymentState::Inflight(_) | PaymentState::Mined(_) => Decision::Join,
        PaymentState::Settled(_) | PaymentState::Final(_) | PaymentState::LateSettled(_) => {
            match standing.grant {
                GrantStatus::Free => Decision::Grant,
                GrantStatus::Undecided => Decision::AwaitGrant,
                GrantStatus::Standing => Decision::Duplicate,
            }
        }
        PaymentState::Refused(exit) => Decision::CheckAgain(exit.clone()),
        PaymentState::Failed { exit, .. } => Decision::Failed(exit.clone()),
    }
}
