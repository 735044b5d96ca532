//! Conversion between rows and domain values. A value that cannot be read is an error that names table, column and row, never a guess.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use alloy::hex;
use alloy::primitives::{Address, B256, U256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::Unreadable;
use crate::payment::{
    Location, Method, Payment, PaymentId, PaymentState, PaymentTerms, Permit2, Sponsored,
    UnixSeconds, Wallet,
};
use crate::protocol::response::checksummed;
use crate::protocol::session::Rail;
use crate::protocol::{Reason, Rejection, X402Version};

/// Reason codes of later versions are kept for the life of the process: each at most this long, in bytes, and at most so many.
const CODE_BYTES_MAX: usize = 64;
const CODES_MAX: usize = 64;

/// A row of `payments`. The amount is text because `numeric(78, 0)` is wider than any number type of the driver.
#[derive(Debug)]
pub(super) struct PaymentRow {
    pub(super) id: Uuid,
    pub(super) x402_version: i16,
    pub(super) rail: String,
    pub(super) network: String,
    pub(super) asset: Vec<u8>,
    pub(super) payer: Vec<u8>,
    pub(super) payee: Vec<u8>,
    pub(super) amount: String,
    pub(super) resource: Option<String>,
    pub(super) nonce: Vec<u8>,
    pub(super) valid_after: OffsetDateTime,
    pub(super) valid_before: OffsetDateTime,
    pub(super) digest: Vec<u8>,
    pub(super) signature: Vec<u8>,
    pub(super) wallet_factory: Option<Vec<u8>>,
    pub(super) wallet_factory_call: Option<Vec<u8>>,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) transaction_hash: Option<Vec<u8>>,
    pub(super) log_index: Option<i64>,
    pub(super) block_number: Option<i64>,
    pub(super) block_hash: Option<Vec<u8>>,
    pub(super) block_time: Option<OffsetDateTime>,
    pub(super) confirmations: i32,
    pub(super) quarantine_reason: Option<String>,
    pub(super) unmatched_reason: Option<String>,
    pub(super) created_at: OffsetDateTime,
    pub(super) updated_at: OffsetDateTime,
    pub(super) signer: Option<Vec<u8>>,
    pub(super) permitted: Option<String>,
    pub(super) allowance_permit: Option<Vec<u8>>,
    pub(super) allowance_approval: Option<Vec<u8>>,
    pub(super) caller: Option<String>,
    pub(super) told: bool,
}

/// `query_as!` over all columns of `payments p`, with the rest of the statement appended; `with` puts a text in front of the statement.
macro_rules! select_payments {
    ($rest:literal $(+ $more:literal)* $(, $argument:expr)* $(,)?) => {
        $crate::ledger::row::select_payments!(with "", $rest $(+ $more)* $(, $argument)*)
    };
    (with $before:literal, $rest:literal $(+ $more:literal)* $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            $crate::ledger::row::PaymentRow,
            $before + r#"select p.id, p.x402_version, p.rail, p.network, p.asset, p.payer, p.payee, p.amount::text as "amount!", p.resource,
                p.nonce, p.valid_after, p.valid_before, p.digest, p.signature, p.wallet_factory, p.wallet_factory_call,
                p.state, p.reason, p.message, p.transaction_hash, p.log_index, p.block_number, p.block_hash, p.block_time,
                p.confirmations, p.quarantine_reason, p.unmatched_reason, p.created_at, p.updated_at, p.signer,
                p.permitted::text, p.allowance_permit, p.allowance_approval, p.caller,
                (p.state = 'queued' and exists (
                    select from grants g where g.payment_id = p.id and g.answered_at is not null
                )) as "told!"
            from payments p "# + $rest $(+ $more)*
            $(, $argument)*
        )
    };
}
pub(super) use select_payments;

impl TryFrom<PaymentRow> for Payment {
    type Error = Unreadable;

    fn try_from(row: PaymentRow) -> Result<Self, Self::Error> {
        let bad = |column| bad(column, row.id);
        let version = u8::try_from(row.x402_version)
            .ok()
            .and_then(|number| X402Version::try_from(number).ok());
        let factory = row
            .wallet_factory
            .as_deref()
            .map(|bytes| address(bytes).ok_or_else(|| bad("wallet_factory")));
        let caller = row.caller.as_deref().map(str::parse).transpose();
        let caller = caller.map_err(|_| bad("caller"))?;
        let (method, state) = (method(&row)?, state(&row)?);
        let seconds = UnixSeconds::from_moment;
        let terms = PaymentTerms {
            version: version.ok_or_else(|| bad("x402_version"))?,
            network: row.network.parse().map_err(|_| bad("network"))?,
            asset: address(&row.asset).ok_or_else(|| bad("asset"))?,
            method,
            from: address(&row.payer).ok_or_else(|| bad("payer"))?,
            to: address(&row.payee).ok_or_else(|| bad("payee"))?,
            value: row.amount.parse().map_err(|_| bad("amount"))?,
            valid_after: seconds(row.valid_after).ok_or_else(|| bad("valid_after"))?,
            valid_before: seconds(row.valid_before).ok_or_else(|| bad("valid_before"))?,
            nonce: hash(&row.nonce).ok_or_else(|| bad("nonce"))?,
            digest: hash(&row.digest).ok_or_else(|| bad("digest"))?,
            signature: row.signature.into(),
            signed_by: None,
            wallet: factory
                .transpose()?
                .zip(row.wallet_factory_call)
                .map(|(factory, call)| Wallet {
                    factory,
                    call: call.into(),
                }),
        };
        Ok(Self {
            id: PaymentId(row.id),
            rail: rail(&row.rail).ok_or_else(|| bad("rail"))?,
            terms,
            resource: row.resource,
            state,
            caller,
            confirmations: u32::try_from(row.confirmations).map_err(|_| bad("confirmations"))?,
            quarantine: row.quarantine_reason,
            unmatched: row.unmatched_reason,
            told: row.told,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

fn method(row: &PaymentRow) -> Result<Method, Unreadable> {
    let bad = |column| bad(column, row.id);
    let Some(permitted) = &row.permitted else {
        return Ok(Method::Eip3009);
    };
    let signer = row.signer.as_deref();
    let facilitator = signer.map(|bytes| address(bytes).ok_or_else(|| bad("signer")));
    let permit = row.allowance_permit.as_deref();
    let permit = permit.map(|bytes| permit_of(bytes).ok_or_else(|| bad("allowance_permit")));
    let approval = row.allowance_approval.clone();
    Ok(Method::Permit2(Permit2 {
        permitted: permitted.parse().map_err(|_| bad("permitted"))?,
        facilitator: facilitator.transpose()?,
        sponsored: permit
            .transpose()?
            .or_else(|| approval.map(|raw| Sponsored::Approval(raw.into()))),
    }))
}

fn permit_of(bytes: &[u8]) -> Option<Sponsored> {
    let (deadline, signature) = bytes.split_at_checked(32)?;
    Some(Sponsored::Permit {
        deadline: U256::from_be_slice(deadline).into(),
        signature: signature.try_into().ok()?,
    })
}

/// The columns for what the payer signed in place of an existing allowance to Permit2: an EIP-2612 permit or an approval transaction.
/// A permit is stored as its deadline (32 bytes, big endian) followed by its signature.
pub(super) fn allowance_columns(method: &Method) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    match method.sponsored() {
        None => (None, None),
        Some(Sponsored::Permit {
            deadline,
            signature,
        }) => {
            let deadline = deadline.word().to_be_bytes::<32>();
            (Some([&deadline[..], signature].concat()), None)
        }
        Some(Sponsored::Approval(raw)) => (None, Some(raw.to_vec())),
    }
}

fn state(row: &PaymentRow) -> Result<PaymentState, Unreadable> {
    let bad = |column| bad(column, row.id);
    let transaction = row
        .transaction_hash
        .as_deref()
        .map(|bytes| hash(bytes).ok_or_else(|| bad("transaction_hash")));
    let transaction = transaction.transpose()?;
    let mined_at = || location(row).ok_or_else(|| bad("log_index"));
    let rejection = || {
        let reason = row
            .reason
            .as_deref()
            .map(|code| {
                code.parse()
                    .unwrap_or_else(|_| reason_of_later_version(code))
            })
            .ok_or_else(|| bad("reason"))?;
        Ok::<_, Unreadable>(Rejection {
            reason,
            message: row.message.clone().unwrap_or_default(),
        })
    };
    Ok(match row.state.as_str() {
        "queued" => PaymentState::Queued,
        "inflight" => PaymentState::Inflight(transaction.ok_or_else(|| bad("transaction_hash"))?),
        "mined" => PaymentState::Mined(mined_at()?),
        "settled" if row.amount == "0" => PaymentState::Uncharged,
        "settled" => PaymentState::Settled(mined_at()?),
        "final" => PaymentState::Final(mined_at()?),
        "late_settled" => PaymentState::LateSettled(mined_at()?),
        "refused" => PaymentState::Refused(rejection()?),
        "failed" => PaymentState::Failed {
            rejection: rejection()?,
            transaction,
        },
        _ => return Err(bad("state")),
    })
}

/// A reason code that this version does not know, because a later version (perhaps another process) has written it. It is passed on unchanged.
/// Codes are leaked into static memory, so length and number are bounded; beyond the bounds the reason is `UnexpectedSettleError`.
fn reason_of_later_version(code: &str) -> Reason {
    static SEEN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = seen.get(code).copied();
    let fits = code.len() <= CODE_BYTES_MAX && seen.len() < CODES_MAX;
    let code = known.or_else(|| fits.then(|| &*code.to_owned().leak()));
    seen.extend(code);
    code.map_or(Reason::UnexpectedSettleError, Reason::FromNewerVersion)
}

fn location(row: &PaymentRow) -> Option<Location> {
    Some(Location {
        transaction: hash(row.transaction_hash.as_deref()?)?,
        log_index: u64::try_from(row.log_index?).ok()?,
        block_number: u64::try_from(row.block_number?).ok()?,
        block_hash: hash(row.block_hash.as_deref()?)?,
        block_time: row.block_time?,
    })
}

fn bad(column: &'static str, id: Uuid) -> Unreadable {
    Unreadable {
        table: "payments",
        column,
        id: id.to_string(),
    }
}

pub(super) fn rail(name: &str) -> Option<Rail> {
    [Rail::Authorization, Rail::Transfer]
        .into_iter()
        .find(|rail| rail.name() == name)
}

pub(super) fn address(bytes: &[u8]) -> Option<Address> {
    Address::try_from(bytes).ok()
}

/// An address for the history. Bytes that are no address are shown in hexadecimal digits.
pub(super) fn shown_address(bytes: &[u8]) -> String {
    address(bytes).map_or_else(|| hex::encode_prefixed(bytes), checksummed)
}

pub(super) fn hash(bytes: &[u8]) -> Option<B256> {
    B256::try_from(bytes).ok()
}

/// Block heights, nonces, gas and log indices fit into `bigint`.
pub(super) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
