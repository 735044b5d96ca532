//! The terms of a payment with their signature: what a candidate and a payment in the ledger have in common.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes, U256};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Sponsored};
use crate::payment::sponsoring::ExpectedApproval;
use crate::payment::{Approval, ChainFacts, Method, SignedBy, Wallet, signature};
use crate::protocol::{Amount, Network, Reason, Rejection, X402Version};

/// Signed terms with everything needed to settle them. On rail `transfer`: the terms of the session.
#[derive(Clone, PartialEq, Eq)]
pub struct PaymentTerms {
    /// The protocol version of the first request. Some codes depend on it.
    pub version: X402Version,
    pub network: Network,
    /// The token contract.
    pub asset: Address,
    /// The transfer method. Without meaning on rail `transfer`.
    pub method: Method,
    /// The payer.
    pub from: Address,
    /// The payee.
    pub to: Address,
    /// The amount to transfer. In Permit2 the signed amount is that of the method.
    pub value: Amount,
    pub valid_after: UnixSeconds,
    pub valid_before: UnixSeconds,
    /// The payer's nonce at the method's [nonce domain](Method::nonce_domain).
    pub nonce: B256,
    /// The signed EIP-712 digest.
    pub digest: B256,
    /// The signature without ERC-6492 wrapper; `v` is 27 or 28 if the payer's key made it.
    pub signature: Bytes,
    /// Who made the signature, if it was recovered already. Terms from the ledger are recovered again where it matters.
    pub signed_by: Option<SignedBy>,
    /// The deployment of the payer's wallet, if it has no code yet.
    pub wallet: Option<Wallet>,
}

impl PaymentTerms {
    /// The reason code for a fault of this payment.
    pub const fn reason(&self, fault: Fault) -> Reason {
        self.method.reason(self.version, fault)
    }

    /// The only account that may settle the payment; `None` if any may.
    pub const fn settling_signer(&self) -> Option<Address> {
        self.method.settling_signer()
    }

    /// A rejection with the code for a fault of this payment.
    pub fn rejection(&self, fault: Fault, message: impl Into<String>) -> Rejection {
        Rejection::new(self.reason(fault), message)
    }

    /// Whether the payer's key made the signature, and its `v` is 27 or 28. Only such a signature can be passed to a token as `v`, `r`
    /// and `s`. Every other signature, also one of 65 bytes, is for the payer's contract to check.
    pub fn is_signed_by_payer_key(&self) -> bool {
        let recovered = || {
            let normal = signature::normalised(&self.signature)?;
            let is_normalised = normal == self.signature[..];
            (is_normalised && signature::recover_signer(&normal, self.digest) == Some(self.from))
                .then_some(SignedBy::Payer)
        };
        self.signed_by.or_else(recovered) == Some(SignedBy::Payer)
    }

    /// The first block time at which the payment is valid. Tokens require a time later than `validAfter`; the Permit2 proxies accept
    /// `validAfter` itself.
    pub fn valid_from(&self) -> UnixSeconds {
        match self.method {
            Method::Eip3009 => self.valid_after.next(),
            Method::Permit2(_) => self.valid_after,
        }
    }

    /// Whether the authorization becomes valid only after the block of `facts`.
    pub fn is_not_yet_valid_at(&self, facts: &ChainFacts) -> bool {
        self.valid_from().timestamp() > facts.block_time.unix_timestamp()
    }

    /// Whether only the allowance to Permit2 is missing, and the payer signed an approval that can be submitted first.
    pub fn needs_approval_first(&self, facts: &ChainFacts) -> bool {
        let value = self.value.atomic();
        matches!(self.method.sponsored(), Some(Sponsored::Approval(_)))
            && facts.settler_has_code
            && !facts.payer_has_code
            && facts.nonce_used == Some(false)
            && facts.balance.is_some_and(|balance| balance >= value)
            && facts.allowance.is_some_and(|allowance| allowance < value)
    }

    /// Whether the ledger can store both times. No payment that may be accepted has others.
    pub fn has_storable_times(&self) -> bool {
        self.valid_after.moment().is_some() && self.valid_before.moment().is_some()
    }

    /// The decoded approval transaction, if the payment has one.
    pub fn approval(&self) -> Option<Approval> {
        let permit = self.method.permit2()?;
        let Some(Sponsored::Approval(raw)) = &permit.sponsored else {
            return None;
        };
        let expected = ExpectedApproval {
            network: self.network,
            payer: self.from,
            token: self.asset,
            amount: permit.permitted,
        };
        Approval::read(raw, expected).ok()
    }
}

impl fmt::Debug for PaymentTerms {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the signature: anyone who holds it can settle the payment.
        formatter
            .debug_struct("PaymentTerms")
            .field("network", &self.network)
            .field("asset", &self.asset)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("value", &self.value)
            .field("valid_after", &self.valid_after)
            .field("valid_before", &self.valid_before)
            .field("nonce", &self.nonce)
            .field("signed_by", &self.signed_by)
            .finish_non_exhaustive()
    }
}

/// A time as it is signed: Unix seconds of 256 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixSeconds(U256);

impl UnixSeconds {
    /// The number as it is signed, for calldata.
    pub const fn word(self) -> U256 {
        self.0
    }

    /// The number for comparisons with other times. What does not fit is later than every block.
    pub fn timestamp(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// The moment, for a `timestamptz` column; `None` beyond the year 9999.
    pub fn moment(self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.timestamp()).ok()
    }

    /// The time of a `timestamptz` column; `None` before 1970.
    pub fn from_moment(moment: OffsetDateTime) -> Option<Self> {
        let seconds = u64::try_from(moment.unix_timestamp()).ok()?;
        Some(Self(U256::from(seconds)))
    }

    const fn next(self) -> Self {
        Self(self.0.saturating_add(U256::ONE))
    }
}

impl From<U256> for UnixSeconds {
    fn from(seconds: U256) -> Self {
        Self(seconds)
    }
}

/// The wire writes times like amounts.
impl From<Amount> for UnixSeconds {
    fn from(seconds: Amount) -> Self {
        Self(seconds.atomic())
    }
}

impl fmt::Display for UnixSeconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}
