//! Chain facts for verification: everything about many payments in one `eth_call`.
//!
//! A small read-only contract is injected by a state override, so nothing is deployed. Questions that come while a call is under way
//! are collected and go out together (group commit): an idle reader asks at once, a busy one asks for many.

use std::time::Duration;

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::SolCall;
use serde_json::json;
use time::OffsetDateTime;

use crate::chain::authorization::settlement_data;
use crate::chain::lens::{self, LENS, Query, readCall};
use crate::chain::{Rpc, RpcError, permit2, token};
use crate::coalesce::{Answering, Coalescer, Gathering, coalescer};
use crate::payment::{ChainFacts, Method, Signed};
use crate::protocol::permit2::PERMIT2;

/// Rows in one call: below the gas that nodes grant to an `eth_call`, at 300k a row.
const ROWS_MAX: usize = 50;
/// Calls under way at once.
const CALLS_MAX: usize = 4;
/// Questions waiting; beyond that callers are told that the service is busy.
const WAITING_MAX: usize = 8192;
/// Least time between two calls that are not full: a burst costs a few calls, a payment by itself no time.
const PACE: Duration = Duration::from_millis(10);
/// How long a question may wait for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

type Answer = Result<ChainFacts, RpcError>;

/// The handle by which questions are asked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FactsReader {
    questions: Coalescer<Query, Answer>,
    /// Of payments that begin after the newest block: the first second at which each is valid.
    early: Coalescer<(Query, u64), Answer>,
    gas_limit: u64,
}

/// The task behind [`FactsReader`]; run it for as long as questions may come.
#[derive(Debug)]
pub struct FactsTask {
    rpc: Rpc,
    questions: Answering<Query, Answer>,
    early: Answering<(Query, u64), Answer>,
}

impl FactsReader {
    /// A reader over `rpc` that lets one payment use `gas_limit` gas at most, and the task to run behind it.
    pub fn new(rpc: Rpc, gas_limit: u64) -> (Self, FactsTask) {
        let gathering = || Gathering {
            rows_max: ROWS_MAX,
            groups_max: CALLS_MAX,
            pace: PACE,
            waiting_max: WAITING_MAX,
        };
        let (sender, questions) = coalescer(gathering());
        let (early_sender, early) = coalescer(gathering());
        (
            Self {
                questions: sender,
                early: early_sender,
                gas_limit,
            },
            FactsTask {
                rpc,
                questions,
                early,
            },
        )
    }

    /// The facts about a payment.
    ///
    /// # Errors
    /// When the RPC fails or too many questions wait: an outage, which says nothing about the payment.
    pub async fn of(&self, signed: Signed<'_>) -> Answer {
        let query = self.query(signed);
        let asked = self.questions.ask(query.clone());
        let facts = within_the_limit(asked).await?;
        if facts.transfer_succeeds || !signed.is_early_for(&facts) {
            return Ok(facts);
        }
        // The newest block is older than the authorization's beginning: what counts is the block that will take it.
        let Ok(begins) = u64::try_from(signed.begins()) else {
            return Ok(facts);
        };
        match within_the_limit(self.early.ask((query, begins))).await {
            Ok(later) => Ok(ChainFacts {
                block_time: facts.block_time,
                ..later
            }),
            Err(error) => {
                tracing::debug!(%error, "a call cannot be simulated at a later time; the newest block's answer stands");
                Ok(facts)
            }
        }
    }

    fn query(&self, signed: Signed<'_>) -> Query {
        let payer = signed.terms.from;
        let (spender, (nonce_call, nonce_mask)) = match signed.method {
            Method::Eip3009 => (
                Address::ZERO,
                (token::nonce_question(payer, signed.terms.nonce), U256::ONE),
            ),
            Method::Permit2(_) => (PERMIT2, permit2::nonce_question(payer, signed.terms.nonce)),
        };
        let (factory, factory_call) = signed
            .wallet
            .map(|wallet| (wallet.factory, wallet.call.clone()))
            .unwrap_or_default();
        Query {
            token: signed.asset,
            payer,
            nonceDomain: signed.method.nonce_domain(signed.asset),
            nonceCall: nonce_call,
            nonceMask: nonce_mask,
            spender,
            digest: signed.digest,
            signature: signed.signature.clone(),
            factory,
            factoryCall: factory_call,
            settler: signed.method.settler(signed.asset),
            settlement: settlement_data(signed),
            sender: signed.method.facilitator().unwrap_or_default(),
            gasLimit: U256::from(self.gas_limit),
        }
    }
}

async fn within_the_limit<E>(asked: impl Future<Output = Result<Answer, E>>) -> Answer {
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(_)) | Err(_) => Err(RpcError::Timeout),
    }
}

impl FactsTask {
    /// Answers questions until every [`FactsReader`] is gone.
    pub async fn run(self) {
        let Self {
            rpc,
            questions,
            early,
        } = self;
        let now = questions.run(|queries| answer(rpc.clone(), queries, None));
        let later = early.run(|asked: Vec<(Query, u64)>| {
            // All of them have begun when the last one has, and end seconds after that at the earliest.
            let time = asked.iter().map(|(_, begins)| *begins).max();
            let queries = asked.into_iter().map(|(query, _)| query).collect();
            answer(rpc.clone(), queries, time)
        });
        tokio::join!(now, later);
    }
}

/// A question and its place among those that are answered together.
type Row = (usize, Query);

/// What the lens found of a row.
#[derive(Debug, Clone)]
struct Found {
    facts: ChainFacts,
    /// Nothing: there is no token, or the gas of the call did not suffice.
    silent: bool,
}

/// Answers the rows of one call. Nodes grant it a bounded gas, and payers' own code may burn it: rows that got none are asked again in halves,
/// in the end each by itself, so that nobody is answered wrongly for what another one burns.
async fn answer(rpc: Rpc, queries: Vec<Query>, time: Option<u64>) -> Vec<Answer> {
    let mut answers = vec![Err(RpcError::Malformed("eth_call")); queries.len()];
    let mut groups: Vec<Vec<Row>> = vec![queries.into_iter().enumerate().collect()];
    while let Some(rows) = groups.pop() {
        let mut silent = answer_group(&rpc, rows, time, &mut answers).await;
        let second = silent.split_off(silent.len().div_ceil(2));
        let halves = [second, silent].into_iter();
        groups.extend(halves.filter(|half| !half.is_empty()));
    }
    answers
}

/// Answers what one call tells; returns the rows that are to be asked again.
async fn answer_group(
    rpc: &Rpc,
    rows: Vec<Row>,
    time: Option<u64>,
    answers: &mut [Answer],
) -> Vec<Row> {
    let alone = rows.len() == 1;
    let queries = rows.iter().map(|(_, query)| query.clone()).collect();
    let found: Vec<Result<Found, RpcError>> = match look(rpc, queries, time).await {
        Ok(found) if found.len() == rows.len() => found.into_iter().map(Ok).collect(),
        Err(error) if !alone && may_be_of_one_row(&error) => return rows,
        Ok(_) => vec![Err(RpcError::Malformed("eth_call")); rows.len()],
        Err(error) => vec![Err(error); rows.len()],
    };
    let mut silent = Vec::new();
    for ((place, query), found) in rows.into_iter().zip(found) {
        let answer = match found {
            Ok(found) if !found.silent => Ok(found.facts),
            Ok(found) if alone => of_silence(rpc, query.token, found.facts).await,
            Ok(_) => {
                silent.push((place, query));
                continue;
            }
            Err(error) => Err(error),
        };
        if let Some(place) = answers.get_mut(place) {
            *place = answer;
        }
    }
    silent
}

/// What a row says that came back all zero although it was asked alone: the token is not there, or its payer burns all gas, which is nobody
/// else's business.
async fn of_silence(rpc: &Rpc, token: Address, facts: ChainFacts) -> Answer {
    if rpc.code(token).await?.is_empty() {
        Ok(facts)
    } else {
        Err(RpcError::Malformed("eth_call"))
    }
}

/// Whether a call that failed as a whole may have failed by one of its rows.
fn may_be_of_one_row(error: &RpcError) -> bool {
    let of_gas = |message: &str| message.to_lowercase().contains("gas");
    error.is_revert() || matches!(error, RpcError::Refused { message, .. } if of_gas(message))
}

/// Facts as of the newest block, or, with a `time`, of a block of that time on top of it.
async fn look(rpc: &Rpc, queries: Vec<Query>, time: Option<u64>) -> Result<Vec<Found>, RpcError> {
    // The lens stands in for the accounts that payments want to be called by, so that proxies see their sender.
    let senders = queries.iter().map(|query| query.sender);
    let overrides = lens::placed_at(senders.filter(|sender| !sender.is_zero()));
    let data = Bytes::from(readCall { queries }.abi_encode());
    let call = json!({"to": LENS, "data": data});
    let reads = |answer: &Bytes| readCall::abi_decode_returns(answer).is_ok();
    let answer = match time {
        None => {
            let parameters = (call, "latest", overrides);
            rpc.call_overridden(parameters, reads).await?
        }
        Some(time) => {
            let block = json!({"time": format!("0x{time:x}")});
            let parameters = (call, "latest", overrides, block);
            rpc.call_in_a_block(parameters, reads).await?
        }
    };
    let malformed = || RpcError::Malformed("eth_call");
    let answer = readCall::abi_decode_returns(&answer).map_err(|_| malformed())?;
    let block_number = u64::try_from(answer.blockNumber).map_err(|_| malformed())?;
    let seconds = i64::try_from(answer.blockTime).map_err(|_| malformed())?;
    if time.is_some_and(|time| U256::from(time) > answer.blockTime) {
        // The endpoint has passed over the block's override.
        return Err(malformed());
    }
    let block_time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| malformed())?;
    let found = answer.facts.into_iter().map(|row| Found {
        // A row that the lens could not finish comes back all zero, exactly like a token that is not there.
        silent: row.tokenCodeSize.is_zero() && !row.nonceKnown && !row.balanceKnown,
        facts: ChainFacts {
            block_number,
            block_time,
            token_has_code: !row.tokenCodeSize.is_zero(),
            payer_has_code: !row.payerCodeSize.is_zero(),
            settler_has_code: !row.settlerCodeSize.is_zero(),
            allowance: row.allowanceKnown.then_some(row.allowance),
            nonce_used: row.nonceKnown.then_some(row.nonceUsed),
            balance: row.balanceKnown.then_some(row.balance),
            signature_accepted: row.signatureValid,
            transfer_succeeds: row.transferSucceeds,
            revert: row.revertData,
            gas_used: u64::try_from(row.gasUsed).unwrap_or(u64::MAX),
        },
    });
    Ok(found.collect())
}
