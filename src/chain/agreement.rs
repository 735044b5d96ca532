//! What several endpoints of a network say alike. Money, confirmations, failures for good and account nonces are concluded from nothing less:
//! any one of the endpoints may be somebody else's tool.

use std::cmp::Ordering;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use alloy::primitives::{Address, B256, U64};
use alloy::rpc::json_rpc::{RpcRecv, RpcSend};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chain::belief::doubted;
use crate::chain::endpoint::{Endpoint, Rank};
use crate::chain::heads::Block;
use crate::chain::rpc::READ_LIMIT;
use crate::chain::trouble::{Pauses, Trouble};
use crate::chain::{Head, Receipt, Rpc, RpcError};

/// How many endpoints must say the same, and how far they have.
#[derive(Debug)]
pub(super) struct Agreement {
    /// Endpoints that must show the same block and receipt.
    pub(super) wanted: usize,
    /// The highest block that so many have shown.
    height: AtomicU64,
}

impl Agreement {
    pub(super) const fn of(wanted: usize) -> Self {
        Self {
            wanted,
            height: AtomicU64::new(0),
        }
    }
}

impl Rpc {
    /// Whether one endpoint's word is enough.
    pub(super) fn believes_one(&self) -> bool {
        self.agreement.wanted < 2
    }

    /// A head as far as confirmations count from it: no higher than the endpoints have shown alike.
    pub fn confirmed_height(&self, height: u64) -> u64 {
        if self.believes_one() {
            return height;
        }
        height.min(self.agreement.height.load(Relaxed))
    }

    /// Asks every endpoint that may be read from; the answers come as they are given.
    pub(super) fn ask_all<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend + 'static,
    ) -> JoinSet<(usize, Result<R, RpcError>)> {
        let mut asked = JoinSet::new();
        for index in self.order() {
            let (rpc, parameters) = (self.clone(), parameters.clone());
            asked.spawn(async move { (index, rpc.ask(index, method, parameters).await) });
        }
        asked
    }

    /// What `confirm_with` endpoints answer alike. What a moment may change (a limit on calls, a node that is a block behind, a broken
    /// connection) is asked again.
    ///
    /// # Errors
    /// [`RpcError::Unconfirmed`] when too few answer, [`RpcError::Disagreement`] when they do not say the same; the last endpoint's error
    /// when none answers.
    pub(super) async fn agreed<R: RpcRecv + Clone>(
        &self,
        method: &'static str,
        parameters: impl RpcSend + 'static,
        alike: impl Fn(&R, &R) -> bool,
    ) -> Result<R, RpcError> {
        if self.believes_one() {
            return self.read(method, parameters).await;
        }
        let round = || self.agreed_in_a_round(method, parameters.clone(), &alike);
        in_rounds(round).await
    }

    async fn agreed_in_a_round<R: RpcRecv + Clone>(
        &self,
        method: &'static str,
        parameters: impl RpcSend + 'static,
        alike: &impl Fn(&R, &R) -> bool,
    ) -> Result<R, Errors> {
        let mut asked = self.ask_all::<R>(method, parameters);
        let mut said: Vec<(R, usize)> = Vec::new();
        let mut errors = Errors::new();
        while let Some(answer) = asked.join_next().await {
            let answer = match answer {
                Ok((_, Ok(answer))) => answer,
                Ok((_, Err(error))) => {
                    errors.push(error);
                    continue;
                }
                Err(_) => continue,
            };
            let known = said.iter_mut().find(|(known, _)| alike(known, &answer));
            let times = if let Some((_, times)) = known {
                *times += 1;
                *times
            } else {
                said.push((answer.clone(), 1));
                1
            };
            if times >= self.agreement.wanted {
                return Ok(answer);
            }
        }
        match said.as_slice() {
            [] => {}
            [_] => errors.push(RpcError::Unconfirmed(method)),
            [_, _, ..] => errors.push(RpcError::Disagreement(method)),
        }
        Err(errors)
    }

    /// A receipt that a block's receipts have shown, once `confirm_with` endpoints show it.
    ///
    /// # Errors
    /// When they do not, or do not answer.
    pub async fn confirmed(&self, receipt: Receipt) -> Result<Option<Receipt>, RpcError> {
        if self.believes_one() {
            return Ok(Some(receipt));
        }
        self.receipt(receipt.transaction_hash).await
    }

    /// The account nonce that an account has reached for sure, as of `block` (a tag or a height): by the word of two endpoints, where there are two.
    /// A single one could make us leave nonces out, or give transactions up that may still be mined.
    ///
    /// # Errors
    /// [`RpcError::Unconfirmed`] when only one of several answers; its error when none does.
    pub async fn reached_nonce(&self, account: Address, block: String) -> Result<u64, RpcError> {
        in_rounds(|| self.reached_in_a_round(account, block.clone())).await
    }

    async fn reached_in_a_round(&self, account: Address, block: String) -> Result<u64, Errors> {
        const METHOD: &str = "eth_getTransactionCount";
        let mut asked = self.ask_all::<U64>(METHOD, (account, block));
        let (mut counts, mut errors) = (Vec::new(), Errors::new());
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((_, Ok(count))) => counts.push(count.to::<u64>()),
                Ok((_, Err(error))) => errors.push(error),
                Err(_) => {}
            }
        }
        counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        let witnesses = self.endpoints.len().min(2);
        if let Some(count) = counts.get(witnesses - 1) {
            return Ok(*count);
        }
        if let Some(lacking) = errors
            .iter()
            .position(|error| error.trouble() == Trouble::MissingState)
        {
            // It keeps no state that old: its word is missing for good, which is what the caller has to know.
            let lasting = errors.swap_remove(lacking);
            errors.push(lasting);
        } else if !counts.is_empty() {
            errors.push(RpcError::Unconfirmed(METHOD));
        }
        Err(errors)
    }

    /// Whether none of `transactions` can ever be mined, because their account nonce was used by another one as of the block at height `height`:
    /// two endpoints say so of the nonce (one, where there is one only), as many say that they have no receipt, and nobody shows one. Nodes show
    /// receipts later than nonces: ask again after a while before anything is concluded.
    ///
    /// # Errors
    /// When too few endpoints answer.
    pub async fn is_nonce_lost(
        &self,
        account: Address,
        nonce: u64,
        transactions: &[B256],
        height: u64,
    ) -> Result<bool, RpcError> {
        let height = self.confirmed_height(height);
        if self.reached_nonce(account, format!("0x{height:x}")).await? <= nonce {
            return Ok(false);
        }
        for transaction in transactions {
            if !self.has_no_receipt(*transaction).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two endpoints (one, where there is one only) have no receipt of a transaction, and nobody has one.
    async fn has_no_receipt(&self, transaction: B256) -> Result<bool, RpcError> {
        in_rounds(|| self.has_none_in_a_round(transaction)).await
    }

    async fn has_none_in_a_round(&self, transaction: B256) -> Result<bool, Errors> {
        const METHOD: &str = "eth_getTransactionReceipt";
        let mut asked = self.ask_all::<Option<Receipt>>(METHOD, (transaction,));
        let (mut without, mut errors) = (0, vec![RpcError::Unconfirmed(METHOD)]);
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((_, Ok(Some(_)))) => return Ok(false),
                Ok((_, Ok(None))) => without += 1,
                Ok((_, Err(error))) => errors.push(error),
                Err(_) => {}
            }
        }
        if without >= self.endpoints.len().min(2) {
            Ok(true)
        } else {
            Err(errors)
        }
    }

    /// The newest block. Of one endpoint, unless another one's newest is far from it, or `confirm_with` have to show it: then the highest that
    /// enough of those who answer show. A block that is `known` is no news, and is not asked about again.
    ///
    /// # Errors
    /// When no endpoint answers, or they contradict each other.
    pub(super) async fn newest_after(
        &self,
        known: impl Fn(&Head) -> bool,
    ) -> Result<Head, RpcError> {
        let newest = self.newest_of_one().await?;
        let enough = if self.believes_one() {
            self.endpoints.len() < 2 || self.is_believed(&newest)
        } else {
            known(&newest) && self.confirmed_height(newest.number) == newest.number
        };
        if enough {
            return Ok(newest);
        }
        self.newest_of_all().await
    }

    async fn newest_of_all(&self) -> Result<Head, RpcError> {
        const METHOD: &str = "eth_getBlockByNumber";
        let mut asked = self.ask_all::<Option<Block>>(METHOD, ("latest", false));
        let mut heads: Vec<(usize, Head)> = Vec::new();
        while let Some(answer) = asked.join_next().await {
            let Ok((index, Ok(Some(block)))) = answer else {
                continue;
            };
            if let (Some(head), Some(endpoint)) = (block.head(), self.endpoints.get(index)) {
                endpoint.is_at(head.claim());
                heads.push((index, head));
            }
        }
        heads.sort_by_key(|(_, head)| std::cmp::Reverse(head.number));
        let wanted = heads.len().min(self.agreement.wanted);
        for (_, candidate) in &heads {
            if self.believes_one() && !self.is_believed(candidate) {
                continue;
            }
            if self.shown_by(candidate, &heads).await >= wanted {
                if wanted == self.agreement.wanted {
                    let height = &self.agreement.height;
                    height.fetch_max(candidate.number, Relaxed);
                }
                return Ok(*candidate);
            }
        }
        Err(RpcError::Unconfirmed(METHOD))
    }

    /// How many of the endpoints that show `heads` have the candidate in their chain.
    async fn shown_by(&self, candidate: &Head, heads: &[(usize, Head)]) -> usize {
        let mut times = 0;
        for (index, head) in heads {
            let shows = match head.number.cmp(&candidate.number) {
                Ordering::Less => false,
                Ordering::Equal => head.is_same(candidate),
                Ordering::Greater => self.has_block(*index, candidate).await,
            };
            times += usize::from(shows);
            if times >= self.agreement.wanted {
                break;
            }
        }
        times
    }

    async fn has_block(&self, index: usize, wanted: &Head) -> bool {
        let at = (format!("0x{:x}", wanted.number), false);
        let block: Result<Option<Block>, _> = self.ask(index, "eth_getBlockByNumber", at).await;
        let shown = block.ok().flatten().and_then(|block| block.head());
        shown.is_some_and(|shown| shown.is_same(wanted))
    }

    /// Whether a newest block counts beside those that the other endpoints have lately shown.
    fn is_believed(&self, head: &Head) -> bool {
        let claims: Vec<_> = self.endpoints.iter().map(Endpoint::claim).collect();
        let doubted = doubted(&claims);
        let claim = head.claim();
        let mut counting = claims.iter().zip(doubted).filter(|(_, doubted)| !doubted);
        let mut others = counting.by_ref().filter_map(|(claim, _)| claim.as_ref());
        // Nobody else has shown anything: it counts.
        claims.iter().flatten().next().is_none() || others.any(|other| claim.is_near(other))
    }
}

/// Why a round in which every endpoint was asked gave no answer; the last one is told.
pub(super) type Errors = Vec<RpcError>;

/// Asks every endpoint, and every endpoint again for as long as a moment may change what one of them said.
pub(super) async fn in_rounds<T, Round>(round: impl Fn() -> Round) -> Result<T, RpcError>
where
    Round: Future<Output = Result<T, Errors>>,
{
    let (mut pauses, give_up) = (Pauses::default(), Instant::now() + READ_LIMIT);
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
    /// Whether it may be read from.
    pub(super) fn is_usable(self) -> bool {
        self != Self::Barred
    }
}
