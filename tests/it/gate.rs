//! One gate: whatever the scheme, payment method, rail and endpoint, a denied payment gets the same code, and the chain is not asked.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use x402d::embedded::TEST_USDC;

use crate::support::{
    Answer, Caller, OpenSession, Permit2Purchase, Purchase, Setup, World, eventually, new_account,
};

const PAYEE: Address = Address::repeat_byte(0xe1);
const OTHER_PAYEE: Address = Address::repeat_byte(0xe2);
const DENIED_PAYEE: Address = Address::repeat_byte(0xe3);
const MINIMUM: u64 = 1_000;
/// Methods by which the chain is asked about a payment.
const METHODS: [&str; 7] = [
    "eth_call",
    "eth_getCode",
    "eth_getBalance",
    "eth_getLogs",
    "eth_getTransactionByHash",
    "eth_getTransactionReceipt",
    "eth_sendRawTransaction",
];

fn questions(world: &World) -> usize {
    METHODS.iter().map(|method| world.proxy.calls(method)).sum()
}

/// What a gate says of a payment.
#[derive(Debug, Clone, Copy)]
struct Denial {
    code: &'static str,
    /// At `/verify` and `/settle`.
    status: u16,
    /// At the endpoints of sessions.
    session_status: u16,
}

const NOT_ALLOWED: Denial = Denial {
    code: "invalid_payment_requirements",
    status: 200,
    session_status: 422,
};
const UNKNOWN_ASSET: Denial = Denial {
    code: "invalid_payment_requirements",
    status: 200,
    session_status: 422,
};
const UNKNOWN_NETWORK: Denial = Denial {
    code: "invalid_network",
    status: 200,
    session_status: 422,
};
const TOO_SMALL: Denial = Denial {
    code: "amount_below_minimum",
    status: 200,
    session_status: 422,
};
const DENIED: Denial = Denial {
    code: "address_denied",
    status: 200,
    session_status: 403,
};
const TOO_OFTEN: Denial = Denial {
    code: "rate_limited",
    status: 429,
    session_status: 429,
};

/// A call that presents a payment.
#[derive(Debug, Clone)]
struct Presentation {
    name: String,
    path: String,
    body: Value,
}

impl Presentation {
    fn new(name: &str, path: impl Into<String>, body: Value) -> Self {
        let (name, path) = (name.to_owned(), path.into());
        Self { name, path, body }
    }

    fn at_both(name: &str, body: &Value) -> [Self; 2] {
        ["/verify", "/settle"].map(|path| Self::new(name, path, body.clone()))
    }

    async fn present(&self, caller: &Caller) -> Answer {
        caller.post(&self.path, &self.body).await.unwrap()
    }

    /// The answer has the code, status and shape of this denial.
    fn assert_denied(&self, answer: &Answer, denial: Denial) {
        let body = &answer.body;
        let is_session = self.path.starts_with("/sessions");
        let expected = if is_session {
            denial.session_status
        } else {
            denial.status
        };
        assert_eq!(answer.status, expected, "{self:?}: {answer:?}");
        let (code, message) = match &*self.path {
            "/verify" => {
                assert_eq!(body["isValid"], false, "{self:?}: {answer:?}");
                (&body["invalidReason"], &body["invalidMessage"])
            }
            "/settle" => {
                assert_eq!(body["success"], false, "{self:?}: {answer:?}");
                assert_eq!(body["transaction"], "", "{self:?}: {answer:?}");
                (&body["errorReason"], &body["errorMessage"])
            }
            _ => (&body["code"], &body["detail"]),
        };
        assert_eq!(code, denial.code, "{self:?}: {answer:?}");
        assert!(message.as_str().unwrap().len() > 20, "{self:?}: {answer:?}");
        let retry = answer.retry_after.is_some_and(|seconds| seconds >= 1);
        assert_eq!(retry, expected == 429, "{self:?}: {answer:?}");
    }
}

/// A payment that is valid but for what its members say.
#[derive(Clone)]
struct Terms {
    payer: PrivateKeySigner,
    payee: Address,
    amount: u64,
}

impl Terms {
    /// Each scheme and payment method, presented in a seller's request.
    fn headers(&self) -> Vec<Presentation> {
        let (payer, payee, amount) = (&self.payer, self.payee, self.amount);
        let own = Purchase::new(payer, payee, amount);
        let permit2 = Permit2Purchase::exact(payer, payee, amount);
        let metered = Permit2Purchase::upto(payer, payee, amount);
        let bodies = [
            ("exact by EIP-3009", own.body()),
            ("exact by EIP-3009, v1", own.clone().v1().body()),
            ("exact by Permit2", permit2.body()),
            ("upto by Permit2", metered.body()),
        ];
        let each = bodies.iter();
        each.flat_map(|(name, body)| Presentation::at_both(name, body))
            .collect()
    }

    /// A session on each rail, to be opened.
    fn openings(&self) -> Vec<Presentation> {
        let entry = OpenSession::entry(self.payee, self.amount);
        let rails = ["authorization", "transfer"].into_iter();
        rails
            .map(|rail| {
                let body = OpenSession::request(&entry, self.payer.address(), rail);
                Presentation::new(&format!("rail {rail}"), "/sessions", body)
            })
            .collect()
    }

    fn all(&self) -> Vec<Presentation> {
        [self.headers(), self.openings()].concat()
    }
}

/// What pays sessions that are open already: each form that can be submitted, and each that a seller presents.
async fn of_open_sessions(caller: &Caller, terms: &Terms) -> Vec<Presentation> {
    let (payer, payee, amount) = (&terms.payer, terms.payee, terms.amount);
    let early = OpenSession::open(caller, payer, "authorization", payee, amount).await;
    let own = OpenSession::open(caller, payer, "transfer", payee, amount).await;
    let (bytes, hash) = own.transaction(0, None);
    let submit = |session: &OpenSession| format!("/sessions/{}/transfer", session.id);
    let sent = json!({"transaction": hash, "signature": own.claim(hash)});
    let submitted = [
        Presentation::new("authorization", submit(&early), early.authorization()),
        Presentation::new("raw", submit(&own), json!({"rawTransaction": bytes})),
        Presentation::new("sent", submit(&own), sent),
    ];
    let presented = [
        Presentation::at_both("session's authorization", &early.presentation()),
        Presentation::at_both("proof", &own.proof(hash)),
    ];
    [submitted.to_vec(), presented.concat()].concat()
}

/// With an allow list, a minimum and a deny list.
async fn gated() -> (World, NamedTempFile) {
    let denied = NamedTempFile::new().unwrap();
    let path = denied.path().display();
    let toml = format!(
        "[networks.base-sepolia]\npayees = [\"{PAYEE}\", \"{DENIED_PAYEE}\"]\nminimum_dollars = \"0.001\"\n[limits]\ndeny_list = \"{path}\"\nverify_per_second = 1000\nsettle_per_second = 1000\nsessions_per_second = 1000\n"
    );
    let setup = Setup {
        toml,
        ..Setup::default()
    };
    (setup.build().await, denied)
}

async fn assert_all_denied(world: &World, presentations: &[Presentation], denial: Denial) {
    for presentation in presentations {
        let answer = presentation.present(&world.facilitator).await;
        presentation.assert_denied(&answer, denial);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scheme_rail_and_endpoint_is_denied_alike_without_asking_the_chain() {
    let (world, mut denied) = gated().await;
    let payer = world.payer_with_gas().await;
    world
        .chain
        .approve(TEST_USDC, payer.address(), U256::MAX)
        .await;
    let terms = |payee, amount| Terms {
        payer: payer.clone(),
        payee,
        amount,
    };
    let good = terms(PAYEE, MINIMUM);
    // Opened while its payer may still pay.
    let open_ones = of_open_sessions(&world.facilitator, &good).await;
    let before = questions(&world);

    let other_payee = terms(OTHER_PAYEE, MINIMUM).all();
    assert_all_denied(&world, &other_payee, NOT_ALLOWED).await;
    let small = terms(PAYEE, MINIMUM - 1).all();
    assert_all_denied(&world, &small, TOO_SMALL).await;
    let unknown = |member: &str, value: Value| {
        let mut all = good.all();
        for presentation in &mut all {
            replace(&mut presentation.body, member, &value);
        }
        all
    };
    let other_token = unknown("asset", json!(OTHER_PAYEE));
    assert_all_denied(&world, &other_token, UNKNOWN_ASSET).await;
    let without_v1 = |all: Vec<Presentation>| {
        let v2 = all.into_iter().filter(|one| !one.name.ends_with("v1"));
        v2.collect::<Vec<_>>()
    };
    let other_network = without_v1(unknown("network", json!("eip155:1")));
    assert_all_denied(&world, &other_network, UNKNOWN_NETWORK).await;

    // The deny list is read again while the service runs.
    writeln!(denied, "{DENIED_PAYEE}\n{} # payer", payer.address()).unwrap();
    let first = &good.headers()[0];
    eventually("the new deny list", Duration::from_secs(10), async || {
        let answer = first.present(&world.facilitator).await;
        (answer.reason() == DENIED.code).then_some(())
    })
    .await;
    let looked = questions(&world);
    assert_all_denied(&world, &good.all(), DENIED).await;
    assert_all_denied(&world, &open_ones, DENIED).await;
    let payee_denied = Terms {
        payer: new_account(),
        ..terms(DENIED_PAYEE, MINIMUM)
    };
    assert_all_denied(&world, &payee_denied.all(), DENIED).await;
    // Only the first payment was looked at, until the new list was read; the engine asks nothing of this kind while it is idle.
    let asked = questions(&world) - looked;
    assert_eq!(asked, 0, "the chain was asked");
    let waiting = world.proxy.calls("eth_getLogs") + world.proxy.calls("eth_sendRawTransaction");
    assert_eq!(waiting, 0, "before {before}");
    assert_eq!(world.transactions(1).await, 0);
}

/// Replaces a member wherever it is.
fn replace(body: &mut Value, member: &str, value: &Value) {
    match body {
        Value::Object(members) => {
            for (name, inner) in members {
                if name == member {
                    inner.clone_from(value);
                } else {
                    replace(inner, member, value);
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|one| replace(one, member, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Terms that sessions were opened for are checked again by a process that is configured anew.
#[tokio::test(flavor = "multi_thread")]
async fn open_sessions_are_denied_by_newer_rules() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let terms = Terms {
        payer,
        payee: PAYEE,
        amount: MINIMUM,
    };
    for (rule, denial) in [
        (format!("payees = [\"{OTHER_PAYEE}\"]"), NOT_ALLOWED),
        ("minimum_dollars = \"0.002\"".to_owned(), TOO_SMALL),
    ] {
        let open_ones = of_open_sessions(&world.facilitator, &terms).await;
        let toml = format!("[networks.base-sepolia]\n{rule}\n");
        let strict = world.replica_with(&toml).await;
        for presentation in open_ones {
            let answer = presentation.present(&strict).await;
            presentation.assert_denied(&answer, denial);
        }
    }
    assert_eq!(world.transactions(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_has_a_rate() {
    let world = World::new().await;
    let terms = Terms {
        payer: world.payer_with_gas().await,
        payee: PAYEE,
        amount: MINIMUM,
    };
    // A replica for each rate, whose others do not matter. Nor does the count of requests of all kinds, which follows from them.
    let mut limited = Vec::new();
    for slow in ["verify", "settle", "sessions"] {
        let rate = |kind| if kind == slow { 1 } else { 1_000_000 };
        let lines = ["verify", "settle", "sessions"]
            .map(|kind| format!("{kind}_per_second = {}\n", rate(kind)));
        let toml = format!("[limits]\n{}", lines.concat());
        limited.push(world.replica_with(&toml).await);
    }
    // Payments of nobody: they use up what is admitted.
    let poor = Terms {
        payer: new_account(),
        ..terms.clone()
    };
    let mut empty = poor.all();
    empty.truncate(2);
    empty.push(poor.openings().remove(0));
    let all = async || {
        let open_ones = of_open_sessions(&world.facilitator, &terms).await;
        [terms.all(), open_ones].concat()
    };
    for index in 0..all().await.len() {
        // On a busy machine a second may pass after the call before, and the next one is admitted. It is another payment each time.
        let (presentation, answer) =
            eventually("a refused call", Duration::from_secs(30), async || {
                let presentation = all().await.remove(index);
                let kind = usize::from(presentation.path != "/verify");
                let kind = kind + usize::from(presentation.path == "/sessions");
                for _ in 0..100 {
                    if empty[kind].present(&limited[kind]).await.status == 429 {
                        break;
                    }
                }
                let answer = presentation.present(&limited[kind]).await;
                (answer.status == 429).then_some((presentation, answer))
            })
            .await;
        presentation.assert_denied(&answer, TOO_OFTEN);
    }
}

/// Stock sellers do not repeat a settle that was refused for its rate, and their handler has run.
#[tokio::test(flavor = "multi_thread")]
async fn settle_of_a_verified_or_known_payment_is_never_refused_for_its_rate() {
    let setup = Setup {
        toml: "[limits]\nverify_per_second = 100\nsettle_per_second = 1\nsessions_per_second = 1\n"
            .to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let body = || Purchase::new(&payer, PAYEE, 1).body();
    let verified: Vec<_> = (0..10).map(|_| body()).collect();
    for body in &verified {
        assert!(world.facilitator.verify(body).await.is_valid());
    }
    let mut settles = JoinSet::new();
    for _ in 0..12 {
        let (caller, body) = (Caller::clone(&world.facilitator), body());
        settles.spawn(async move { caller.settle(&body).await.status });
    }
    let statuses = settles.join_all().await;
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(refused > 0, "the burst is not used up");
    for body in &verified {
        let answer = world.facilitator.settle(body).await;
        assert!(answer.succeeded(), "{answer:?}");
    }
    for body in &verified {
        let answer = world.facilitator.settle(body).await;
        assert_eq!(answer.reason(), "duplicate_settlement", "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn supported_names_the_limits_of_each_kind() {
    let (world, _denied) = gated().await;
    let supported = world.facilitator.get("/supported").await.body;
    let kinds = supported["kinds"].as_array().unwrap();
    assert_eq!(kinds.len(), 3, "{supported}");
    for kind in kinds {
        let extra = &kind["extra"];
        let token = TEST_USDC.to_checksum(None);
        assert_eq!(
            extra["minimumAmounts"][&token],
            MINIMUM.to_string(),
            "{kind}"
        );
        assert_eq!(extra["maxTimeoutSeconds"], 691_200, "{kind}");
    }
}

/// A policy service that refuses one payer, and says nothing at all while it hangs.
async fn policy_service(
    refused: Address,
    hangs: Arc<AtomicBool>,
) -> (String, AbortOnDropHandle<()>) {
    let answer = move |axum::Json(question): axum::Json<Value>| async move {
        if hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        assert_eq!(question["amount"], MINIMUM.to_string(), "{question}");
        let is_refused = question["payer"] == refused.to_checksum(None);
        axum::Json(json!({"allowed": !is_refused}))
    };
    let router = axum::Router::new().route("/policy", axum::routing::post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/policy", listener.local_addr().unwrap());
    let server = TaskTracker::new().spawn(async move {
        axum::serve(listener, router).await.unwrap();
    });
    (url, AbortOnDropHandle::new(server))
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_service_is_asked_about_new_payments_and_may_fail_closed_or_open() {
    let world = World::new().await;
    let (payer, refused) = (world.payer_with_gas().await, world.payer_with_gas().await);
    let hangs = Arc::new(AtomicBool::new(false));
    let (url, _service) = policy_service(refused.address(), Arc::clone(&hangs)).await;
    let rates = "verify_per_second = 1000\nsettle_per_second = 1000\nsessions_per_second = 1000";
    let toml =
        |fail| format!("[limits]\n{rates}\npolicy_url = \"{url}\"\npolicy_fail = \"{fail}\"\n");
    let closed = world.replica_with(&toml("closed")).await;
    let terms = |payer: &PrivateKeySigner| Terms {
        payer: payer.clone(),
        payee: PAYEE,
        amount: MINIMUM,
    };
    for presentation in terms(&refused).all() {
        let answer = presentation.present(&closed).await;
        presentation.assert_denied(&answer, DENIED);
    }
    let body = Purchase::new(&payer, PAYEE, MINIMUM).body();
    assert!(closed.verify(&body).await.is_valid());

    hangs.store(true, Ordering::Relaxed);
    let unanswered = closed.verify(&body).await;
    assert_eq!(
        (unanswered.status, unanswered.retry_after),
        (503, Some(1)),
        "{unanswered:?}"
    );
    drop(closed);
    let open = world.replica_with(&toml("open")).await;
    assert!(open.verify(&body).await.is_valid());
    assert!(open.settle(&body).await.succeeded());
}
