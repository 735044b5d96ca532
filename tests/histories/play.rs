//! Plays one history against a world.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use x402d::protocol::Amount;

use crate::checks;
use crate::steps::{PAYERS, Step};
use crate::support::{Answer, Chain, Fault, Purchase, Setup, World, eventually, new_account};

/// Initial balance of each payer of a history.
const FUNDS: u64 = 1_000_000;
/// A payment's amount is this plus its number, so that the amount identifies it.
pub(crate) const LEAST: u64 = 1_000;
const OTHER_ACCOUNT: Address = Address::repeat_byte(0xe1);

/// A world that plays one history after another.
pub(crate) struct Stage {
    pub(crate) world: World,
}

/// One payment of a history.
pub(crate) struct Presented {
    pub(crate) purchase: Purchase,
    /// Transaction hashes of the successes that callers received.
    pub(crate) told: Arc<Mutex<Vec<String>>>,
    /// The last answer, once it is final.
    pub(crate) last: Option<Answer>,
}

/// A history while it is played.
pub(crate) struct Scene {
    pub(crate) payee: Address,
    pub(crate) payers: Vec<PrivateKeySigner>,
    pub(crate) payments: Vec<Presented>,
    pub(crate) killed: bool,
    callers: JoinSet<()>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let setup = Setup {
            signers: 2,
            database_proxied: true,
            ..Setup::default()
        };
        let setup = setup.with("X402D_SETTLE_WAIT", "3");
        Self {
            world: setup.build().await,
        }
    }

    /// Plays a history to its end and returns the first violated invariant.
    pub(crate) async fn play(&mut self, history: &[Step]) -> Result<(), String> {
        self.restore_service().await?;
        let mut scene = self.open().await;
        for step in history {
            self.take(&mut scene, step).await;
        }
        self.restore_service().await?;
        while scene.callers.join_next().await.is_some() {}
        // A reorg may be seen only now: while nothing is open, the chain is looked at once a second.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let checked = self.conclude_and_check(&mut scene).await?;
            if checked.is_ok() || Instant::now() > deadline {
                return checked;
            }
        }
    }

    /// Waits until every payment is decided and nothing is open, and checks. The outer error: that never comes.
    async fn conclude_and_check(&self, scene: &mut Scene) -> Result<Result<(), String>, String> {
        self.conclude(scene).await?;
        checks::wait_until_nothing_is_open(&self.world).await;
        // The answers from here on are the last.
        for payment in &mut scene.payments {
            payment.last = None;
        }
        self.conclude(scene).await?;
        Ok(checks::check_all(&self.world, scene).await)
    }

    /// Removes all faults, mines blocks automatically and waits for a ready process.
    async fn restore_service(&mut self) -> Result<(), String> {
        self.no_faults();
        self.world.resume_mining().await;
        self.world.chain.mine(1).await;
        let deadline = Instant::now() + Duration::from_mins(1);
        eventually(
            "an answer of /readyz",
            Duration::from_secs(90),
            async || {
                let asked = self.world.facilitator.try_get("/readyz").await.ok()?;
                match asked.status {
                    200 => Some(Ok(())),
                    _ if Instant::now() < deadline => None,
                    _ => Some(Err(format!("not ready: {}", asked.body))),
                }
            },
        )
        .await
    }

    fn no_faults(&self) {
        for method in [
            "eth_sendRawTransaction",
            "eth_getBlockReceipts",
            "eth_getTransactionReceipt",
            "eth_call",
            "eth_getBlockByNumber",
            "eth_getLogs",
        ] {
            self.world.proxy.on(method, Fault::None);
        }
    }

    async fn open(&self) -> Scene {
        let payers: Vec<_> = (0..PAYERS).map(|_| new_account()).collect();
        for payer in &payers {
            self.world.chain.fund(payer.address(), FUNDS).await;
        }
        // Deep enough that no reorg of a history removes it.
        self.world.chain.mine(8).await;
        Scene {
            payee: new_account().address(),
            payers,
            payments: Vec::new(),
            killed: false,
            callers: JoinSet::new(),
        }
    }

    async fn take(&mut self, scene: &mut Scene, step: &Step) {
        let chain = &self.world.chain;
        match step {
            Step::Pay { payer, count } => {
                for _ in 0..*count {
                    let purchase = self.purchase(scene, usize::from(*payer)).await;
                    scene.payments.push(Presented {
                        purchase,
                        told: Arc::default(),
                        last: None,
                    });
                    self.present(scene, scene.payments.len() - 1);
                }
            }
            Step::Again(which) => self.present(scene, scene.number(*which)),
            Step::Progress(calls) => {
                let wanted = self.world.proxy.all_calls() + usize::from(*calls);
                // The service makes few calls while no payment is open, so the wait is bounded.
                let _ = tokio::time::timeout(Duration::from_millis(400), async {
                    eventually("calls", Duration::from_secs(5), async || {
                        (self.world.proxy.all_calls() >= wanted).then_some(())
                    })
                    .await;
                })
                .await;
            }
            Step::Blocks { automatic } => chain.automine(*automatic).await,
            Step::Mine(blocks) => chain.mine(u64::from(*blocks)).await,
            Step::Fault(method, fault) => self.world.proxy.on(method, *fault),
            Step::Calm => self.no_faults(),
            Step::Forget => drop(chain.call("anvil_dropAllTransactions", json!([])).await),
            Step::Reorg(depth) => chain.reorg(u64::from(*depth)).await,
            Step::Submit(which) => {
                let purchase = &scene.payments[scene.number(*which)].purchase;
                pool(chain, Chain::submission(purchase)).await;
            }
            Step::Cancel(which) => {
                let purchase = &scene.payments[scene.number(*which)].purchase;
                pool(chain, chain.cancellation(purchase).await).await;
            }
            Step::Spend(payer) => {
                let payer = &scene.payers[usize::from(*payer)];
                let left = chain.usdc(payer.address()).await.to::<u64>();
                let mut all = Purchase::new(payer, OTHER_ACCOUNT, left);
                all.authorization.valid_before = self.in_ten_minutes().await;
                pool(chain, Chain::submission(&all)).await;
            }
            Step::Cut => self.world.database_proxy.as_ref().unwrap().cut(),
            Step::Kill => {
                scene.killed = true;
                self.world.facilitator.kill();
                self.world.facilitator.spawn(None).await;
            }
            Step::Expire => drop(chain.call("evm_increaseTime", json!([700])).await),
        }
    }

    async fn purchase(&self, scene: &Scene, payer: usize) -> Purchase {
        let amount = LEAST + u64::try_from(scene.payments.len()).unwrap();
        let mut purchase = Purchase::new(&scene.payers[payer], scene.payee, amount);
        purchase.authorization.valid_before = self.in_ten_minutes().await;
        purchase
    }

    /// Relative to the chain's time, which histories advance.
    async fn in_ten_minutes(&self) -> Amount {
        let newest = json!(["pending", false]);
        let newest = self.world.chain.call("eth_getBlockByNumber", newest).await;
        let time: U256 = serde_json::from_value(newest["timestamp"].clone()).unwrap();
        Amount::from_atomic(time + U256::from(600))
    }

    /// A caller presents a payment and disconnects after one answer.
    fn present(&self, scene: &mut Scene, number: usize) {
        let payment = &scene.payments[number];
        let (body, told) = (payment.purchase.body(), Arc::clone(&payment.told));
        let caller = self.world.facilitator.clone();
        scene.callers.spawn(async move {
            if let Ok(answer) = caller.try_settle(&body).await
                && answer.succeeded()
            {
                told.lock().unwrap().push(answer.transaction());
            }
        });
    }

    /// Presents every payment until its answer is final.
    async fn conclude(&self, scene: &mut Scene) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_mins(2);
        let limit = Duration::from_mins(4);
        let undecided = eventually("answers", limit, async || {
            let undecided = self.ask_all(scene).await;
            match undecided {
                Some(_) if Instant::now() < deadline => None,
                undecided => Some(undecided),
            }
        })
        .await;
        let Some(answer) = undecided else {
            return Ok(());
        };
        let row = match answer.body["extra"]["paymentId"].as_str() {
            Some(_) => self.world.facilitator.payment(&answer).await,
            None => Value::Null,
        };
        let signers = self.world.facilitator.get("/signers").await.body;
        Err(format!("never decided: {answer:?}; {row}; {signers}"))
    }

    /// Presents each undecided payment once. Returns the answer of one that is still undecided, if any.
    async fn ask_all(&self, scene: &mut Scene) -> Option<Answer> {
        let mut asking = JoinSet::new();
        for (number, payment) in scene.payments.iter().enumerate() {
            if payment.last.is_none() {
                let (caller, body) = (self.world.facilitator.clone(), payment.purchase.body());
                asking.spawn(async move { (number, caller.try_settle(&body).await) });
            }
        }
        let mut undecided = None;
        for (number, answer) in asking.join_all().await {
            let answer = match answer {
                Ok(answer) if is_final(&answer) => answer,
                open => {
                    undecided = Some(open.unwrap());
                    continue;
                }
            };
            let payment = &mut scene.payments[number];
            if answer.succeeded() {
                payment.told.lock().unwrap().push(answer.transaction());
            }
            payment.last = Some(answer);
        }
        undecided
    }
}

impl Scene {
    fn number(&self, which: u8) -> usize {
        usize::from(which) % self.payments.len()
    }
}

fn is_final(answer: &Answer) -> bool {
    let open = ["settlement_pending", "unexpected_settle_error"];
    answer.status == 200 && !open.contains(&answer.reason())
}

/// Sends to the pool; the transaction is mined with the next block, if at all.
async fn pool(chain: &Chain, transaction: Value) {
    chain
        .call("eth_sendTransaction", json!([transaction]))
        .await;
}
