//! The local chain, and the calls that tests make to it.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U64, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::sol;
use alloy::sol_types::SolCall;
use reqwest::Client;
use serde_json::{Value, json};
use x402d::embedded::{DevAccount, LocalChain, LocalChainOptions, SMART_WALLET_FACTORY, TEST_USDC};
use x402d::protocol::Eip2612Info;
use x402d::protocol::permit2::PERMIT2;

use super::{Purchase, eventually};

sol! {
    function balanceOf(address account) returns (uint256);
    function mint(address to, uint256 amount);
    function setMode(uint8 mode);
    function pause(bool on);
    function blacklist(address account, bool on);
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes signature);
    function DOMAIN_SEPARATOR() returns (bytes32);
    function addressOf(address owner, bytes32 salt) returns (address);
    function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore,
        bytes32 nonce, bytes signature);
    function createWallet(address owner, bytes32 salt) returns (address);
    function approve(address spender, uint256 value);
    function permit(address owner, address spender, uint256 value, uint256 deadline, uint8 v, bytes32 r, bytes32 s);
    function invalidateUnorderedNonces(uint256 word, uint256 mask);
}

/// A running chain. The first development account mints and sends the test's own transactions; the others may be signers.
pub(crate) struct Chain {
    inner: LocalChain,
    http: Client,
}

impl Chain {
    /// A chain that mines a block for each transaction.
    pub(crate) async fn start() -> Self {
        Self::with_block_time(None).await
    }

    pub(crate) async fn with_block_time(block_time_s: Option<u64>) -> Self {
        let options = LocalChainOptions {
            port: None,
            block_time_s,
        };
        Self {
            inner: LocalChain::start(options).await.unwrap(),
            http: Client::builder().no_proxy().build().unwrap(),
        }
    }

    pub(crate) fn url(&self) -> &str {
        self.inner.rpc_url()
    }

    /// The accounts that pay for gas in the tests.
    pub(crate) fn signers(count: usize) -> &'static [DevAccount] {
        &LocalChain::funded_keys()[1..=count]
    }

    /// Any RPC method; fails the test on an error answer.
    pub(crate) async fn call(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = self.http.post(self.url()).json(&body).send().await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        assert!(
            answer.get("error").is_none(),
            "{method}: {}",
            answer["error"]
        );
        answer["result"].take()
    }

    /// Timestamp of the block that holds a transaction.
    pub(crate) async fn block_time_of(&self, transaction: &str) -> u64 {
        let receipt = self.receipt(transaction).await;
        let params = json!([receipt["blockHash"], false]);
        let block = self.call("eth_getBlockByHash", params).await;
        let time = block["timestamp"].as_str().unwrap();
        u64::from_str_radix(time.trim_start_matches("0x"), 16).unwrap()
    }

    /// Mints test USDC.
    pub(crate) async fn fund(&self, account: Address, amount: u64) {
        self.inner.mint(account, U256::from(amount)).await.unwrap();
    }

    pub(crate) async fn usdc(&self, account: Address) -> U256 {
        self.balance(TEST_USDC, account).await
    }

    pub(crate) async fn balance(&self, token: Address, account: Address) -> U256 {
        self.read(token, balanceOfCall { account }).await
    }

    /// Calls a contract read-only.
    pub(crate) async fn read<C: SolCall>(&self, to: Address, call: C) -> C::Return {
        let call = json!([{"to": to, "data": Bytes::from(call.abi_encode())}, "latest"]);
        let output: Bytes = serde_json::from_value(self.call("eth_call", call).await).unwrap();
        C::abi_decode_returns(&output).unwrap()
    }

    /// Sends a call and waits for its block, which must be mined automatically. Until then other transactions could come first.
    pub(crate) async fn send<C: SolCall>(&self, to: Address, call: C) {
        let from = LocalChain::funded_keys()[0].address;
        let data = Bytes::from(call.abi_encode());
        self.mined(json!({"from": from, "to": to, "data": data}))
            .await;
    }

    /// Approves Permit2 for `amount`, by a transaction of the account itself.
    pub(crate) async fn approve(&self, token: Address, owner: Address, amount: U256) {
        let call = approveCall {
            spender: PERMIT2,
            value: amount,
        };
        self.send_as(owner, token, call).await;
    }

    /// Sends a call with higher fees than the service's, and waits for its block unless mining is manual.
    pub(crate) async fn call_with_high_fee(&self, call: (Address, Bytes)) {
        self.call_with_high_fee_as(LocalChain::funded_keys()[0].address, call)
            .await;
    }

    /// The same from any account.
    pub(crate) async fn call_with_high_fee_as(&self, from: Address, (to, data): (Address, Bytes)) {
        self.call("anvil_impersonateAccount", json!([from])).await;
        let mut transaction = test_call(to, &data);
        transaction["from"] = json!(from);
        transaction["gas"] = json!("0x7a120");
        for fee in ["maxFeePerGas", "maxPriorityFeePerGas"] {
            transaction[fee] = json!("0x12a05f200");
        }
        let hash = self.call("eth_sendTransaction", json!([transaction])).await;
        let mines = self.call("anvil_getAutomine", json!([])).await == json!(true);
        eventually("a block", Duration::from_secs(20), async || {
            let hash = hash.as_str().unwrap();
            (!mines || !self.receipt(hash).await.is_null()).then_some(())
        })
        .await;
    }

    /// Submits an EIP-2612 permit, as any account may.
    pub(crate) async fn submit_permit(&self, permit: &Eip2612Info) {
        let (scalars, v) = permit.signature.split_at(64);
        let call = permitCall {
            owner: permit.from,
            spender: permit.spender,
            value: permit.amount.atomic(),
            deadline: permit.deadline.atomic(),
            v: v[0],
            r: B256::from_slice(&scalars[..32]),
            s: B256::from_slice(&scalars[32..]),
        };
        self.send(permit.asset, call).await;
    }

    /// Deploys a contract wallet of `owner`.
    pub(crate) async fn wallet_of(&self, owner: Address) -> Address {
        let salt = B256::repeat_byte(0x02);
        self.send(SMART_WALLET_FACTORY, createWalletCall { owner, salt })
            .await;
        self.read(SMART_WALLET_FACTORY, addressOfCall { owner, salt })
            .await
    }

    /// Calls a contract as any account, without its key, and waits for the block.
    pub(crate) async fn send_as<C: SolCall>(&self, from: Address, to: Address, call: C) {
        self.call("anvil_impersonateAccount", json!([from])).await;
        let rich = json!([from, "0xde0b6b3a7640000"]);
        self.call("anvil_setBalance", rich).await;
        let data = Bytes::from(call.abi_encode());
        self.mined(json!({"from": from, "to": to, "data": data}))
            .await;
        self.call("anvil_stopImpersonatingAccount", json!([from]))
            .await;
    }

    /// Sends a transaction and waits for its block.
    async fn mined(&self, transaction: Value) {
        let hash = self.call("eth_sendTransaction", json!([transaction])).await;
        let hash = hash.as_str().unwrap();
        eventually("a block", Duration::from_secs(20), async || {
            (!self.receipt(hash).await.is_null()).then_some(())
        })
        .await;
    }

    /// Submits an authorization to its token, not through the service, as any account may.
    pub(crate) async fn submit(&self, purchase: &Purchase) {
        self.send(purchase.asset, Self::transfer(purchase)).await;
    }

    /// The transaction of [`submit`](Self::submit).
    pub(crate) fn submission(purchase: &Purchase) -> Value {
        let data = Bytes::from(Self::transfer(purchase).abi_encode());
        test_call(purchase.asset, &data)
    }

    fn transfer(purchase: &Purchase) -> transferWithAuthorizationCall {
        let signed = purchase.authorization;
        transferWithAuthorizationCall {
            from: signed.from,
            to: signed.to,
            value: signed.value.atomic(),
            validAfter: signed.valid_after.atomic(),
            validBefore: signed.valid_before.atomic(),
            nonce: signed.nonce,
            signature: purchase.own_signature(),
        }
    }

    /// Cancels an authorization with its payer's signature.
    pub(crate) async fn cancel(&self, purchase: &Purchase) {
        self.mined(self.cancellation(purchase).await).await;
    }

    /// The transaction of [`cancel`](Self::cancel).
    pub(crate) async fn cancellation(&self, purchase: &Purchase) -> Value {
        let separator = self.read(purchase.asset, DOMAIN_SEPARATORCall {}).await;
        let kind = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        let (authorizer, nonce) = (purchase.authorization.from, purchase.authorization.nonce);
        let content = keccak256([kind, authorizer.into_word(), nonce].concat());
        let digest = keccak256([b"\x19\x01", &separator[..], &content[..]].concat());
        let signature = purchase.signer.sign_hash_sync(&digest).unwrap();
        let call = cancelAuthorizationCall {
            authorizer,
            nonce,
            signature: signature.as_bytes().into(),
        };
        test_call(purchase.asset, &call.abi_encode().into())
    }

    /// Drops a pending transaction from the pool.
    pub(crate) async fn drop_transaction(&self, hash: B256) {
        self.call("anvil_dropTransaction", json!([hash])).await;
    }

    /// Sets the base fee of the next block; empty blocks keep it nearly.
    pub(crate) async fn next_base_fee(&self, gwei: u64) {
        let fee = json!([U64::from(gwei * 1_000_000_000)]);
        self.call("anvil_setNextBlockBaseFeePerGas", fee).await;
        self.mine(1).await;
    }

    /// The `Transfer` logs of `token` to `payee`, oldest first.
    pub(crate) async fn transfers_to(&self, token: Address, payee: Address) -> Vec<Value> {
        let topic = keccak256("Transfer(address,address,uint256)");
        let filter = json!([{"fromBlock": "0x0", "address": token, "topics": [topic, null, payee.into_word()]}]);
        let logs = self.call("eth_getLogs", filter).await;
        logs.as_array().cloned().unwrap()
    }

    /// Mined transactions of an account.
    pub(crate) async fn transaction_count(&self, account: Address) -> u64 {
        let count = self
            .call("eth_getTransactionCount", json!([account, "latest"]))
            .await;
        let count: U64 = serde_json::from_value(count).unwrap();
        count.to()
    }

    /// Transactions of an account that are mined or pending without a gap.
    pub(crate) async fn pending_count(&self, account: Address) -> u64 {
        let count = self
            .call("eth_getTransactionCount", json!([account, "pending"]))
            .await;
        let count: U64 = serde_json::from_value(count).unwrap();
        count.to()
    }

    pub(crate) async fn receipt(&self, transaction: &str) -> Value {
        self.call("eth_getTransactionReceipt", json!([transaction]))
            .await
    }

    /// Whether each transaction gets a block at once; otherwise [`mine`](Self::mine) makes them.
    pub(crate) async fn automine(&self, on: bool) {
        self.call("evm_setAutomine", json!([on])).await;
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        self.call("anvil_mine", json!([U64::from(blocks)])).await;
    }

    /// Replaces the newest blocks by empty ones; their transactions are dropped, not pending.
    pub(crate) async fn reorg(&self, depth: u64) {
        self.reorg_with(depth, &[]).await;
    }

    /// The same, but the first new block holds these transactions: raw, or as `eth_sendTransaction` takes them.
    ///
    /// Automatic mining is off meanwhile: anvil removes blocks while it makes another, and then lacks the state of some.
    pub(crate) async fn reorg_with(&self, depth: u64, transactions: &[Value]) {
        let pairs: Vec<Value> = transactions.iter().map(|one| json!([one, 0])).collect();
        let mines = self.call("anvil_getAutomine", json!([])).await == json!(true);
        if mines {
            self.automine(false).await;
            self.wait_for_last_blocks().await;
        }
        self.call("anvil_reorg", json!([depth, pairs])).await;
        if mines {
            self.automine(true).await;
        }
    }

    /// Waits for the blocks that were under way when automatic mining was turned off.
    async fn wait_for_last_blocks(&self) {
        eventually("no new block", Duration::from_secs(20), async || {
            let before = self.call("eth_blockNumber", json!([])).await;
            // The pending block is built on the state that a block under way leaves behind.
            self.call("eth_getBlockByNumber", json!(["pending", false]))
                .await;
            let after = self.call("eth_blockNumber", json!([])).await;
            (before == after).then_some(())
        })
        .await;
    }

    /// Sets the code of an address to a contract of `contracts/artifacts`.
    pub(crate) async fn place(&self, contract: &str, at: Address) {
        let path = format!(
            "{}/contracts/artifacts/{contract}.runtime.hex",
            env!("CARGO_MANIFEST_DIR")
        );
        let code = std::fs::read_to_string(path).unwrap();
        self.call("anvil_setCode", json!([at, code.trim()])).await;
    }

    pub(crate) async fn set_storage(&self, at: Address, slot: u64, value: B256) {
        let slot = B256::from(U256::from(slot));
        self.call("anvil_setStorageAt", json!([at, slot, value]))
            .await;
    }
}

/// A call from the test's own account, with enough gas for one that fails.
fn test_call(to: Address, data: &Bytes) -> Value {
    json!({"from": LocalChain::funded_keys()[0].address, "to": to, "data": data, "gas": "0x30d40"})
}
