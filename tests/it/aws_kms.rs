//! Signers whose keys are in AWS KMS.

use std::time::Duration;

use alloy::primitives::{Address, U256};

use crate::support::{Chain, Kms, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x6b);
const KEY: &str = "alias/x402d";

/// `signers` have their keys in the configuration, the next account has its key in KMS.
fn setup(kms: &Kms, signers: usize, address: Address) -> Setup {
    let mut setup = Setup {
        signers,
        ..Setup::default()
    };
    for (name, value) in kms.variables() {
        setup = setup.with(name, value);
    }
    setup.with("X402D_SIGNER_AWS_KMS", format!("{address}={KEY}"))
}

async fn kms_of_signer(number: usize) -> Kms {
    let account = Chain::signers(number).last().unwrap();
    Kms::with_key(account.key).await
}

async fn settle(world: &World, count: u64) {
    let payer = world.payer().await;
    let bodies = (0..count)
        .map(|number| Purchase::new(&payer, PAYEE, 1 + number).body())
        .collect();
    for answer in world.facilitator.settle_all(bodies).await {
        assert!(answer.succeeded(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_are_signed_by_a_slow_kms() {
    let kms = kms_of_signer(1).await;
    kms.delay(Duration::from_millis(400));
    let setup = setup(&kms, 1, kms.address()).with("X402D_SIGNER_KEYS", "");
    let world = setup.build().await;
    settle(&world, 20).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(210));
    let sent = world.chain.transaction_count(kms.address()).await;
    assert!(sent > 0 && usize::try_from(sent).unwrap() <= kms.signatures());
    let log = world.facilitator.log();
    assert!(!log.contains("kms-secret"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kms_that_fails_pauses_its_own_lane_alone() {
    let kms = kms_of_signer(2).await;
    kms.fail(true);
    let world = setup(&kms, 1, kms.address()).build().await;
    settle(&world, 20).await;
    assert_eq!(world.chain.transaction_count(kms.address()).await, 0);
    let log = world.facilitator.log();
    assert!(
        log.contains("AWS KMS did not sign; nothing was sent"),
        "{log}"
    );

    kms.fail(false);
    let begun = eventually("KMS signs again", Duration::from_mins(1), async || {
        settle(&world, 20).await;
        (kms.signatures() > 0).then(|| world.chain.transaction_count(kms.address()))
    });
    assert!(begun.await.await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn kms_key_of_another_account_signs_nothing_and_is_named() {
    let kms = kms_of_signer(2).await;
    let stated = Chain::signers(3)[2].address;
    let world = setup(&kms, 1, stated).build().await;
    settle(&world, 20).await;
    assert_eq!(kms.signatures(), 0);
    let expected = format!(
        "the key is that of {}, and the configuration says {stated}",
        kms.address()
    );
    eventually("the log names both", Duration::from_secs(20), async || {
        world.facilitator.log().contains(&expected).then_some(())
    })
    .await;
}
