//! Kinds of payers: contract wallets, undeployed wallets, delegated accounts, and forms of plain signatures.

use alloy::primitives::{Address, B256, Bytes, U256, hex};
use serde_json::json;
use x402d::embedded::SMART_WALLET_FACTORY;

use crate::support::{Purchase, Setup, World, addressOfCall, new_account, wrapped};

const PAYEE: Address = Address::repeat_byte(0xca);
const WALLET: Address = Address::repeat_byte(0x3a);
const SALT: B256 = B256::repeat_byte(0x01);
const INVALID_SIGNATURE: &str = "invalid_exact_evm_signature";

#[tokio::test(flavor = "multi_thread")]
async fn contract_wallet_pays() {
    let world = World::new().await;
    let owner = new_account();
    world.chain.place("SmartWallet", WALLET).await;
    let slot = owner.address().into_word();
    world.chain.set_storage(WALLET, 0, slot).await;
    world.chain.fund(WALLET, 1_000).await;
    for purchase in [
        Purchase::new(&owner, PAYEE, 300).paid_by(WALLET),
        Purchase::new(&owner, PAYEE, 200).paid_by(WALLET).v1(),
    ] {
        assert_settles(&world, &purchase).await;
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(500));

    let foreign = Purchase::new(&new_account(), PAYEE, 100).paid_by(WALLET);
    assert_refused(&world, &foreign, INVALID_SIGNATURE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delegated_account_pays_as_its_wallet_decides() {
    let world = World::new().await;
    let (owner, payer) = (new_account(), world.payer().await);
    world.chain.place("SmartWallet", WALLET).await;
    // EIP-7702: a delegated account's code is this prefix and the address whose code it runs.
    let code = Bytes::from([hex!("ef0100").as_slice(), WALLET.as_slice()].concat());
    let params = json!([payer.address(), code]);
    world.chain.call("anvil_setCode", params).await;
    let slot = owner.address().into_word();
    world.chain.set_storage(payer.address(), 0, slot).await;

    let by_the_wallet = Purchase::new(&owner, PAYEE, 10).paid_by(payer.address());
    assert_settles(&world, &by_the_wallet).await;
    let by_the_bare_key = Purchase::new(&payer, PAYEE, 20);
    assert_refused(&world, &by_the_bare_key, INVALID_SIGNATURE).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn wallet_of_unlisted_factory_is_refused_unsimulated() {
    let world = World::new().await;
    let purchase = undeployed(&world).await;
    let before = world.proxy.calls("eth_call");
    assert_refused(&world, &purchase, "eip6492_factory_not_allowed").await;
    assert_eq!(world.proxy.calls("eth_call"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn wallet_of_listed_factory_is_deployed_and_pays() {
    let listed = SMART_WALLET_FACTORY.to_string();
    let setup = Setup::default().with("X402D_EIP6492_FACTORIES", listed);
    let world = setup.build().await;
    let purchase = undeployed(&world).await;
    assert_settles(&world, &purchase).await;
    let wallet = purchase.authorization.from;
    let code = world
        .chain
        .call("eth_getCode", json!([wallet, "latest"]))
        .await;
    assert!(code.as_str().unwrap().len() > 2, "it is deployed");

    // The wallet is deployed now; some clients still wrap its signature.
    let mut again = Purchase::new(&purchase.signer, PAYEE, 50).paid_by(wallet);
    again.signature = Some(wrapped(&again, SALT));
    assert_settles(&world, &again).await;
    let bare = Purchase::new(&purchase.signer, PAYEE, 25).paid_by(wallet);
    assert_settles(&world, &bare).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(175));
    assert_eq!(world.transactions(1).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn v_0_and_1_settle_and_high_s_is_refused() {
    let world = World::new().await;
    let payer = world.payer().await;
    let mut seen = [false; 2];
    while seen != [true; 2] {
        let mut purchase = Purchase::new(&payer, PAYEE, 5);
        let mut signature = purchase.own_signature().to_vec();
        signature[64] -= 27;
        let v = usize::from(signature[64]);
        if std::mem::replace(&mut seen[v], true) {
            continue;
        }
        purchase.signature = Some(signature.into());
        assert_settles(&world, &purchase).await;
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(10));

    let mut malleated = Purchase::new(&payer, PAYEE, 6);
    malleated.signature = Some(with_high_s(&malleated.own_signature()));
    assert_refused(&world, &malleated, INVALID_SIGNATURE).await;
    assert_eq!(world.transactions(1).await, 2);
}

/// A payment of 100 by a funded wallet that its factory has not created yet.
async fn undeployed(world: &World) -> Purchase {
    let owner = new_account();
    let at = addressOfCall {
        owner: owner.address(),
        salt: SALT,
    };
    let wallet = world.chain.read(SMART_WALLET_FACTORY, at).await;
    world.chain.fund(wallet, 1_000).await;
    let mut purchase = Purchase::new(&owner, PAYEE, 100).paid_by(wallet);
    purchase.signature = Some(wrapped(&purchase, SALT));
    purchase
}

/// The mathematically equivalent signature with a high `s`, which tokens reject.
fn with_high_s(signature: &Bytes) -> Bytes {
    let order = U256::from_be_bytes(hex!(
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
    ));
    let s = order - U256::from_be_slice(&signature[32..64]);
    let v = if signature[64] == 27 { 28 } else { 27 };
    let mut other = signature[..32].to_vec();
    other.extend(s.to_be_bytes::<32>());
    other.push(v);
    other.into()
}

async fn assert_settles(world: &World, purchase: &Purchase) {
    let verdict = world.facilitator.verify(&purchase.body()).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let before = world.chain.usdc(PAYEE).await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, before + purchase.amount);
}

async fn assert_refused(world: &World, purchase: &Purchase, code: &str) {
    let verdict = world.facilitator.verify(&purchase.body()).await;
    assert_eq!((verdict.is_valid(), verdict.reason()), (false, code));
    let before = world.chain.usdc(PAYEE).await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert_eq!((answer.succeeded(), answer.reason()), (false, code));
    assert_eq!(answer.transaction(), "");
    assert_eq!(world.chain.usdc(PAYEE).await, before);
}
