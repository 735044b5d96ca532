//! Chain facts for verification: all that is read from the chain for many payments in one `eth_call`.
//!
//! A small read-only contract is placed by a state override, so nothing is deployed. Queries that arrive while a call is in flight are
//! collected for the next one: an idle reader calls at once, a busy one batches.

use std::time::Duration;

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol_types::SolCall;
use serde_json::json;
use time::OffsetDateTime;

use crate::chain::authorization::{direct_call, nonce_call};
use crate::chain::lens::{self, LENS, Query, readCall};
use crate::chain::nonce_use::NonceCall;
use crate::chain::{Rpc, RpcError, RpcResult};
use crate::coalesce::{Coalescer, GroupLimits, GroupWorker, coalescer};
use crate::payment::{ChainFacts, Method, PaymentTerms};
use crate::protocol::permit2::PERMIT2;

/// Most rows in one call. A row takes about 300k gas; all of them stay below the gas that nodes allow for an `eth_call`.
const ROWS_MAX: usize = 50;
/// Most calls in flight.
const CALLS_MAX: usize = 4;
/// Most waiting queries; further ones fail, and the caller is told that the service is busy.
const WAITING_MAX: usize = 8192;
/// Least time between two calls that are not full. A burst takes a few calls; a single payment does not wait.
const CALL_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// How long a query may wait for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

type Answer = RpcResult<ChainFacts>;

/// The handle for queries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FactsReader {
    queries: Coalescer<Query, Answer>,
    /// Queries for payments that become valid after the newest block, each with the first second at which it is valid.
    early: Coalescer<(Query, u64), Answer>,
    gas_limit: u64,
}

/// The task behind [`FactsReader`]. It must run as long as there are queries.
#[derive(Debug)]
pub struct FactsTask {
    rpc: Rpc,
    queries: GroupWorker<Query, Answer>,
    early: GroupWorker<(Query, u64), Answer>,
}

impl FactsReader {
    /// A reader that allows one payment at most `gas_limit` gas, and its task.
    pub fn new(rpc: Rpc, gas_limit: u64) -> (Self, FactsTask) {
        let gathering = || GroupLimits {
            rows_max: ROWS_MAX,
            groups_max: CALLS_MAX,
            pace: CALL_INTERVAL_MIN,
            waiting_max: WAITING_MAX,
        };
        let (sender, queries) = coalescer(gathering());
        let (early_sender, early) = coalescer(gathering());
        (
            Self {
                queries: sender,
                early: early_sender,
                gas_limit,
            },
            FactsTask {
                rpc,
                queries,
                early,
            },
        )
    }

    /// The facts about a payment. Fails when the RPC fails or too many queries wait, which says nothing about the payment.
    pub async fn of(&self, terms: &PaymentTerms) -> Answer {
        let query = self.query(terms);
        let answer = self.queries.ask(query.clone());
        let facts = with_answer_limit(answer).await?;
        if facts.transfer_succeeds || !terms.is_not_yet_valid_at(&facts) {
            return Ok(facts);
        }
        // The newest block is before the authorization's `validAfter`: simulate it in a block at that time instead.
        let Ok(begins) = u64::try_from(terms.valid_from().word()) else {
            return Ok(facts);
        };
        match with_answer_limit(self.early.ask((query, begins))).await {
            Ok(later) => Ok(ChainFacts {
                block_time: facts.block_time,
                ..later
            }),
            Err(error) => {
                tracing::debug!(%error, "simulation at a later block time failed; using the result at the newest block");
                Ok(facts)
            }
        }
    }

    fn query(&self, terms: &PaymentTerms) -> Query {
        let payer = terms.from;
        let spender = match terms.method {
            Method::Eip3009 => Address::ZERO,
            Method::Permit2(_) => PERMIT2,
        };
        let NonceCall {
            call: (nonce_domain, nonce_data),
            mask,
        } = nonce_call(terms);
        let (settler, settlement) = direct_call(terms);
        let (factory, factory_call) = terms
            .wallet
            .as_ref()
            .map(|wallet| (wallet.factory, wallet.call.clone()))
            .unwrap_or_default();
        Query {
            token: terms.asset,
            payer,
            nonceDomain: nonce_domain,
            nonceCall: nonce_data,
            nonceMask: mask,
            spender,
            digest: terms.digest,
            signature: terms.signature.clone(),
            factory,
            factoryCall: factory_call,
            settler,
            settlement,
            sender: terms.settling_signer().unwrap_or_default(),
            gasLimit: U256::from(self.gas_limit),
        }
    }
}

async fn with_answer_limit<E>(answer: impl Future<Output = Result<Answer, E>>) -> Answer {
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(_)) | Err(_) => Err(RpcError::Timeout),
    }
}

impl FactsTask {
    /// Answers queries until every [`FactsReader`] is dropped.
    pub async fn run(self) {
        let Self {
            rpc,
            queries,
            early,
        } = self;
        let now = queries.run(|queries| answer(rpc.clone(), queries, None));
        let later = early.run(|batch: Vec<(Query, u64)>| {
            // At the latest beginning all of them have begun, and the earliest end is seconds after it.
            let time = batch.iter().map(|(_, begins)| *begins).max();
            let queries = batch.into_iter().map(|(query, _)| query).collect();
            answer(rpc.clone(), queries, time)
        });
        tokio::join!(now, later);
    }
}

/// A query and its position among those answered together.
type Row = (usize, Query);

/// Answers queries with as few calls as possible.
///
/// A node limits the gas of a call, and the code of one payer may use it up. Rows that come back empty are queried again in halves, in the
/// end one by one, so that no payment gets a wrong answer because of another one.
async fn answer(rpc: Rpc, queries: Vec<Query>, time: Option<u64>) -> Vec<Answer> {
    let mut answers = vec![Err(RpcError::Malformed("eth_call")); queries.len()];
    let mut groups: Vec<Vec<Row>> = vec![queries.into_iter().enumerate().collect()];
    while let Some(rows) = groups.pop() {
        let mut empty = answer_group(&rpc, rows, time, &mut answers).await;
        let second = empty.split_off(empty.len().div_ceil(2));
        let halves = [second, empty].into_iter();
        groups.extend(halves.filter(|half| !half.is_empty()));
    }
    answers
}

/// Makes one call and fills in the answers; returns the rows that have to be queried again.
async fn answer_group(
    rpc: &Rpc,
    rows: Vec<Row>,
    time: Option<u64>,
    answers: &mut [Answer],
) -> Vec<Row> {
    let alone = rows.len() == 1;
    let queries = rows.iter().map(|(_, query)| query.clone()).collect();
    let found: Vec<Answer> = match call_lens(rpc, queries, time).await {
        Ok(found) if found.len() == rows.len() => found.into_iter().map(Ok).collect(),
        Err(error) if !alone && may_be_caused_by_one_row(&error) => return rows,
        Ok(_) => vec![Err(RpcError::Malformed("eth_call")); rows.len()],
        Err(error) => vec![Err(error); rows.len()],
    };
    let mut empty = Vec::new();
    for ((place, query), found) in rows.into_iter().zip(found) {
        let answer = match found {
            Ok(facts) if !is_empty(&facts) => Ok(facts),
            Ok(facts) if alone => facts_of_empty_row(rpc, query.token, facts).await,
            Ok(_) => {
                empty.push((place, query));
                continue;
            }
            Err(error) => Err(error),
        };
        if let Some(place) = answers.get_mut(place) {
            *place = answer;
        }
    }
    empty
}

/// Whether the lens could not finish the row: it comes back all zero, like one of an address without a token.
const fn is_empty(facts: &ChainFacts) -> bool {
    !facts.token_has_code && facts.nonce_used.is_none() && facts.balance.is_none()
}

/// The answer for a row that came back empty in a call of its own: either there is no token, or the payer's code used up all gas.
async fn facts_of_empty_row(rpc: &Rpc, token: Address, facts: ChainFacts) -> Answer {
    if rpc.code(token).await?.is_empty() {
        Ok(facts)
    } else {
        Err(RpcError::Malformed("eth_call"))
    }
}

/// Whether one of the rows may have made the whole call fail.
fn may_be_caused_by_one_row(error: &RpcError) -> bool {
    let about_gas = |message: &str| message.to_lowercase().contains("gas");
    error.is_revert() || matches!(error, RpcError::Refused { message, .. } if about_gas(message))
}

/// Reads facts as of the newest block or, with a `time`, of a future block with that timestamp on top of it.
async fn call_lens(
    rpc: &Rpc,
    queries: Vec<Query>,
    time: Option<u64>,
) -> RpcResult<Vec<ChainFacts>> {
    // The proxy of `upto` accepts calls from the payment's facilitator only. The lens is placed at that address too, to call from it.
    let senders = queries.iter().map(|query| query.sender);
    let overrides = lens::overrides_at(senders.filter(|sender| !sender.is_zero()));
    let data = Bytes::from(readCall { queries }.abi_encode());
    let call = json!({"to": LENS, "data": data});
    let decode = |answer: &Bytes| readCall::abi_decode_returns(answer).ok();
    let answer = rpc.simulate(call, overrides, time, decode).await?;
    let malformed = || RpcError::Malformed("eth_call");
    let block_number = u64::try_from(answer.blockNumber).map_err(|_| malformed())?;
    let seconds = i64::try_from(answer.blockTime).map_err(|_| malformed())?;
    if time.is_some_and(|time| U256::from(time) > answer.blockTime) {
        // The endpoint has ignored the block override.
        return Err(malformed());
    }
    let block_time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| malformed())?;
    let found = answer.facts.into_iter().map(|row| ChainFacts {
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
    });
    Ok(found.collect())
}
