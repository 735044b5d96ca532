//! The tables of `docs/configuration.md`: written here, held against the types and the limits that they speak of, and compared with the page.

use std::fmt::Display;

use crate::config::file::File;
use crate::config::tests::{base_sepolia, flags_with};
use crate::config::variables::KNOWN;
use crate::config::{Config, Flags};
use crate::protocol::networks::NETWORKS;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

/// Tables of the file, which the tables of the page are about.
const SERVICE: &str = "";
const LIMITS: &str = "[limits]";
const ACCESS: &str = "[access]";
const SESSIONS: &str = "[sessions]";
const NETWORK: &str = "[networks.base-sepolia]";
const APPROVALS: &str = "[networks.base-sepolia.approvals]";
const BUDGET: &str = "[networks.base-sepolia.budget]";
const ASSETS: &str = "[[networks.base-sepolia.assets]]";
/// Not in the file.
const VARIABLES: &str = "variables";

/// Variables by which tests break the process: not in a release.
const OF_TESTS: [&str; 6] = [
    "X402D_FAILPOINT",
    "X402D_GRANTS_LOST",
    "X402D_PANIC",
    "X402D_PANICS",
    "X402D_SIGNERS_DOWN",
    "X402D_TIMES_SHORTER",
];

/// Key, variable, default, allowed values, meaning.
type Setting = [&'static str; 5];

/// Name of the table on the page, table of the file, settings: one on a line.
#[rustfmt::skip]
const GROUPS: &[(&str, &str, &[Setting])] = &[
    ("service", SERVICE, &[
        ["listen", "X402D_LISTEN", "127.0.0.1:4402", "IP address and port", "Where to listen."],
        ["metrics_listen", "X402D_METRICS_LISTEN", "none", "IP address and port", "Where `GET /metrics` is served as well, to whoever reaches it: without a key, and with nothing else. `/metrics` of `listen` stays the operator's."],
        ["database_url", "DATABASE_URL", "a private Postgres", "`postgres://…`", "The ledger."],
        ["data_dir", "X402D_DATA_DIR", "see below", "a folder", "Where the private Postgres and the buyer's journal are."],
        ["admin_token", "X402D_ADMIN_TOKEN", "none", "16 visible ASCII characters or more", "The operator's token. Without it and without a key of scope `admin`: programs on the machine itself."],
        ["settle_wait_s", "X402D_SETTLE_WAIT", "20", "1 to 25", "Seconds until `/settle` answers `settlement_pending`. SDKs give up after 30."],
        ["verify_lease_s", "", "10", "1 to 3600", "Seconds for which a `/verify` of a payment under way keeps others out."],
        ["body_bytes_max", "", "65536", "1024 to 1048576", "The longest body of a request, in bytes."],
        ["connections_max", "", "8192", "1 to 1000000", "Connections of callers at a time. Further ones are refused (503)."],
        ["connections_max_per_client", "", "256", "1 to 1000000", "Connections of one client address (IPv6: of one /56)."],
        ["connections_max_per_proxy", "", "4096", "1 to 1000000", "Connections of one trusted proxy, or of one loopback address."],
        ["trusted_proxies", "X402D_TRUSTED_PROXIES", "none", "addresses and networks such as \"10.0.0.0/8\"", "Proxies that say for whom they ask, in `X-Forwarded-For` or `Forwarded`."],
        ["database_connections_max", "", "32", "1 to 10000", "Connections of this process to the database at most."],
    ]),
    ("callers", ACCESS, &[
        ["settle", "", "\"open\" if every network is a test network, else \"keys\"", "\"open\" or \"keys\"", "Who may verify and settle: everybody, or holders of a key."],
    ]),
    ("limits", LIMITS, &[
        ["verify_per_second", "", "50", "1 to 1000000", "Calls of `/verify` and `/status` a second of one key, or of one client address (IPv6: /56) without a key. Four seconds' worth may come at once."],
        ["settle_per_second", "", "20", "1 to 1000000", "The same for `/settle` and for submissions for sessions. Never refused for it: a payment that the ledger knows, or that its caller was told is valid within `verify_lease_s`. Requests of all kinds together have four times the sum of the three rates."],
        ["sessions_per_second", "", "2", "1 to 1000000", "The same for sessions opened."],
        ["unattended_per_caller", "", "256", "1 to 1000000", "Settlements that a caller has left behind by disconnecting. While so many are under way, its further ones get 503 with `Retry-After`."],
        ["waits_per_caller", "", "32", "1 to 1000000", "Reads of sessions that wait (`wait`) at a time. Further ones get 429."],
        ["deny_list", "", "none", "a file", "Addresses that may neither pay nor be paid, one a line, `#` for comments. Read again when it changes; while it cannot be read, the addresses read before stay denied."],
        ["policy_url", "", "none", "http or https URL", "A service of yours that is asked about each new payment: see below."],
        ["policy_fail", "", "\"closed\"", "\"closed\" or \"open\"", "What happens while it does not answer within 500 ms: callers get 503, or payments are admitted."],
    ]),
    ("sessions", SESSIONS, &[
        ["open_max", "", "100000", "1 to 10000000", "Open sessions in total."],
        ["open_max_per_client", "", "200", "1 to 10000000", "Open sessions per client address (IPv6: per /56)."],
        ["open_max_per_party", "", "50", "1 to 10000000", "Open sessions per client address and payer, and per client address and payee. Beyond that the oldest one ends."],
        ["sponsor", "", "false", "true or false", "Whether gas is paid on a mainnet before the seller asks."],
        ["sponsor_minimum", "", "\"0.01\"", "dollars", "Lowest price for which gas is paid before the seller asks."],
    ]),
    ("access", NETWORK, &[
        ["rpc_urls", "X402D_RPC_URL", "required", "http or https URLs", "RPC endpoints. They are used together."],
        ["signer_keys", "X402D_SIGNER_KEYS", "required", "private keys, each once", "Private keys of the accounts that pay for gas. Several send in parallel."],
        ["signer_keys_file", "X402D_SIGNER_KEYS_FILE", "none", "a file that only its owner can read", "The same keys in a file, one on a line, in place of `signer_keys`. A file that others can read is refused."],
        ["signer_keystores", "X402D_SIGNER_KEYSTORES", "none", "files", "Encrypted keystores (Web3 v3 JSON, as geth and foundry write it), beside or in place of `signer_keys`. Each takes about a second to open."],
        ["signer_keystore_password_file", "X402D_SIGNER_KEYSTORE_PASSWORD_FILE", "none", "a file that only its owner can read", "Its first line is the password of all `signer_keystores`."],
        ["signer_aws_kms", "X402D_SIGNER_AWS_KMS", "none", "`0xADDRESS=KEY`", "Keys that AWS KMS keeps (`ECC_SECG_P256K1`), by id, alias or ARN, with the account of each. Needs a build with `--features aws`."],
        ["payees", "X402D_PAYEES", "anybody on test networks", "addresses", "Who may be paid. Required unless the network is known as a test network."],
        ["minimum_dollars", "", "0 on test networks, \"0.10\" on Ethereum, else \"0.001\"", "dollars", "The smallest payment in a token that x402d knows: each of them is worth a dollar. `/supported` gives it as `extra.minimumAmounts`."],
        ["eip6492_factories", "X402D_EIP6492_FACTORIES", "none", "addresses", "Factories that may deploy a payer's wallet at your cost. Needs `gas_cap` of 450000 or more."],
        ["confirmations", "X402D_CONFIRMATIONS", "the network's", "1 to 1000", "Confirmations that make a payment settled. Its own block is the first."],
    ]),
    ("endpoints", NETWORK, &[
        ["send_urls", "", "none", "http or https URLs", "Endpoints that get every transaction and are asked nothing, such as a sequencer or a private relay."],
        ["rpc_calls_per_second", "", "no limit", "5 or more", "Calls to all endpoints of the network together. Reads wait for their turn, sends do not."],
        ["confirm_with", "", "2 on mainnets with several `rpc_urls`, else 1", "1 to the number of `rpc_urls`", "How many endpoints must show the same receipt in the same block."],
        ["poll_ms", "", "150", "20 to 10000", "Milliseconds between looks for a new block while something is in flight."],
    ]),
    ("window", NETWORK, &[
        ["validity_min_s", "", "6", "less than `validity_max_s`", "Seconds for which an authorization must still be valid."],
        ["validity_max_s", "", "691200", "more than `validity_min_s`", "Seconds for which it may be valid (8 days). `/supported` gives it as `extra.maxTimeoutSeconds`."],
    ]),
    ("fees", NETWORK, &[
        ["max_fee_wei", "", "the network's", "wei per gas", "What gas may cost at most, tip included. While blocks cost more, callers get 503 with the price."],
        ["priority_fee_wei", "", "1000000", "at most `max_fee_wei`", "The least tip, in wei per gas (0.001 gwei)."],
        ["gas_cap", "", "500000", "100000 to 5000000", "Gas of one payment at most."],
        ["wallet_gas_cap", "", "200000", "50000 to `gas_cap`", "The same for a payer whose account has code (a deployed smart wallet, or EIP-7702)."],
    ]),
    ("load", NETWORK, &[
        ["queue_max", "", "8192", "1 to 1000000", "Payments that may wait in memory."],
        ["queue_max_per_payer", "", "64", "1 to 1000000", "The same of one payer. Further ones get 503 with `Retry-After`."],
        ["inflight_max", "", "12", "1 to 64", "Unmined transactions of one signer. Nodes keep about 16 of one sender."],
        ["batch_wait_ms", "", "200", "0 to 5000", "Milliseconds for which a payment waits for others while transactions are under way."],
        ["batch_rows_max", "", "190 (Arbitrum 150)", "1 to 190", "Payments in one transaction at most."],
        ["batch_gas_max", "", "15000000", "1000000 to 16000000", "Gas of a transaction with several payments at most."],
    ]),
    ("budget", BUDGET, &[
        ["wei_per_day", "", "no limit", "wei, or text such as \"0.01eth\"", "What all transactions of the network may cost in 24 hours."],
        ["wei_per_day_per_payee", "", "no limit", "wei, or text such as \"0.01eth\"", "What the payments to one payee may cost of it."],
        ["wei_per_day_per_payer", "", "no limit", "wei, or text such as \"0.01eth\"", "What the payments of one payer may cost of it, with gas money for its approvals."],
    ]),
    ("approvals", APPROVALS, &[
        ["wei_per_payer", "", "required", "at most `wei_per_day`", "Wei that one payer may be given in 24 hours."],
        ["wei_per_day", "", "required", "wei", "Wei that all payers together may be given in 24 hours."],
    ]),
    ("assets", ASSETS, &[
        ["address", "", "required", "an address", "The token's contract."],
        ["name", "", "required", "text", "Its EIP-712 name, as the contract has it."],
        ["version", "", "required", "text", "Its EIP-712 version, as the contract has it."],
        ["decimals", "", "required", "a number", "Its decimals, as the contract has them."],
        ["transfer_method", "", "what is known of the token, else \"eip3009\"", "\"eip3009\" or \"permit2\"", "How it is paid with unless a seller says otherwise."],
        ["minimum_units", "", "`minimum_dollars` for tokens that x402d knows, required for others on mainnets", "a number", "The smallest payment in the token's smallest unit."],
        ["eip2612", "", "what is known of it, else true for version \"2\" by EIP-3009", "true or false", "Whether it has EIP-2612 (`permit`)."],
    ]),
    ("variables", VARIABLES, &[
        ["", "X402D_NETWORK", "none", "CAIP-2 or a name", "One network without a file; the variables above are about it. It overrides the file's entry of the same network."],
        ["", "X402D_LOG", "info, and warnings of libraries", "a filter such as `x402d=debug,warn`", "What is logged."],
        ["", "X402D_BUYER_KEY", "none", "a private key", "`x402d pay` and `x402d conformance`: who pays."],
        ["", "X402D_BUYER_RPC_URL", "none", "a URL", "`x402d pay`: an RPC endpoint of `--network`."],
        ["", "X402D_KEYSTORE_PASSWORD", "none", "text", "`x402d pay`: the password of `--keystore`."],
    ]),
];

fn settings_of(table: &str) -> impl Iterator<Item = &'static Setting> {
    let groups = GROUPS.iter().filter(move |(_, of, _)| *of == table);
    groups.flat_map(|(.., settings)| settings.iter())
}

/// The keys of a table of the file, as the type that reads it names them when it meets another one.
fn keys_read(table: &str) -> Vec<String> {
    let error = toml::from_str::<File>(&format!("{table}\nunheard_of = 1\n"));
    let message = error.err().unwrap().message().to_owned();
    let named = message.split('`').skip(3).step_by(2);
    let tables = [
        "access",
        "limits",
        "sessions",
        "networks",
        "approvals",
        "budget",
        "assets",
    ];
    let keys = named.filter(|key| !tables.contains(key));
    keys.map(str::to_owned).collect()
}

#[test]
fn every_key_and_variable_that_is_read_is_on_the_page() {
    for table in [
        SERVICE, ACCESS, LIMITS, SESSIONS, NETWORK, APPROVALS, BUDGET, ASSETS,
    ] {
        let (mut listed, mut read): (Vec<&str>, _) = (
            settings_of(table).map(|[key, ..]| *key).collect(),
            keys_read(table),
        );
        listed.sort_unstable();
        read.sort_unstable();
        assert_eq!(listed, read, "{table}");
    }
    let settings = GROUPS.iter().flat_map(|(.., settings)| settings.iter());
    let named = settings.map(|[_, variable, ..]| *variable);
    let mut listed: Vec<&str> = named
        .filter(|variable| variable.starts_with("X402D_"))
        .collect();
    listed.extend(OF_TESTS);
    listed.sort_unstable();
    assert_eq!(listed, KNOWN);
}

#[test]
fn defaults_are_those_of_the_page() {
    let config = Config::read(&Flags::default(), &base_sepolia()).unwrap();
    let (sessions, network) = (&config.sessions, &config.networks[0]);
    let policy = &network.policy;
    let actual: [(&str, &dyn Display); 27] = [
        ("listen", &config.listen),
        ("settle_wait_s", &config.settle_wait.as_secs()),
        ("verify_lease_s", &config.verify_lease_s),
        ("body_bytes_max", &config.body_bytes_max),
        ("connections_max", &config.connections.max),
        (
            "connections_max_per_client",
            &config.connections.max_per_client,
        ),
        (
            "connections_max_per_proxy",
            &config.connections.max_per_proxy,
        ),
        ("database_connections_max", &config.database_connections_max),
        ("open_max", &sessions.open_max),
        ("open_max_per_client", &sessions.open_max_per_client),
        ("open_max_per_party", &sessions.open_max_per_party),
        ("verify_per_second", &config.limits.verify_per_second),
        ("settle_per_second", &config.limits.settle_per_second),
        ("sessions_per_second", &config.limits.sessions_per_second),
        ("validity_min_s", &policy.validity_min.whole_seconds()),
        ("validity_max_s", &policy.validity_max.whole_seconds()),
        ("priority_fee_wei", &network.fees.priority_fee_wei),
        ("gas_cap", &network.fees.gas_cap),
        ("wallet_gas_cap", &network.fees.wallet_gas_cap),
        ("queue_max", &network.queue_max),
        ("queue_max_per_payer", &network.queue_max_per_payer),
        (
            "unattended_per_caller",
            &config.limits.unattended_per_caller,
        ),
        ("waits_per_caller", &config.limits.waits_per_caller),
        ("inflight_max", &network.inflight_max),
        ("poll_ms", &network.poll.as_millis()),
        ("batch_wait_ms", &network.batch_wait.as_millis()),
        ("batch_gas_max", &network.batch_gas_max),
    ];
    let settings = || GROUPS.iter().flat_map(|(.., settings)| settings.iter());
    for (key, value) in actual {
        let listed = settings().find(|[name, ..]| *name == key).unwrap();
        assert_eq!(listed[2], value.to_string(), "{key}");
    }
}

#[test]
fn limits_are_those_of_the_page() {
    for (_, table, settings) in GROUPS {
        for [key, _, _, allowed, _] in *settings {
            let limits = allowed.split_once(" to ");
            let limits = limits.map(|(least, most)| (least.parse::<u64>(), most.parse::<u64>()));
            let Some((Ok(least), Ok(most))) = limits else {
                continue;
            };
            let values = [
                (least.checked_sub(1), false),
                (Some(least), true),
                (Some(most), true),
                (most.checked_add(1), false),
            ];
            for (value, good) in values {
                let Some(value) = value else { continue };
                let (flags, _file) = flags_with(&format!("{table}\n{key} = {value}\n"));
                match Config::read(&flags, &base_sepolia()) {
                    Ok(_) => assert!(good, "{key} = {value} is taken"),
                    Err(error) => assert!(!good && error.to_string().contains(key), "{error}"),
                }
            }
        }
    }
}

#[test]
fn the_page_is_fresh() {
    let kept = std::fs::read_to_string(PAGE).unwrap();
    let mut tables: Vec<_> = GROUPS
        .iter()
        .map(|(name, _, settings)| (*name, settings_table(settings)))
        .collect();
    tables.push(("networks", networks_table()));
    let page = tables
        .iter()
        .fold(kept, |page, (name, table)| with_table(&page, name, table));
    if std::env::var_os("X402D_WRITE_DOCS").is_some_and(|wish| wish == "1") {
        std::fs::write(PAGE, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(PAGE).unwrap() == page,
        "docs/configuration.md is stale; X402D_WRITE_DOCS=1 cargo test --lib config regenerates it"
    );
}

/// The page with another text between the marks of a table.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin {name} -->\n"),
        format!("<!-- end {name} -->"),
    );
    let (before, rest) = page.split_once(&begin).expect(&begin);
    let (_, after) = rest.split_once(&end).expect(&end);
    format!("{before}{begin}{table}{end}{after}")
}

fn settings_table(settings: &[Setting]) -> String {
    let code = |text: &str| {
        if text.is_empty() {
            String::new()
        } else {
            format!("`{text}`")
        }
    };
    let rows = settings
        .iter()
        .map(|[key, variable, default, allowed, meaning]| {
            let default = if default.parse::<u64>().is_ok() {
                code(default)
            } else {
                (*default).to_owned()
            };
            vec![
                code(key),
                code(variable),
                default,
                (*allowed).to_owned(),
                (*meaning).to_owned(),
            ]
        });
    table(
        &["key", "variable", "default", "allowed", "meaning"],
        rows.collect(),
    )
}

fn networks_table() -> String {
    let rows = NETWORKS.iter().map(|known| {
        let network = known.network();
        vec![
            known.name.to_owned(),
            format!("`{network}`"),
            known
                .names
                .iter()
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", "),
            if known.test { "test" } else { "main" }.to_owned(),
            known.native_symbol.to_owned(),
            known.confirmations.to_string(),
            (network.default_fee_cap_wei() / 1_000_000_000).to_string(),
        ]
    });
    let titles = [
        "network",
        "CAIP-2",
        "names",
        "money",
        "gas in",
        "confirmations",
        "`max_fee_wei` in gwei",
    ];
    table(&titles, rows.collect())
}

/// A table of Markdown. Columns with nothing in them are left out, and all but the last are padded.
fn table(titles: &[&str], mut rows: Vec<Vec<String>>) -> String {
    rows.insert(0, titles.iter().map(|title| (*title).to_owned()).collect());
    let used = |column: &usize| rows.iter().skip(1).any(|row| !row[*column].is_empty());
    let columns: Vec<usize> = (0..titles.len()).filter(used).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let padded = |column: &usize| {
        if Some(column) == columns.last() {
            0
        } else {
            width(*column).unwrap_or_default()
        }
    };
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = columns.iter().map(|column| {
            let width = padded(column);
            format!("| {:<width$} ", row[*column])
        });
        text.extend(cells);
        text.push_str("|\n");
        if number == 0 {
            let lines = columns
                .iter()
                .map(|column| format!("|{}", "-".repeat(padded(column).max(1) + 2)));
            text.extend(lines);
            text.push_str("|\n");
        }
    }
    text
}
