//! How a payment's money is moved: by the token itself, or by Permit2 through the proxy of a scheme. What differs between the two is said
//! here and in the chain's room for each; everything else treats payments alike.

use alloy::primitives::{Address, B256, Bytes, U256};

use crate::payment::approval::Wanted;
use crate::payment::{Approval, ChainFacts, SignedBy, Wallet, signature};
use crate::protocol::permit2::{PERMIT2, proxy_of};
use crate::protocol::{Amount, Authorization, Network, Reason, Scheme, X402Version};

/// By which contract an authorization moves money, and what that contract wants besides the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// EIP-3009: the token itself.
    Eip3009,
    /// Permit2, through the proxy of its scheme.
    Permit2(Permit2),
}

/// What Permit2 wants besides the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit2 {
    /// The most that the payer lets go; the terms say how much is taken.
    pub permitted: Amount,
    /// The only account that may settle, which makes it scheme `upto`; `None` in `exact`.
    pub facilitator: Option<Address>,
    /// How Permit2 comes to be allowed to take the token, if the payer has not seen to it.
    pub sponsored: Option<Sponsored>,
}

/// What a payer signed so that somebody else pays for the gas of its allowance to Permit2.
#[derive(Clone, PartialEq, Eq)]
pub enum Sponsored {
    /// The token's own permit (EIP-2612), submitted together with the payment.
    Permit {
        /// Unix seconds.
        deadline: Amount,
        /// Over exactly what the payment permits; `v` is 27 or 28.
        signature: [u8; 65],
    },
    /// A transaction of the payer's that approves Permit2, submitted before the payment.
    Approval(Bytes),
}

/// A payer's word, with all that is needed to act on it.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// The token.
    pub asset: Address,
    /// Who pays whom how much, and when.
    pub terms: &'a Authorization,
    /// By which contract.
    pub method: &'a Method,
    /// The 32 signed bytes.
    pub digest: B256,
    /// The signature without wrapper.
    pub signature: &'a Bytes,
    /// How to deploy the payer's wallet first.
    pub wallet: Option<&'a Wallet>,
    /// Who signed, where that was worked out already.
    pub signed_by: Option<SignedBy>,
}

impl Signed<'_> {
    /// Whether the payer's own key made the signature, spelled with `v` 27 or 28: the only kind that `v`, `r` and `s` can carry. Any
    /// other is for the payer's code to judge, also one of 65 bytes.
    pub fn is_by_payers_key(&self) -> bool {
        let recovered = || {
            let normal = signature::normalised(self.signature)?;
            let spelled = normal == self.signature[..];
            (spelled && signature::signer(&normal, self.digest) == Some(self.terms.from))
                .then_some(SignedBy::Payer)
        };
        self.signed_by.or_else(recovered) == Some(SignedBy::Payer)
    }

    /// The first second of the chain's time at which it can move money: tokens want a later time than `validAfter`, Permit2's proxies at
    /// least that.
    pub fn begins(&self) -> U256 {
        let after = self.terms.valid_after.atomic();
        match self.method {
            Method::Eip3009 => after.saturating_add(U256::ONE),
            Method::Permit2(_) => after,
        }
    }

    /// Whether nothing but the payer's allowance to Permit2 is missing, and the payer has signed an approval that can be submitted first.
    pub fn awaits_approval(&self, facts: &ChainFacts) -> bool {
        let sponsored = self
            .method
            .permit2()
            .and_then(|permit| permit.sponsored.as_ref());
        let value = self.terms.value.atomic();
        matches!(sponsored, Some(Sponsored::Approval(_)))
            && facts.settler_has_code
            && !facts.payer_has_code
            && facts.nonce_used == Some(false)
            && facts.balance.is_some_and(|balance| balance >= value)
            && facts.allowance.is_some_and(|allowance| allowance < value)
    }

    /// The approval that the payer has signed, read.
    pub fn approval(&self, network: Network) -> Option<Approval> {
        let permit = self.method.permit2()?;
        let Some(Sponsored::Approval(raw)) = &permit.sponsored else {
            return None;
        };
        let wanted = Wanted {
            network,
            payer: self.terms.from,
            token: self.asset,
            amount: permit.permitted,
        };
        Approval::read(raw, wanted).ok()
    }
}

/// What may be wrong with a payment. Each method, and each scheme, has codes of its own for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The schemes of buyer and seller differ.
    Scheme,
    /// Their networks differ.
    Network,
    /// The signature is not the payer's.
    Signature,
    /// Somebody else is paid.
    Payee,
    /// It has ended, ends too soon, or too late.
    Ends,
    /// It has not begun.
    Begins,
    /// Another amount is moved.
    Amount,
    /// Its nonce is used up, or another payment's.
    NonceUsed,
    /// The payer has too little.
    Balance,
    /// The simulation failed for no reason that we recognise.
    Simulation,
    /// It was mined without effect.
    Transaction,
    /// Mined, but not with exactly this transfer.
    Transfer,
}

impl Method {
    /// The scheme whose payments it moves.
    pub const fn scheme(&self) -> Scheme {
        match self {
            Self::Permit2(Permit2 {
                facilitator: Some(_),
                ..
            }) => Scheme::Upto,
            Self::Eip3009 | Self::Permit2(_) => Scheme::Exact,
        }
    }

    /// The contract in which nonces are used up.
    pub const fn nonce_domain(&self, asset: Address) -> Address {
        match self {
            Self::Eip3009 => asset,
            Self::Permit2(_) => PERMIT2,
        }
    }

    /// The contract that is called to settle.
    pub const fn settler(&self, asset: Address) -> Address {
        match self {
            Self::Eip3009 => asset,
            Self::Permit2(_) => proxy_of(self.scheme()),
        }
    }

    /// The only account that may settle, where there is one.
    pub const fn facilitator(&self) -> Option<Address> {
        match self {
            Self::Eip3009 => None,
            Self::Permit2(permit) => permit.facilitator,
        }
    }

    /// What Permit2 wants, where it moves the money.
    pub const fn permit2(&self) -> Option<&Permit2> {
        match self {
            Self::Eip3009 => None,
            Self::Permit2(permit) => Some(permit),
        }
    }

    /// The code for a fault (`docs/architecture.md#refusal-codes`).
    pub const fn reason(&self, version: X402Version, fault: Fault) -> Reason {
        match (self, fault) {
            (Self::Eip3009, Fault::Amount) => match version {
                X402Version::V1 => Reason::ExactValueV1,
                X402Version::V2 => Reason::ExactValueMismatch,
            },
            (Self::Eip3009, Fault::Signature) => Reason::ExactSignature,
            (Self::Eip3009, Fault::Payee) => Reason::ExactRecipientMismatch,
            (Self::Eip3009, Fault::Ends) => Reason::ExactValidBefore,
            (Self::Eip3009, Fault::Begins) => Reason::ExactValidAfter,
            (Self::Eip3009, Fault::NonceUsed) => Reason::ExactNonceUsed,
            (Self::Eip3009, Fault::Balance) => Reason::ExactInsufficientBalance,
            (Self::Eip3009, Fault::Simulation) => Reason::ExactSimulationFailed,
            (Self::Permit2(_), Fault::Amount) => Reason::Permit2AmountMismatch,
            (Self::Permit2(_), Fault::Signature) => Reason::Permit2Signature,
            (Self::Permit2(_), Fault::Payee) => Reason::Permit2RecipientMismatch,
            (Self::Permit2(_), Fault::Ends) => Reason::Permit2DeadlineExpired,
            (Self::Permit2(_), Fault::Begins) => Reason::Permit2NotYetValid,
            (Self::Permit2(_), Fault::NonceUsed) => Reason::Permit2InvalidNonce,
            (Self::Permit2(_), Fault::Balance) => Reason::Permit2InsufficientBalance,
            (Self::Permit2(_), Fault::Simulation) => Reason::Permit2SimulationFailed,
            (_, Fault::Transfer) => Reason::ExactTransferMismatch,
            (_, Fault::Scheme | Fault::Network | Fault::Transaction) => {
                of_scheme(self.scheme(), fault)
            }
        }
    }
}

const fn of_scheme(scheme: Scheme, fault: Fault) -> Reason {
    match (scheme, fault) {
        (Scheme::Exact, Fault::Scheme) => Reason::ExactScheme,
        (Scheme::Exact, Fault::Network) => Reason::ExactNetworkMismatch,
        (Scheme::Exact, _) => Reason::ExactTransactionFailed,
        (Scheme::Upto, Fault::Scheme) => Reason::UptoScheme,
        (Scheme::Upto, Fault::Network) => Reason::UptoNetworkMismatch,
        (Scheme::Upto, _) => Reason::UptoTransactionFailed,
    }
}

impl std::fmt::Debug for Sponsored {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever holds these bytes can submit them: they stay out of every log.
        formatter.write_str(match self {
            Self::Permit { .. } => "Permit",
            Self::Approval(_) => "Approval",
        })
    }
}
