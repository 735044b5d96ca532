//! Two processes on one database, both killed at random, under two thousand payments.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use sqlx::Row;
use tokio::task::JoinSet;
use tokio::time::Instant;
use x402d::embedded::TEST_USDC;

use crate::support::{
    Answer, Caller, Chain, Facilitator, Purchase, Setup, World, eventually, random,
};

const PAYEE: Address = Address::repeat_byte(0x2f);
const PAYMENTS: usize = 2_000;
const CALLERS: usize = 96;
const SIGNERS: usize = 4;
/// Kills of each process.
const KILLS: usize = 5;

/// State shared by the callers.
struct Market {
    purchases: Vec<Purchase>,
    next: AtomicUsize,
    decided: Mutex<HashMap<usize, String>>,
    told: AtomicUsize,
}

impl Market {
    fn done(&self) -> usize {
        self.decided.lock().unwrap().len()
    }

    /// Presents a payment to one process after the other until its outcome is final.
    async fn buy(&self, replicas: &[Caller; 2], number: usize) {
        let body = self.purchases[number].body();
        let deadline = Instant::now() + Duration::from_mins(3);
        for turn in number.. {
            assert!(
                Instant::now() < deadline,
                "payment {number} is never decided"
            );
            let Ok(answer) = replicas[turn % 2].try_settle(&body).await else {
                tokio::task::yield_now().await;
                continue;
            };
            if answer.succeeded() {
                self.told.fetch_add(1, Ordering::Relaxed);
            }
            if is_final(&answer) {
                self.decided
                    .lock()
                    .unwrap()
                    .insert(number, answer.transaction());
                return;
            }
        }
    }
}

fn is_final(answer: &Answer) -> bool {
    answer.succeeded() || answer.reason() == "duplicate_settlement"
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_payments_settle_once_despite_replica_kills() {
    let setup = Setup {
        signers: SIGNERS,
        block_time_s: Some(1),
        queryable: true,
        ..Setup::default()
    };
    let mut world = setup.build().await;
    let mut replica = world.replica().await;
    let market = Arc::new(market(&world).await);
    let replicas = [Caller::clone(&world.facilitator), Caller::clone(&replica)];
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (market, replicas) = (Arc::clone(&market), replicas.clone());
        callers.spawn(async move {
            loop {
                let number = market.next.fetch_add(1, Ordering::Relaxed);
                if number >= PAYMENTS {
                    return;
                }
                market.buy(&replicas, number).await;
            }
        });
    }
    for _ in 0..KILLS {
        let first = random(2);
        for turn in [first, 1 - first] {
            let wanted = market.done() + 20 + random(120);
            eventually("some payments", Duration::from_mins(1), async || {
                (market.done() >= wanted.min(PAYMENTS)).then_some(())
            })
            .await;
            let victim = if turn == 0 {
                &mut world.facilitator
            } else {
                &mut replica
            };
            victim.kill();
            victim.restart_at(replicas[turn].url(), None).await;
        }
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_sums(&world, &replica, &market).await;
}

async fn market(world: &World) -> Market {
    let mut payers = Vec::new();
    for _ in 0..8 {
        payers.push(world.payer().await);
    }
    let purchase = |number: usize| {
        let payer = &payers[number % payers.len()];
        Purchase::new(payer, PAYEE, 1_000 + u64::try_from(number).unwrap())
    };
    Market {
        purchases: (0..PAYMENTS).map(purchase).collect(),
        next: AtomicUsize::new(0),
        decided: Mutex::default(),
        told: AtomicUsize::new(0),
    }
}

async fn assert_sums(world: &World, replica: &Facilitator, market: &Market) {
    let hashes = market.decided.lock().unwrap().clone();
    assert_eq!(hashes.len(), PAYMENTS);
    let told = market.told.load(Ordering::Relaxed);
    assert!(told <= PAYMENTS, "{told} successes were answered");
    let mut moved: HashMap<usize, String> = HashMap::new();
    for transfer in world.chain.transfers_to(TEST_USDC, PAYEE).await {
        let amount: U256 = transfer["data"].as_str().unwrap().parse().unwrap();
        let hash = transfer["transactionHash"].as_str().unwrap().to_owned();
        let twice = moved.insert(amount.to::<usize>() - 1_000, hash);
        assert_eq!(twice, None, "paid twice: {amount}");
    }
    assert_eq!(moved, hashes, "callers and chain have the same hashes");

    // A repeated request gets the same answer from either process.
    for (caller, numbers) in [
        (&*world.facilitator, 0..PAYMENTS / 2),
        (&**replica, PAYMENTS / 2..PAYMENTS),
    ] {
        let bodies: Vec<_> = numbers
            .clone()
            .map(|number| market.purchases[number].body())
            .collect();
        let mut again: HashMap<String, usize> = HashMap::new();
        let answers = caller.settle_all(bodies.clone()).await;
        for (body, answer) in bodies.iter().zip(answers) {
            // A thousand at once on a busy machine: some may be told to present the payment again.
            let answer = if answer.status == 503 {
                caller.settle(body).await
            } else {
                answer
            };
            assert!(is_final(&answer), "{answer:?}");
            *again.entry(answer.transaction()).or_default() += 1;
        }
        for number in numbers {
            *again.get_mut(&hashes[&number]).unwrap() -= 1;
        }
        assert!(again.values().all(|left| *left == 0));
    }

    let mut ledger = world.database.connection().await;
    for (what, sql) in [
        (
            "holds",
            "select coalesce(sum(held), 0)::bigint from payer_accounts",
        ),
        (
            "open transactions",
            "select count(*) from transactions where state <> 'mined'",
        ),
        (
            "undecided payments",
            "select count(*) from payments where state not in ('settled', 'final')",
        ),
        (
            "lanes with a nonce gap",
            "select count(*) from lanes l where l.next_nonce <> (select count(*) from transactions t where (t.network, t.signer) = (l.network, l.signer))",
        ),
    ] {
        let row = sqlx::query(sql).fetch_one(&mut ledger).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 0, "{what}");
    }
    for signer in Chain::signers(SIGNERS) {
        let mined = world.chain.transaction_count(signer.address).await;
        assert_eq!(mined, world.chain.pending_count(signer.address).await);
    }
}
