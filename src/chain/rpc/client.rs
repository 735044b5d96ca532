//! Every JSON-RPC method that x402d uses, with typed results.
//!
//! A name with `agreed` or `canonical`, and a receipt, is an answer that `confirm_with` endpoints give alike, because any single endpoint
//! may be compromised (`docs/architecture.md`, RPC agreement). Any other answer is that of one endpoint.

use alloy::primitives::{Address, B256, Bytes, U64, U128, U256, address};
use alloy::sol;
use alloy::sol_types::SolCall;
use futures_util::stream::{Stream, StreamExt as _};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::chain::lens::{self, LENS};
use crate::chain::rpc::answers::{
    BlockHash, FullBlock, Head, Log, MinedTransaction, Receipt, Transaction,
};
use crate::chain::rpc::endpoint::Endpoint;
use crate::chain::rpc::error::{ErrorKind, RpcError, RpcResult};
use crate::chain::rpc::pool::{Errors, Rpc, retry_rounds};
use crate::payment::session::Transfer;

const BLOCK_BY_HASH: &str = "eth_getBlockByHash";
const BLOCK_BY_NUMBER: &str = "eth_getBlockByNumber";
const CALL: &str = "eth_call";
const CHAIN_ID: &str = "eth_chainId";
const RECEIPT: &str = "eth_getTransactionReceipt";
const TRANSACTION: &str = "eth_getTransactionByHash";
const TRANSACTION_COUNT: &str = "eth_getTransactionCount";

/// The contracts and topics of an `eth_getLogs` call.
pub(in crate::chain) type LogFilter = (Value, Value);

sol! {
    function getL1Fee(bytes data) external view returns (uint256);
}

/// The OP stack's predeploy for L1 data fees; it has the same address on every such rollup.
const GAS_PRICE_ORACLE: Address = address!("420000000000000000000000000000000000000F");
/// Approximate size of a payment's transaction, in bytes.
const PAYMENT_BYTES: usize = 500;

/// Blocks.
impl Rpc {
    pub(in crate::chain) async fn block_at(&self, number: u64) -> RpcResult<Option<Head>> {
        self.read(BLOCK_BY_NUMBER, (U64::from(number), false)).await
    }

    pub(in crate::chain) async fn block_by_hash(&self, hash: B256) -> RpcResult<Option<Head>> {
        self.read(BLOCK_BY_HASH, (hash, false)).await
    }

    /// A block at a height according to the endpoint with this index.
    pub(in crate::chain) async fn block_of(
        &self,
        index: usize,
        number: u64,
    ) -> RpcResult<Option<Head>> {
        let at = (U64::from(number), false);
        self.request(index, BLOCK_BY_NUMBER, at).await
    }

    /// The newest block according to one endpoint.
    pub(in crate::chain) async fn newest_of_any(&self) -> RpcResult<Head> {
        let newest: Option<Head> = self.read(BLOCK_BY_NUMBER, ("latest", false)).await?;
        newest.ok_or(RpcError::Malformed(BLOCK_BY_NUMBER))
    }

    /// The newest block of each endpoint that returns one.
    pub(in crate::chain) fn newest_of_each(&self) -> impl Stream<Item = (usize, Head)> + Unpin {
        let newest = self.ask_all::<Option<Head>>(BLOCK_BY_NUMBER, ("latest", false));
        newest.filter_map(|(index, head)| {
            std::future::ready(head.ok().flatten().map(|head| (index, head)))
        })
    }

    /// Hash of block 0.
    pub async fn genesis(&self) -> RpcResult<B256> {
        // Some chains have a first block without the other members.
        let genesis: Option<BlockHash> = self.read(BLOCK_BY_NUMBER, (U64::ZERO, false)).await?;
        let genesis = genesis.ok_or(RpcError::Malformed(BLOCK_BY_NUMBER))?;
        Ok(genesis.hash)
    }

    /// The agreed hash of the canonical block at a height; `None` above the head.
    ///
    /// # Errors
    /// When no endpoint answers, or too few agree.
    pub(in crate::chain) async fn canonical(&self, number: u64) -> RpcResult<Option<B256>> {
        retry_rounds(|| self.canonical_round(number)).await
    }

    async fn canonical_round(&self, number: u64) -> Result<Option<B256>, Errors> {
        let same = |one: &Option<Head>, other: &Option<Head>| {
            one.map(|block| block.hash) == other.map(|block| block.hash)
        };
        let at = (U64::from(number), false);
        let block = self.agreed_round(BLOCK_BY_NUMBER, &at, &same).await?;
        // Some gateways answer an unknown height with another block.
        let block = block.filter(|block| block.number == number);
        Ok(block.map(|block| block.hash))
    }

    /// Agreed time of a block; no call is made if it is `head`.
    pub async fn block_time(&self, block: B256, head: &Head) -> RpcResult<OffsetDateTime> {
        if block == head.hash {
            return Ok(head.time);
        }
        let same = |one: &Option<Head>, other: &Option<Head>| {
            one.map(|block| block.time) == other.map(|block| block.time)
        };
        let block = self.agreed(BLOCK_BY_HASH, (block, false), same).await?;
        let block = block.ok_or(RpcError::Malformed(BLOCK_BY_HASH))?;
        Ok(block.time)
    }
}

/// Transactions, receipts and logs.
impl Rpc {
    /// Sends signed bytes to all endpoints at once, the send-only ones included, and collects all replies.
    pub(in crate::chain) async fn send_everywhere(&self, raw: &Bytes) -> Vec<RpcResult<B256>> {
        self.send_to_all("eth_sendRawTransaction", (raw,)).await
    }

    /// A transaction that a node has in its mempool or in a block, and the height of that block.
    pub async fn transfer(&self, transaction: B256) -> RpcResult<Option<(Transfer, Option<u64>)>> {
        let shown: Option<Transaction> = self.read(TRANSACTION, (transaction,)).await?;
        let shown = of_hash(shown, transaction)?;
        let with_block = |shown: Transaction| {
            let block = shown.block_number.map(|number| number.to());
            (shown.into(), block)
        };
        Ok(shown.map(with_block))
    }

    /// A transaction on whose content and block height enough endpoints agree. Whether the block is canonical is not checked.
    pub(in crate::chain) async fn agreed_transaction(
        &self,
        transaction: B256,
    ) -> RpcResult<Option<Transfer>> {
        let shown = self.agreed(TRANSACTION, (transaction,), Option::eq).await?;
        Ok(of_hash(shown, transaction)?.map(Transfer::from))
    }

    /// The transactions of the block at a height; none if the endpoint does not have it.
    pub(in crate::chain) async fn transactions_at(
        &self,
        number: u64,
    ) -> RpcResult<Vec<MinedTransaction>> {
        let block: Option<FullBlock> = self
            .read(BLOCK_BY_NUMBER, (U64::from(number), true))
            .await?;
        Ok(block.map_or_else(Vec::new, |block| block.transactions))
    }

    /// All receipts of a block in one call. Fails if the endpoint does not know the block.
    pub async fn block_receipts(&self, block: B256) -> RpcResult<Vec<Receipt>> {
        let receipts: Option<Vec<Receipt>> = self.read("eth_getBlockReceipts", (block,)).await?;
        receipts.ok_or(RpcError::Malformed("eth_getBlockReceipts"))
    }

    /// The receipt of one transaction; `None` while it is in no canonical block.
    ///
    /// Some nodes return receipts of blocks that are only announced (a preconfirmation) or orphaned, so the block of the receipt is
    /// compared with the canonical one at its height.
    ///
    /// # Errors
    /// When no endpoint answers, or the endpoints do not agree on the receipt or the canonical block.
    pub async fn receipt(&self, transaction: B256) -> RpcResult<Option<Receipt>> {
        let same = |one: &Option<Receipt>, other: &Option<Receipt>| match (one, other) {
            (Some(one), Some(other)) => one.is_same(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let receipt: Option<Receipt> = self.agreed(RECEIPT, (transaction,), same).await?;
        let Some(receipt) = receipt else {
            return Ok(None);
        };
        if receipt.transaction_hash != transaction {
            return Err(RpcError::Malformed(RECEIPT));
        }
        // An endpoint that has the receipt but not the block is behind: it is asked again.
        let behind = || vec![RpcError::Disagreement(BLOCK_BY_NUMBER)];
        let height = receipt.block_number.to();
        let block = retry_rounds(async || self.canonical_round(height).await?.ok_or_else(behind));
        Ok((block.await? == receipt.block_hash).then_some(receipt))
    }

    /// Checks a receipt that one endpoint has returned: the same receipt, once `confirm_with` endpoints return it.
    pub async fn agreed_receipt(&self, receipt: Receipt) -> RpcResult<Option<Receipt>> {
        if self.one_is_enough() {
            return Ok(Some(receipt));
        }
        self.receipt(receipt.transaction_hash).await
    }

    /// What each endpoint says of the receipt of a transaction.
    pub(in crate::chain) fn receipt_of_each(
        &self,
        transaction: B256,
    ) -> impl Stream<Item = RpcResult<Option<Receipt>>> + Unpin {
        self.ask_all(RECEIPT, (transaction,))
            .map(|(_, receipt)| receipt)
    }

    pub(in crate::chain) async fn logs_between(
        &self,
        (address, topics): &LogFilter,
        from: u64,
        to: u64,
    ) -> RpcResult<Vec<Log>> {
        let (from, to) = (U64::from(from), U64::from(to));
        let filter =
            json!({"address": address, "topics": topics, "fromBlock": from, "toBlock": to});
        let logs: Option<Vec<Log>> = self.read("eth_getLogs", (filter,)).await?;
        Ok(logs.unwrap_or_default())
    }

    /// Logs of as many blocks as a provider accepts, up to height `last` and not below `first`; and the height of the first of them.
    pub(in crate::chain) async fn logs_up_to(
        &self,
        filter: &LogFilter,
        first: u64,
        last: u64,
    ) -> RpcResult<(Vec<Log>, u64)> {
        loop {
            let blocks = self.log_range.blocks();
            let from = (last + 1).saturating_sub(blocks).max(first);
            match self.logs_between(filter, from, last).await {
                Ok(logs) => {
                    self.log_range.record_accepted();
                    return Ok((logs, from));
                }
                Err(error) if error.kind() == ErrorKind::RangeTooWide && last > from => {
                    self.log_range.shrink(last - from + 1);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn of_hash(shown: Option<Transaction>, hash: B256) -> RpcResult<Option<Transaction>> {
    match shown {
        Some(shown) if shown.hash != hash => Err(RpcError::Malformed(TRANSACTION)),
        shown => Ok(shown),
    }
}

/// Accounts and prices.
impl Rpc {
    /// The account nonce of `signer` at `tag` (`latest` or `pending`).
    pub async fn transaction_count(&self, signer: Address, tag: &'static str) -> RpcResult<u64> {
        let count: U64 = self.read(TRANSACTION_COUNT, (signer, tag)).await?;
        Ok(count.to())
    }

    /// What each endpoint says of an account nonce at a block (a tag or a height).
    pub(in crate::chain) fn transaction_count_of_each(
        &self,
        account: Address,
        block: &str,
    ) -> impl Stream<Item = RpcResult<u64>> + Unpin {
        self.ask_all::<U64>(TRANSACTION_COUNT, (account, block.to_owned()))
            .map(|(_, count)| count.map(|count| count.to()))
    }

    /// Native balance in wei.
    pub async fn balance(&self, account: Address) -> RpcResult<U256> {
        self.read("eth_getBalance", (account, "latest")).await
    }

    /// Code at an address; empty for an account without code.
    pub async fn code(&self, account: Address) -> RpcResult<Bytes> {
        self.read("eth_getCode", (account, "latest")).await
    }

    /// Whether `account` has code.
    pub async fn has_code(&self, account: Address) -> RpcResult<bool> {
        Ok(!self.code(account).await?.is_empty())
    }

    /// The priority fee that the node suggests, in wei per gas. Fails on chains without priority fees.
    pub async fn suggested_priority_fee(&self) -> RpcResult<u128> {
        let tip: U128 = self.read("eth_maxPriorityFeePerGas", ()).await?;
        Ok(tip.to())
    }

    /// The node's gas price in wei, for chains without a base fee.
    pub async fn gas_price(&self) -> RpcResult<u128> {
        let price: U128 = self.read("eth_gasPrice", ()).await?;
        Ok(price.to())
    }

    /// The least L1 data fee of a payment's transaction on an OP stack rollup, in wei; `None` on other chains.
    pub async fn data_fee(&self) -> RpcResult<Option<u128>> {
        let data = vec![0xff; PAYMENT_BYTES].into();
        let fee = self.optional_view(GAS_PRICE_ORACLE, getL1FeeCall { data });
        Ok(fee.await?.and_then(|fee| u128::try_from(fee).ok()))
    }
}

/// Calls of contracts that change nothing.
impl Rpc {
    /// The result of a view at the newest block. A revert is an error, see [`RpcError::is_revert`].
    pub(in crate::chain) async fn view<C: SolCall>(
        &self,
        of: Address,
        call: C,
    ) -> RpcResult<C::Return> {
        let name = C::SIGNATURE.split('(').next().unwrap_or(CALL);
        let answer = self.view_bytes(of, &call).await?;
        C::abi_decode_returns(&answer).map_err(|_| RpcError::Malformed(name))
    }

    /// The same; `None` when the contract reverts or returns something that cannot be decoded.
    pub(in crate::chain) async fn optional_view<C: SolCall>(
        &self,
        of: Address,
        call: C,
    ) -> RpcResult<Option<C::Return>> {
        match self.view_bytes(of, &call).await {
            Ok(answer) => Ok(C::abi_decode_returns(&answer).ok()),
            Err(error) if error.is_revert() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn view_bytes(&self, of: Address, call: &impl SolCall) -> RpcResult<Bytes> {
        let call = json!({"to": of, "data": Bytes::from(call.abi_encode())});
        self.read(CALL, (call, "latest")).await
    }

    /// The agreed result of a call at the block at height `block`.
    pub(in crate::chain) async fn agreed_call(
        &self,
        (to, data): &(Address, Bytes),
        block: u64,
    ) -> RpcResult<Bytes> {
        let call = (json!({"to": to, "data": data}), U64::from(block));
        self.agreed(CALL, call, Bytes::eq).await
    }

    /// Whether a call succeeds on the newest state. Too little gas is a failure of the call.
    pub(in crate::chain) async fn succeeds(&self, call: Value) -> RpcResult<bool> {
        match self.read::<Bytes>(CALL, (call, "latest")).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_final() => Ok(false),
            // The texts of nodes for too little gas differ.
            Err(RpcError::Refused { message, .. }) if message.to_lowercase().contains("gas") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The result of a call with state overrides, on the newest state or, with a `time`, in a future block at that time (block overrides).
    /// `decode` recognises the answer of an endpoint that applied the overrides: some ignore them and return something else. A call with a
    /// gas price must override its sender's balance; an endpoint that finds the balance too small ignored that.
    ///
    /// # Errors
    /// [`RpcError::NoOverrides`] when no endpoint supports them.
    pub(in crate::chain) async fn simulate<T>(
        &self,
        call: Value,
        overrides: Map<String, Value>,
        time: Option<u64>,
        decode: impl Fn(&Bytes) -> Option<T>,
    ) -> RpcResult<T> {
        let mut parameters = vec![call, json!("latest"), Value::Object(overrides)];
        parameters.extend(time.map(|time| json!({"time": U64::from(time)})));
        let check = |index: usize, answer: RpcResult<Bytes>| {
            let answer = answer.map(|answer| decode(&answer));
            let unsupported = match &answer {
                Ok(decoded) => decoded.is_none(),
                Err(error) => {
                    [ErrorKind::Unsupported, ErrorKind::InsufficientFunds].contains(&error.kind())
                }
            };
            if !unsupported {
                return answer?.ok_or(RpcError::NoOverrides);
            }
            // Fewer nodes support block overrides, so that a call with them fails does not mean that the endpoint lacks state overrides.
            if time.is_none() {
                self.record_overrides(index, false);
            }
            Err(RpcError::NoOverrides)
        };
        let round = || self.read_round(self.ranked_with_overrides(), CALL, &parameters, &check);
        retry_rounds(round).await
    }
}

/// What an endpoint supports. These calls take no turn and do not count for its health.
impl Endpoint {
    pub(in crate::chain) async fn chain_id(&self) -> RpcResult<u64> {
        let id: U64 = self.call(CHAIN_ID, ()).await?;
        Ok(id.to())
    }

    pub(in crate::chain) async fn newest(&self) -> RpcResult<Head> {
        self.call(BLOCK_BY_NUMBER, ("latest", false)).await
    }

    /// Whether it supports state overrides.
    ///
    /// # Errors
    /// When it does not answer.
    pub(in crate::chain) async fn probe_overrides(&self) -> RpcResult<bool> {
        let call = json!({"to": LENS, "data": lens::code_sizes_call(vec![LENS])});
        let answer: Result<Bytes, _> = self.call(CALL, (call, "latest", lens::overrides())).await;
        match answer {
            Ok(answer) => {
                Ok(lens::decode_code_sizes(&answer).is_some_and(|sizes| !sizes.is_empty()))
            }
            Err(error) if error.kind() == ErrorKind::Unsupported || error.is_revert() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
