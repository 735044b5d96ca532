//! Signatures of contract wallets: wrapped although deployed, 65 bytes that are not ECDSA, and delegated accounts whose token
//! supports only `ecrecover`.

use alloy::primitives::{Address, B256, Bytes, U256, hex};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use x402d::embedded::{SMART_WALLET_FACTORY, TEST_USDC};

use crate::support::{
    Answer, Chain, Purchase, Setup, World, addressOfCall, createWalletCall, mintCall, new_account,
    wrapped,
};

const PAYEE: Address = Address::repeat_byte(0xcb);
const SALT: B256 = B256::repeat_byte(0x02);
const PLAIN_TOKEN: Address = Address::repeat_byte(0x7b);

/// An ERC-6492 wrapper does not mean undeployed: SDKs wrap as long as they believe that the wallet does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn wrapped_signature_of_deployed_wallet_pays() {
    let unlisted = World::new().await;
    assert_wrapped_deployed_settles(&unlisted).await;
    drop(unlisted);
    let listed = SMART_WALLET_FACTORY.to_string();
    let setup = Setup::default().with("X402D_EIP6492_FACTORIES", listed);
    assert_wrapped_deployed_settles(&setup.build().await).await;
}

/// The wrapped signature settles by a call of the token alone.
async fn assert_wrapped_deployed_settles(world: &World) {
    let owner = new_account();
    let (owner_address, salt) = (owner.address(), SALT);
    let at = addressOfCall {
        owner: owner_address,
        salt,
    };
    let wallet = world.chain.read(SMART_WALLET_FACTORY, at).await;
    world.chain.fund(wallet, 1_000).await;
    let create = createWalletCall {
        owner: owner_address,
        salt,
    };
    world.chain.send(SMART_WALLET_FACTORY, create).await;
    let mut purchase = Purchase::new(&owner, PAYEE, 100).paid_by(wallet);
    purchase.signature = Some(wrapped(&purchase, SALT));
    let answer = assert_settles(world, &purchase, TEST_USDC).await;
    let to = called_contract(world, &answer).await;
    assert_eq!(to, TEST_USDC, "the factory is not called at our cost");
}

/// Safe's approved-hash signature has 65 bytes as well. The payer's code decides how to verify, not the length.
#[tokio::test(flavor = "multi_thread")]
async fn wallet_pays_with_65_bytes_that_are_not_ecdsa() {
    let world = World::new().await;
    let (owner, wallet) = (new_account(), Address::repeat_byte(0x3b));
    world.chain.place("ApprovedHashWallet", wallet).await;
    let slot = owner.address().into_word();
    world.chain.set_storage(wallet, 0, slot).await;
    world.chain.fund(wallet, 1_000).await;
    for last in [0, 1, 31] {
        let mut purchase = Purchase::new(&owner, PAYEE, 10).paid_by(wallet);
        purchase.signature = Some(approved_hash_signature(owner.address(), last));
        assert_settles(&world, &purchase, TEST_USDC).await;
    }
    let mut foreign = Purchase::new(&owner, PAYEE, 10).paid_by(wallet);
    foreign.signature = Some(approved_hash_signature(PAYEE, 1));
    let code = "invalid_exact_evm_signature";
    world.assert_rejected_at_both(&foreign.body(), code).await;
}

/// Owner, zeros and a last byte: Safe's form of a hash that its owner has approved.
fn approved_hash_signature(owner: Address, last: u8) -> Bytes {
    [owner.into_word().as_slice(), &[0; 32], &[last]]
        .concat()
        .into()
}

/// A token with the (v, r, s) form recovers the signer whatever code the payer has, so only the token's own simulation counts.
#[tokio::test(flavor = "multi_thread")]
async fn ecrecover_only_token_serves_delegated_accounts_only() {
    let chain = Chain::start().await;
    chain.place("PlainAccountsToken", PLAIN_TOKEN).await;
    let toml = format!(
        "[[networks.base-sepolia.assets]]\naddress = \"{PLAIN_TOKEN}\"\nname = \"USDC\"\nversion = \"2\"\ndecimals = 6\n"
    );
    let setup = Setup {
        toml,
        ..Setup::default()
    };
    let world = setup.on(chain).await;
    let (payer, wallet) = (new_account(), Address::repeat_byte(0x3c));
    for to in [payer.address(), wallet] {
        let amount = U256::from(1_000);
        world.chain.send(PLAIN_TOKEN, mintCall { to, amount }).await;
    }
    // The delegation's target has no code, and so no `isValidSignature`.
    let target = Address::repeat_byte(0x99);
    let code = Bytes::from([hex!("ef0100").as_slice(), target.as_slice()].concat());
    let params = json!([payer.address(), code]);
    world.chain.call("anvil_setCode", params).await;
    let by_its_key = |amount| in_plain_token(&payer, amount);
    assert_settles(&world, &by_its_key(10), PLAIN_TOKEN).await;

    // Sent together: each payer with code is sent alone and pays the exact amount.
    let purchases: Vec<_> = (1..=4).map(|amount| by_its_key(amount * 10)).collect();
    let mut settling: Vec<_> = purchases
        .iter()
        .map(|purchase| world.facilitator.spawn_settle(&purchase.body()))
        .collect();
    for settling in &mut settling {
        let answer = settling.join_next().await.unwrap().unwrap().unwrap();
        assert!(answer.succeeded(), "{answer:?}");
    }
    let paid = world.chain.balance(PLAIN_TOKEN, PAYEE).await;
    assert_eq!(paid, U256::from(110));

    world.chain.place("SmartWallet", wallet).await;
    let owner = new_account();
    let slot = owner.address().into_word();
    world.chain.set_storage(wallet, 0, slot).await;
    let by_contract = in_plain_token(&owner, 10).paid_by(wallet);
    let verdict = world.facilitator.verify(&by_contract.body()).await;
    assert!(!verdict.is_valid(), "{verdict:?}");
    let message = verdict.body["invalidMessage"].as_str().unwrap();
    assert!(message.contains("plain accounts only"), "{message}");
    let code = verdict.reason().to_owned();
    world
        .assert_rejected_at_both(&by_contract.body(), &code)
        .await;
}

fn in_plain_token(payer: &PrivateKeySigner, amount: u64) -> Purchase {
    Purchase::new(payer, PAYEE, amount).in_token(PLAIN_TOKEN, "USDC")
}

async fn assert_settles(world: &World, purchase: &Purchase, token: Address) -> Answer {
    let verdict = world.facilitator.verify(&purchase.body()).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let before = world.chain.balance(token, PAYEE).await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    let after = world.chain.balance(token, PAYEE).await;
    assert_eq!(after, before + purchase.amount);
    answer
}

/// The contract that a settlement's transaction called.
async fn called_contract(world: &World, answer: &Answer) -> Address {
    let receipt = world.chain.receipt(&answer.transaction()).await;
    receipt["to"].as_str().unwrap().parse().unwrap()
}
