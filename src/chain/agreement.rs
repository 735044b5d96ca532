//! Agreement between the endpoints of a network (`docs/architecture.md`, RPC agreement). Transfers, confirmations, final failures and
//! account nonces are derived from agreed answers only, because any single endpoint may be compromised.

use std::cmp::Ordering;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use alloy::primitives::{Address, B256, U64};
use alloy::rpc::json_rpc::{RpcRecv, RpcSend};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chain::endpoint::{Endpoint, Rank};
use crate::chain::error_kind::{ErrorKind, RetryPauses};
use crate::chain::heads::Block;
use crate::chain::outliers::outliers;
use crate::chain::rpc::READ_LIMIT;
use crate::chain::{Head, Receipt, Rpc, RpcError};

/// How many endpoints must agree, and up to which block they have.
#[derive(Debug)]
pub(super) struct Agreement {
    /// How many endpoints must show the same block and receipt (`confirm_with`).
    pub(super) required: usize,
    /// The highest block that so many endpoints have shown.
    height: AtomicU64,
}

impl Agreement {
    pub(super) const fn of(required: usize) -> Self {
        Self {
            required,
            height: AtomicU64::new(0),
        }
    }
}

impl Rpc {
    /// Whether the answer of one endpoint is enough.
    pub(super) fn one_is_enough(&self) -> bool {
        self.agreement.required < 2
    }

    /// The height from which confirmations are counted: `height`, but no higher than the highest agreed block.
    pub fn agreed_height(&self, height: u64) -> u64 {
        if self.one_is_enough() {
            return height;
        }
        height.min(self.agreement.height.load(Relaxed))
    }

    /// Sends a request to every usable endpoint. Answers can be taken in the order in which they arrive.
    pub(super) fn request_all<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend + 'static,
    ) -> JoinSet<(usize, Result<R, RpcError>)> {
        let mut requests = JoinSet::new();
        for index in self.ranked() {
            let (rpc, parameters) = (self.clone(), parameters.clone());
            requests.spawn(async move { (index, rpc.request(index, method, parameters).await) });
        }
        requests
    }

    /// The answer that `confirm_with` endpoints give alike. Transient errors (a rate limit, a node that is a block behind, a broken
    /// connection) are retried.
    ///
    /// # Errors
    /// [`RpcError::NoAgreement`] when too few answer, [`RpcError::Disagreement`] when their answers differ; the last endpoint's error
    /// when none answers.
    pub(super) async fn agreed<R: RpcRecv + Clone>(
        &self,
        method: &'static str,
        parameters: impl RpcSend + 'static,
        alike: impl Fn(&R, &R) -> bool,
    ) -> Result<R, RpcError> {
        if self.one_is_enough() {
            return self.read(method, parameters).await;
        }
        let round = || self.agreed_round(method, parameters.clone(), &alike);
        retry_rounds(round).await
    }

    async fn agreed_round<R: RpcRecv + Clone>(
        &self,
        method: &'static str,
        parameters: impl RpcSend + 'static,
        alike: &impl Fn(&R, &R) -> bool,
    ) -> Result<R, Errors> {
        let mut requests = self.request_all::<R>(method, parameters);
        let mut answers: Vec<(R, usize)> = Vec::new();
        let mut errors = Errors::new();
        while let Some(answer) = requests.join_next().await {
            let answer = match answer {
                Ok((_, Ok(answer))) => answer,
                Ok((_, Err(error))) => {
                    errors.push(error);
                    continue;
                }
                Err(_) => continue,
            };
            let known = answers.iter_mut().find(|(known, _)| alike(known, &answer));
            let times = if let Some((_, times)) = known {
                *times += 1;
                *times
            } else {
                answers.push((answer.clone(), 1));
                1
            };
            if times >= self.agreement.required {
                return Ok(answer);
            }
        }
        match answers.as_slice() {
            [] => {}
            [_] => errors.push(RpcError::NoAgreement(method)),
            [_, _, ..] => errors.push(RpcError::Disagreement(method)),
        }
        Err(errors)
    }

    /// Checks a receipt that one endpoint has returned: the same receipt, once `confirm_with` endpoints return it.
    pub async fn agreed_receipt(&self, receipt: Receipt) -> Result<Option<Receipt>, RpcError> {
        if self.one_is_enough() {
            return Ok(Some(receipt));
        }
        self.receipt(receipt.transaction_hash).await
    }

    /// The account nonce that two endpoints (one, if there is only one) report at least, as of `block` (a tag or a height). A single
    /// endpoint could make a lane skip nonces, or give up transactions that may still be mined.
    ///
    /// # Errors
    /// [`RpcError::NoAgreement`] when only one of several endpoints answers; its error when none does.
    pub async fn agreed_nonce(&self, account: Address, block: String) -> Result<u64, RpcError> {
        retry_rounds(|| self.agreed_nonce_round(account, block.clone())).await
    }

    async fn agreed_nonce_round(&self, account: Address, block: String) -> Result<u64, Errors> {
        const METHOD: &str = "eth_getTransactionCount";
        let mut requests = self.request_all::<U64>(METHOD, (account, block));
        let (mut counts, mut errors) = (Vec::new(), Errors::new());
        while let Some(answer) = requests.join_next().await {
            match answer {
                Ok((_, Ok(count))) => counts.push(count.to::<u64>()),
                Ok((_, Err(error))) => errors.push(error),
                Err(_) => {}
            }
        }
        counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        let required = self.endpoints.len().min(2);
        if let Some(count) = counts.get(required - 1) {
            return Ok(*count);
        }
        if let Some(missing_state) = errors
            .iter()
            .position(|error| error.kind() == ErrorKind::MissingState)
        {
            // The endpoint does not keep state that old, so its answer stays missing: report this error as the last one.
            let missing = errors.swap_remove(missing_state);
            errors.push(missing);
        } else if !counts.is_empty() {
            errors.push(RpcError::NoAgreement(METHOD));
        }
        Err(errors)
    }

    /// Whether none of `transactions` can ever be mined, because another transaction used their account nonce as of the block at `height`.
    ///
    /// True when two endpoints (one, if there is only one) report a higher nonce, as many report no receipt, and none reports a receipt.
    /// Nodes show receipts later than nonces: the caller must check again after a while before it acts on the result.
    pub async fn is_nonce_lost(
        &self,
        account: Address,
        nonce: u64,
        transactions: &[B256],
        height: u64,
    ) -> Result<bool, RpcError> {
        let height = self.agreed_height(height);
        if self.agreed_nonce(account, format!("0x{height:x}")).await? <= nonce {
            return Ok(false);
        }
        for transaction in transactions {
            if !self.has_no_receipt(*transaction).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two endpoints (one, if there is only one) report no receipt of a transaction, and none reports one.
    async fn has_no_receipt(&self, transaction: B256) -> Result<bool, RpcError> {
        retry_rounds(|| self.has_no_receipt_round(transaction)).await
    }

    async fn has_no_receipt_round(&self, transaction: B256) -> Result<bool, Errors> {
        const METHOD: &str = "eth_getTransactionReceipt";
        let mut requests = self.request_all::<Option<Receipt>>(METHOD, (transaction,));
        let (mut without_receipt, mut errors) = (0, vec![RpcError::NoAgreement(METHOD)]);
        while let Some(answer) = requests.join_next().await {
            match answer {
                Ok((_, Ok(Some(_)))) => return Ok(false),
                Ok((_, Ok(None))) => without_receipt += 1,
                Ok((_, Err(error))) => errors.push(error),
                Err(_) => {}
            }
        }
        if without_receipt >= self.endpoints.len().min(2) {
            Ok(true)
        } else {
            Err(errors)
        }
    }

    /// The newest block.
    ///
    /// The answer of one endpoint is enough, unless the newest block of another endpoint is far from it or `confirm_with` is 2 or more:
    /// then it is the highest block that enough of the answering endpoints show. A block that is `known` and agreed is not checked again.
    ///
    /// # Errors
    /// When no endpoint answers, or the endpoints contradict each other.
    pub(super) async fn newest_after(
        &self,
        known: impl Fn(&Head) -> bool,
    ) -> Result<Head, RpcError> {
        let newest = self.newest_of_any().await?;
        let enough = if self.one_is_enough() {
            self.endpoints.len() < 2 || self.is_credible(&newest)
        } else {
            known(&newest) && self.agreed_height(newest.number) == newest.number
        };
        if enough {
            return Ok(newest);
        }
        self.newest_of_all().await
    }

    async fn newest_of_all(&self) -> Result<Head, RpcError> {
        const METHOD: &str = "eth_getBlockByNumber";
        let mut requests = self.request_all::<Option<Block>>(METHOD, ("latest", false));
        let mut heads: Vec<(usize, Head)> = Vec::new();
        while let Some(answer) = requests.join_next().await {
            let Ok((index, Ok(Some(block)))) = answer else {
                continue;
            };
            if let (Some(head), Some(endpoint)) = (block.head(), self.endpoints.get(index)) {
                endpoint.record_head(head.reported_head());
                heads.push((index, head));
            }
        }
        heads.sort_by_key(|(_, head)| std::cmp::Reverse(head.number));
        let required = heads.len().min(self.agreement.required);
        for (_, candidate) in &heads {
            if self.one_is_enough() && !self.is_credible(candidate) {
                continue;
            }
            if self.count_having(candidate, &heads).await >= required {
                if required == self.agreement.required {
                    let height = &self.agreement.height;
                    height.fetch_max(candidate.number, Relaxed);
                }
                return Ok(*candidate);
            }
        }
        Err(RpcError::NoAgreement(METHOD))
    }

    /// How many of the endpoints that returned `heads` have the candidate in their chain.
    async fn count_having(&self, candidate: &Head, heads: &[(usize, Head)]) -> usize {
        let mut times = 0;
        for (index, head) in heads {
            let shows = match head.number.cmp(&candidate.number) {
                Ordering::Less => false,
                Ordering::Equal => head.is_same(candidate),
                Ordering::Greater => self.has_block(*index, candidate).await,
            };
            times += usize::from(shows);
            if times >= self.agreement.required {
                break;
            }
        }
        times
    }

    async fn has_block(&self, index: usize, candidate: &Head) -> bool {
        let at = (format!("0x{:x}", candidate.number), false);
        let block: Result<Option<Block>, _> = self.request(index, "eth_getBlockByNumber", at).await;
        let shown = block.ok().flatten().and_then(|block| block.head());
        shown.is_some_and(|shown| shown.is_same(candidate))
    }

    /// Whether a newest block is credible, compared with those that the endpoints have recently reported.
    fn is_credible(&self, head: &Head) -> bool {
        let reported: Vec<_> = self.endpoints.iter().map(Endpoint::reported_head).collect();
        let outliers = outliers(&reported);
        let own = head.reported_head();
        let mut counting = reported
            .iter()
            .zip(outliers)
            .filter(|(_, outlier)| !outlier);
        let mut others = counting.by_ref().filter_map(|(other, _)| other.as_ref());
        // With no other report there is nothing to compare with.
        reported.iter().flatten().next().is_none() || others.any(|other| own.is_near(other))
    }
}

/// The errors of a round in which every endpoint was asked. The last one is reported to the caller.
pub(super) type Errors = Vec<RpcError>;

/// Repeats a round over all endpoints while one of its errors is transient, for at most [`READ_LIMIT`].
pub(super) async fn retry_rounds<T, Round>(round: impl Fn() -> Round) -> Result<T, RpcError>
where
    Round: Future<Output = Result<T, Errors>>,
{
    let (mut pauses, give_up) = (RetryPauses::default(), Instant::now() + READ_LIMIT);
    loop {
        let mut errors = match round().await {
            Ok(answer) => return Ok(answer),
            Err(errors) => errors,
        };
        let pause = errors.iter().find_map(|error| pauses.after(error));
        match pause.filter(|pause| Instant::now() + *pause < give_up) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(errors.pop().unwrap_or(RpcError::Unreachable)),
        }
    }
}

impl Rank {
    /// Whether the endpoint may be read from.
    pub(super) fn is_usable(self) -> bool {
        self != Self::Excluded
    }
}
