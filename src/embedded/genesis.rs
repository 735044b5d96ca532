//! The contracts of the local chain: the test USDC and the contracts that x402 uses. `contracts/README.md` says what they are and why they
//! need no constructor.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256, address, b256};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;
use super::json_rpc::{JsonRpc, failed};

/// The chain id of Base Sepolia, so that unmodified SDKs know the network.
pub const CHAIN_ID: u64 = 84_532;

/// The address of USDC on Base Sepolia; on the local chain a test token with the same behaviour.
pub const TEST_USDC: Address = address!("0x036CbD53842c5426634e7929541eC2318f3dCF7e");

/// The factory of contract wallets on the local chain, which `eip6492_factories` may list there.
pub const SMART_WALLET_FACTORY: Address = address!("0x0000000000000000000000000000000000402003");

/// Enough for a block by the block time.
const MINE_LIMIT: Duration = Duration::from_mins(1);
/// Pause between two queries for a receipt.
const RETRY: Duration = Duration::from_millis(20);

/// A development account of the local chain. Its key is published and worth nothing on any other chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevAccount {
    /// The account.
    pub address: Address,
    /// Its private key, in hexadecimal: public, and for the local chain only.
    pub key: &'static str,
}

/// The accounts that anvil gives 10 000 of its native money each, derived from its well-known mnemonic.
pub(super) const DEV_ACCOUNTS: [DevAccount; 10] = [
    DevAccount {
        address: address!("0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"),
        key: "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    },
    DevAccount {
        address: address!("0x70997970c51812dc3a010c7d01b50e0d17dc79c8"),
        key: "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    },
    DevAccount {
        address: address!("0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc"),
        key: "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    },
    DevAccount {
        address: address!("0x90f79bf6eb2c4f870365e785982e1f101e93b906"),
        key: "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    },
    DevAccount {
        address: address!("0x15d34aaf54267db7d7c367839aaf71a00a2c6a65"),
        key: "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    },
    DevAccount {
        address: address!("0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc"),
        key: "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    },
    DevAccount {
        address: address!("0x976ea74026e726554db657fa54763abd0c3a0aa9"),
        key: "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    },
    DevAccount {
        address: address!("0x14dc79964da2c08b23698b3d3cc7ca32193d9955"),
        key: "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
    },
    DevAccount {
        address: address!("0x23618e81e3f5cdf7f54c3d65f7fbc0abf5b21e8f"),
        key: "0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
    },
    DevAccount {
        address: address!("0xa0ee7a142d267c1f36714e4a8f75612f20a79720"),
        key: "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
    },
];

/// The address of the token's code; the token itself is a proxy, as USDC is, so that its gas costs are similar.
const TEST_USDC_CODE: Address = address!("0x0000000000000000000000000000000000402001");
/// Multicall3's address on each chain.
const MULTICALL3: Address = address!("0xcA11bde05977b3631167028862bE2a173976CA11");
/// Permit2's address on each chain.
const PERMIT2: Address = address!("0x000000000022D473030F116dDEE9F6B43aC78BA3");
/// The address of the proxy of `exact` payments by Permit2 on each chain.
const EXACT_PERMIT2_PROXY: Address = address!("0x402085c248EeA27D92E8b30b2C58ed07f9E20001");
/// The address of the proxy of `upto` payments on each chain.
const UPTO_PERMIT2_PROXY: Address = address!("0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");
/// The storage slot in which a proxy keeps the address of its code (ERC-1967).
const IMPLEMENTATION: B256 =
    b256!("0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc");

/// A contract that is written into the chain's state instead of being deployed.
struct Placed {
    address: Address,
    /// Its runtime code in hexadecimal, as the compiler wrote it.
    runtime: &'static str,
    /// Storage that a constructor would have written: slot and value.
    storage: Vec<(B256, B256)>,
}

fn contracts() -> Vec<Placed> {
    let plain = |address, runtime| Placed {
        address,
        runtime,
        storage: Vec::new(),
    };
    vec![
        plain(
            TEST_USDC_CODE,
            include_str!("../../contracts/artifacts/TestUsdc.runtime.hex"),
        ),
        Placed {
            address: TEST_USDC,
            runtime: include_str!("../../contracts/artifacts/TokenProxy.runtime.hex"),
            storage: vec![(IMPLEMENTATION, TEST_USDC_CODE.into_word())],
        },
        plain(
            SMART_WALLET_FACTORY,
            include_str!("../../contracts/artifacts/SmartWalletFactory.runtime.hex"),
        ),
        plain(
            MULTICALL3,
            include_str!("../../contracts/artifacts/Multicall3.runtime.hex"),
        ),
        plain(
            PERMIT2,
            include_str!("../../contracts/artifacts/Permit2.runtime.hex"),
        ),
        plain(
            EXACT_PERMIT2_PROXY,
            include_str!("../../contracts/artifacts/ExactPermit2Proxy.runtime.hex"),
        ),
        plain(
            UPTO_PERMIT2_PROXY,
            include_str!("../../contracts/artifacts/UptoPermit2Proxy.runtime.hex"),
        ),
    ]
}

sol! {
    function mint(address to, uint256 amount);
    function balanceOf(address account) returns (uint256);
    function createWallet(address owner, bytes32 salt) returns (address);
    function addressOf(address owner, bytes32 salt) returns (address);
}

/// Places all contracts on a new chain.
pub(super) async fn place(rpc: &JsonRpc) -> Result<(), EmbeddedError> {
    for contract in contracts() {
        rpc.call(
            "anvil_setCode",
            json!([contract.address, contract.runtime.trim()]),
        )
        .await?;
        for (slot, value) in contract.storage {
            let slot_and_value = json!([contract.address, slot, value]);
            rpc.call("anvil_setStorageAt", slot_and_value).await?;
        }
    }
    Ok(())
}

/// Mints test USDC and waits for the receipt.
pub(super) async fn mint(rpc: &JsonRpc, to: Address, amount: U256) -> Result<(), EmbeddedError> {
    send(rpc, TEST_USDC, mintCall { to, amount }.abi_encode()).await
}

/// Creates the contract wallet of `owner` and returns its address.
pub(super) async fn create_wallet(rpc: &JsonRpc, owner: Address) -> Result<Address, EmbeddedError> {
    let salt = B256::ZERO;
    send(
        rpc,
        SMART_WALLET_FACTORY,
        createWalletCall { owner, salt }.abi_encode(),
    )
    .await?;
    view(rpc, SMART_WALLET_FACTORY, addressOfCall { owner, salt }).await
}

/// The balance of test USDC, in atomic units.
pub(super) async fn balance(rpc: &JsonRpc, account: Address) -> Result<U256, EmbeddedError> {
    view(rpc, TEST_USDC, balanceOfCall { account }).await
}

async fn view<C: SolCall>(rpc: &JsonRpc, to: Address, call: C) -> Result<C::Return, EmbeddedError> {
    let data = alloy::hex::encode_prefixed(call.abi_encode());
    let answer = rpc
        .text("eth_call", json!([{"to": to, "data": data}, "latest"]))
        .await?;
    let bytes = alloy::hex::decode(&answer).map_err(|problem| failed("eth_call", &problem))?;
    C::abi_decode_returns(&bytes).map_err(|problem| failed("eth_call", &problem))
}

/// Sends a call from a development account, which the chain signs for, and waits for the receipt.
async fn send(rpc: &JsonRpc, to: Address, data: Vec<u8>) -> Result<(), EmbeddedError> {
    let [sender, ..] = DEV_ACCOUNTS;
    let data = alloy::hex::encode_prefixed(data);
    let transaction = json!([{"from": sender.address, "to": to, "data": data}]);
    let hash = rpc.text("eth_sendTransaction", transaction).await?;
    let receipt = wait_for_receipt(rpc, &hash).await?;
    if receipt.get("status").and_then(Value::as_str) == Some("0x1") {
        return Ok(());
    }
    Err(failed(
        "eth_sendTransaction",
        &"the transaction was reverted",
    ))
}

async fn wait_for_receipt(rpc: &JsonRpc, hash: &str) -> Result<Value, EmbeddedError> {
    let deadline = Instant::now() + MINE_LIMIT;
    while Instant::now() < deadline {
        let receipt = rpc.call("eth_getTransactionReceipt", json!([hash])).await?;
        if !receipt.is_null() {
            return Ok(receipt);
        }
        sleep(RETRY).await;
    }
    Err(EmbeddedError::Late {
        what: "a block with a transaction".to_owned(),
        limit: MINE_LIMIT,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::{LocalChain, LocalChainOptions};

    sol! {
        function name() returns (string);
        function getChainId() returns (uint256);
    }

    #[tokio::test]
    async fn usdc_is_at_the_known_address_and_mintable() {
        let chain = LocalChain::start(LocalChainOptions::default())
            .await
            .unwrap();
        let rpc = chain.rpc();
        let payer = Address::repeat_byte(7);
        chain.mint(payer, U256::from(5_000_000)).await.unwrap();
        chain.mint(payer, U256::from(1)).await.unwrap();
        assert_eq!(view(rpc, TEST_USDC, nameCall {}).await.unwrap(), "USDC");
        assert_eq!(balance(rpc, payer).await.unwrap(), U256::from(5_000_001));
        assert_eq!(
            view(rpc, MULTICALL3, getChainIdCall {}).await.unwrap(),
            U256::from(CHAIN_ID)
        );
        chain.stop().await;
    }

    #[tokio::test]
    async fn mint_waits_for_the_block_with_a_block_time() {
        let options = LocalChainOptions {
            port: None,
            block_time_s: Some(1),
        };
        let chain = LocalChain::start(options).await.unwrap();
        let payer = Address::repeat_byte(8);
        chain.mint(payer, U256::from(9)).await.unwrap();
        assert_eq!(balance(chain.rpc(), payer).await.unwrap(), U256::from(9));
        chain.stop().await;
    }
}
