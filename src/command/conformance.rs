//! `x402d conformance`: plays the flows of official sellers against any facilitator, and says which parts of the wire it keeps.

use std::process::ExitCode;
use std::time::Duration;

use alloy::primitives::{Address, B256, U256, b256};
use alloy::signers::local::PrivateKeySigner;
use clap::Args;
use reqwest::{Client, Response, Url, redirect};
use serde::Serialize;
use serde_json::{Value, json};

use crate::buyer::DigestSigner as _;
use crate::chain::{Endpoints, Rpc};
use crate::clock::{Clock as _, SystemClock};
use crate::command::shown::{aligned, parse_network, row};
use crate::command::{CommandError, say};
use crate::config::{Environment as _, ProcessEnvironment};
use crate::protocol::assets::{DefaultAsset, TransferMethod, default_assets};
use crate::protocol::text::escaped_start;
use crate::protocol::{Amount, Authorization, DomainSeparator, Network};

/// Sellers wait 90 s for `/settle`.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Most characters of an answer that are shown.
const SHOWN_MAX: usize = 160;
/// How long a signed payment is valid, in seconds.
const VALID_FOR: i64 = 300;
/// `Transfer(address,address,uint256)`.
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

#[derive(Debug, Args)]
#[command(
    after_help = "The payer's key comes from X402D_BUYER_KEY. The payer needs a few cents of the network's default token."
)]
pub(super) struct ConformanceOptions {
    /// The facilitator.
    url: Url,
    /// The test network to pay on.
    #[arg(long, default_value = "base-sepolia", value_parser = parse_network)]
    network: Network,
    /// The amount of a payment, in atomic units of the token.
    #[arg(long, value_name = "UNITS", default_value_t = 1000)]
    amount: u64,
    /// The payee of the settled payment; an account that nobody has the key of unless given.
    #[arg(long, value_name = "ADDRESS")]
    pay_to: Option<Address>,
    /// An endpoint of the chain, on which the transfer is looked up.
    #[arg(
        long,
        value_name = "URL",
        env = "X402D_BUYER_RPC_URL",
        hide_env_values = true
    )]
    rpc_url: Option<String>,
    /// Only what moves no money.
    #[arg(long)]
    dry_run: bool,
    /// Pay on a network that is no test network.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Not offered.
    Lacks,
    Wrong,
}

/// One part of the wire.
#[derive(Debug, Serialize)]
struct Part {
    part: String,
    verdict: Verdict,
    expected: String,
    came: String,
}

/// What came back: status and JSON, or why there is none.
type Came = Result<(u16, Value), String>;

struct Run {
    http: Client,
    base: String,
    key: PrivateKeySigner,
    network: Network,
    asset: &'static DefaultAsset,
    pay_to: Address,
    amount: U256,
    parts: Vec<Part>,
}

pub(super) async fn run(options: ConformanceOptions) -> Result<ExitCode, CommandError> {
    let network = options.network;
    if !network.is_test() && !options.dry_run && !options.yes {
        return Err(format!(
            "{network} is no test network: --yes pays there, --dry-run moves no money"
        )
        .into());
    }
    let asset = default_assets(network).find(|asset| asset.method == TransferMethod::Eip3009);
    let key = ProcessEnvironment
        .get("X402D_BUYER_KEY")
        .ok_or("no payer key: set X402D_BUYER_KEY")?;
    let client = Client::builder()
        .timeout(CALL_LIMIT)
        .redirect(redirect::Policy::none());
    let mut run = Run {
        http: client.build()?,
        base: options.url.as_str().trim_end_matches('/').to_owned(),
        // The library's error quotes a character of the key.
        key: key
            .trim()
            .parse()
            .map_err(|_| "X402D_BUYER_KEY: expected a private key in hex")?,
        network,
        asset: asset.ok_or_else(|| format!("{network}: no token with EIP-3009 is known there"))?,
        pay_to: options
            .pay_to
            .unwrap_or_else(|| PrivateKeySigner::random().address()),
        amount: U256::from(options.amount),
        parts: Vec::new(),
    };
    run.supported().await;
    run.verifies().await;
    if !options.dry_run {
        run.settles(options.rpc_url).await;
    }
    Ok(report(&run.parts, options.json))
}

fn report(parts: &[Part], as_json: bool) -> ExitCode {
    let number = |verdict| parts.iter().filter(|part| part.verdict == verdict).count();
    let (kept, lacks, wrong) = (
        number(Verdict::Ok),
        number(Verdict::Lacks),
        number(Verdict::Wrong),
    );
    if as_json {
        say(&json!({"parts": parts, "ok": kept, "lacks": lacks, "wrong": wrong}).to_string());
    } else {
        let mut rows = vec![row(["", "PART", "EXPECTED", "CAME"])];
        rows.extend(parts.iter().map(|part| {
            let word = match part.verdict {
                Verdict::Ok => "ok",
                Verdict::Lacks => "lacks",
                Verdict::Wrong => "WRONG",
            };
            row([word, &part.part, &part.expected, &part.came])
        }));
        say(&format!(
            "{}\n{kept} ok, {lacks} lacks, {wrong} wrong",
            aligned(&rows)
        ));
    }
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Run {
    fn add(&mut self, part: &str, verdict: Verdict, expected: &str, came: &str) {
        self.parts.push(Part {
            part: part.to_owned(),
            verdict,
            expected: expected.to_owned(),
            came: escaped_start(came, SHOWN_MAX),
        });
    }

    fn judge(&mut self, part: &str, expected: &str, came: &Came, holds: impl Fn(&Value) -> bool) {
        let (verdict, text) = match came {
            Ok((200, body)) if holds(body) => (Verdict::Ok, body.to_string()),
            Ok((status, body)) => (Verdict::Wrong, format!("{status} {body}")),
            Err(why) => (Verdict::Wrong, why.clone()),
        };
        self.add(part, verdict, expected, &text);
    }

    async fn supported(&mut self) {
        let sent = self
            .http
            .get(format!("{}/supported", self.base))
            .send()
            .await;
        let came = read(sent).await;
        let is_kinds = |body: &Value| {
            let kinds = body.get("kinds").and_then(Value::as_array);
            kinds.is_some_and(|kinds| {
                kinds.iter().all(|kind| {
                    kind.get("x402Version").is_some_and(Value::is_u64)
                        && ["scheme", "network"]
                            .iter()
                            .all(|name| kind.get(*name).is_some_and(Value::is_string))
                })
            })
        };
        self.judge(
            "supported",
            "kinds with x402Version, scheme, network",
            &came,
            is_kinds,
        );
        let Ok((_, body)) = &came else { return };
        for (part, kind) in [
            (
                "extensions",
                body.get("extensions").is_some_and(Value::is_array),
            ),
            ("signers", body.get("signers").is_some_and(Value::is_object)),
        ] {
            let verdict = if kind { Verdict::Ok } else { Verdict::Lacks };
            self.add(
                &format!("supported: {part}"),
                verdict,
                part,
                if kind { "given" } else { "not given" },
            );
        }
        let v1 = self.network.v1_name().unwrap_or_default().to_owned();
        for (version, network) in [(2, self.network.to_string()), (1, v1)] {
            let found = body
                .get("kinds")
                .and_then(Value::as_array)
                .is_some_and(|kinds| {
                    kinds.iter().any(|kind| {
                        kind.get("x402Version") == Some(&json!(version))
                            && kind.get("scheme") == Some(&json!("exact"))
                            && kind.get("network") == Some(&json!(network))
                    })
                });
            let verdict = if found { Verdict::Ok } else { Verdict::Lacks };
            self.add(
                &format!("supported: exact v{version}"),
                verdict,
                &network,
                if found { "announced" } else { "not announced" },
            );
        }
    }

    /// A payment that is valid but for what `change` does to it before it is signed.
    fn signed(
        &self,
        key: &PrivateKeySigner,
        change: impl FnOnce(&mut Authorization),
    ) -> Result<Value, String> {
        let until = SystemClock.now().unix_timestamp().saturating_add(VALID_FOR);
        let mut authorization = Authorization {
            from: key.address(),
            to: self.pay_to,
            value: Amount::from_atomic(self.amount),
            valid_after: Amount::ZERO,
            valid_before: seconds(until),
            nonce: B256::random(),
        };
        change(&mut authorization);
        let separator = DomainSeparator::of_token(
            self.asset.name,
            self.asset.version,
            self.network,
            self.asset.address,
        );
        let signature = key.sign_digest(authorization.digest(separator))?;
        Ok(json!({"signature": signature, "authorization": authorization}))
    }

    fn v2(&self, payload: &Value, scheme: &str, network: &str) -> Value {
        let required = json!({"scheme": scheme, "network": network, "amount": self.amount.to_string(), "asset": self.asset.address,
            "payTo": self.pay_to, "maxTimeoutSeconds": VALID_FOR, "extra": {"name": self.asset.name, "version": self.asset.version}});
        json!({"x402Version": 2, "paymentPayload": {"x402Version": 2, "payload": payload, "accepted": required}, "paymentRequirements": required})
    }

    fn v1(&self, payload: &Value, network: &str) -> Value {
        let required = json!({"scheme": "exact", "network": network, "maxAmountRequired": self.amount.to_string(), "asset": self.asset.address,
            "payTo": self.pay_to, "maxTimeoutSeconds": VALID_FOR, "resource": "https://seller.example/report", "description": "report",
            "mimeType": "application/json", "extra": {"name": self.asset.name, "version": self.asset.version}});
        json!({"x402Version": 1, "paymentPayload": {"x402Version": 1, "scheme": "exact", "network": network, "payload": payload}, "paymentRequirements": required})
    }

    async fn post(&self, path: &str, body: Value) -> Came {
        let sent = self
            .http
            .post(format!("{}/{path}", self.base))
            .json(&body)
            .send()
            .await;
        read(sent).await
    }

    async fn verifies(&mut self) {
        let (key, network) = (self.key.clone(), self.network.to_string());
        let valid = |body: &Value| body.get("isValid") == Some(&json!(true));
        let Ok(good) = self.signed(&key, |_| ()) else {
            return;
        };
        let came = self.post("verify", self.v2(&good, "exact", &network)).await;
        self.judge("verify v2: valid", "isValid true", &came, valid);
        if let Some(name) = self.network.v1_name() {
            let came = self.post("verify", self.v1(&good, name)).await;
            self.judge("verify v1: valid", "isValid true", &came, valid);
        }
        let now = SystemClock.now().unix_timestamp();
        let poor = PrivateKeySigner::random();
        let changed = [
            (
                "wrong recipient",
                "recipient_mismatch",
                self.signed(&key, |one| one.to = Address::repeat_byte(0x22)),
            ),
            (
                "wrong amount",
                "value",
                self.signed(&key, |one| one.value = Amount::from_atomic(U256::from(1))),
            ),
            (
                "expired",
                "valid_before",
                self.signed(&key, |one| one.valid_before = seconds(now - 60)),
            ),
            (
                "not yet valid",
                "valid_after",
                self.signed(&key, |one| one.valid_after = seconds(now + 200)),
            ),
            (
                "insufficient balance",
                "insufficient_balance",
                self.signed(&poor, |_| ()),
            ),
            (
                "tampered signature",
                "signature",
                self.signed(&poor, |one| one.from = key.address()),
            ),
        ];
        for (part, code, payload) in changed {
            let Ok(payload) = payload else { continue };
            let came = self
                .post("verify", self.v2(&payload, "exact", &network))
                .await;
            self.rejected(part, code, &came);
        }
        for (part, scheme, network) in [
            ("wrong network", "exact", "eip155:424242424242"),
            ("unknown scheme", "nonsense", network.as_str()),
        ] {
            let came = self.post("verify", self.v2(&good, scheme, network)).await;
            self.rejected(part, "", &came);
        }
        let came = self.post("verify", json!({"x402Version": 2})).await;
        let refused = matches!(&came, Ok((400..=499, _)))
            || matches!(&came, Ok((200, body)) if is_refusal(body, ""));
        let verdict = if refused { Verdict::Ok } else { Verdict::Wrong };
        let text = came.map_or_else(|why| why, |(status, body)| format!("{status} {body}"));
        self.add(
            "verify: malformed body",
            verdict,
            "400, or isValid false",
            &text,
        );
    }

    fn rejected(&mut self, part: &str, code: &str, came: &Came) {
        self.judge(
            &format!("verify v2: {part}"),
            &format!("200, isValid false, invalidReason with {code:?}"),
            came,
            |body| is_refusal(body, code),
        );
    }

    async fn settles(&mut self, rpc_url: Option<String>) {
        let (key, network) = (self.key.clone(), self.network.to_string());
        let Ok(forged) = self.signed(&PrivateKeySigner::random(), |one| one.from = key.address())
        else {
            return;
        };
        let came = self
            .post("settle", self.v2(&forged, "exact", &network))
            .await;
        self.judge(
            "settle: tampered signature",
            "success false, errorReason, transaction, network",
            &came,
            |body| {
                body.get("success") == Some(&json!(false))
                    && ["errorReason", "transaction", "network"]
                        .iter()
                        .all(|name| body.get(*name).is_some_and(Value::is_string))
            },
        );
        let Ok(good) = self.signed(&key, |_| ()) else {
            return;
        };
        let body = self.v2(&good, "exact", &network);
        let first = self.post("settle", body.clone()).await;
        self.judge(
            "settle: valid",
            "success true, transaction, network",
            &first,
            |body| {
                body.get("success") == Some(&json!(true))
                    && hash_of(body).is_some()
                    && body.get("network") == Some(&json!(network))
            },
        );
        let Some(hash) = first.as_ref().ok().and_then(|(_, body)| hash_of(body)) else {
            return;
        };
        let again = self.post("settle", body).await;
        self.judge(
            "settle: the same again",
            "no other transaction",
            &again,
            |body| {
                body.get("success").is_some_and(Value::is_boolean)
                    && hash_of(body).is_none_or(|other| other == hash)
            },
        );
        if let Some(url) = rpc_url {
            let found = self.transfer(url, hash).await;
            let verdict = if found.is_ok() {
                Verdict::Ok
            } else {
                Verdict::Wrong
            };
            self.add(
                "settle: on chain",
                verdict,
                "one exact Transfer",
                &found.unwrap_or_else(|why| why),
            );
        }
    }

    async fn transfer(&self, url: String, hash: B256) -> Result<String, String> {
        let urls = [url];
        let endpoints = Endpoints {
            urls: &urls,
            send_urls: &[],
            calls_per_second: None,
            confirm_with: 1,
        };
        let rpc = Rpc::new(self.network, endpoints).map_err(|error| error.to_string())?;
        rpc.check_chain().await.map_err(|error| error.to_string())?;
        let receipt = rpc.receipt(hash).await.map_err(|error| error.to_string())?;
        let receipt = receipt.ok_or("no receipt of the transaction")?;
        let topics = [
            TRANSFER,
            self.key.address().into_word(),
            self.pay_to.into_word(),
        ];
        let exact = receipt.logs.iter().filter(|log| {
            log.address == self.asset.address
                && log.topics == topics
                && log.data[..] == self.amount.to_be_bytes::<32>()
        });
        match exact.count() {
            1 => Ok(format!("{hash}")),
            number => Err(format!("{number} such transfers in {hash}")),
        }
    }
}

fn seconds(at: i64) -> Amount {
    Amount::from_atomic(U256::from(u64::try_from(at).unwrap_or_default()))
}

fn hash_of(body: &Value) -> Option<B256> {
    body.get("transaction")?.as_str()?.parse().ok()
}

fn is_refusal(body: &Value, code: &str) -> bool {
    let reason = body.get("invalidReason").and_then(Value::as_str);
    body.get("isValid") == Some(&json!(false))
        && reason.is_some_and(|reason| !reason.is_empty() && reason.contains(code))
}

/// Reads an answer within limits. No error repeats the URL.
async fn read(sent: Result<Response, reqwest::Error>) -> Came {
    let mut response = sent.map_err(|error| format!("no answer: {}", error.without_url()))?;
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| error.without_url().to_string())?
    {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(format!("{status}, and more than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    let json = serde_json::from_slice(&bytes);
    json.map(|body| (status, body))
        .map_err(|_| format!("{status}, and no JSON"))
}
