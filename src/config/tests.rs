use std::collections::HashMap;
use std::io::Write as _;

mod reference;

use super::*;
use crate::protocol::assets::TransferMethod;

impl<S: std::hash::BuildHasher> Environment for HashMap<&str, &str, S> {
    fn get(&self, name: &str) -> Option<String> {
        HashMap::get(self, name).map(|value| (*value).to_owned())
    }

    fn names(&self) -> Vec<String> {
        self.keys().map(|name| (*name).to_owned()).collect()
    }
}

const PAYEE: &str = "0x2222222222222222222222222222222222222222";
const KEY: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";

pub(super) fn base_sepolia() -> HashMap<&'static str, &'static str> {
    HashMap::from([
        ("X402D_NETWORK", "base-sepolia"),
        (
            "X402D_RPC_URL",
            "https://rpc.example/secret-path, http://127.0.0.1:8545",
        ),
        ("X402D_SIGNER_KEYS", KEY),
    ])
}

pub(super) fn flags_with(text: &str) -> (Flags, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    (
        Flags {
            file: Some(file.path().to_owned()),
            ..Flags::default()
        },
        file,
    )
}

#[test]
fn three_variables_configure_a_test_network() {
    let config = Config::read(&Flags::default(), &base_sepolia()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:4402");
    assert_eq!(config.settle_wait, Duration::from_secs(20));
    let network = &config.networks[0];
    assert_eq!(network.policy.network.to_string(), "eip155:84532");
    assert_eq!(network.rpc_urls.len(), 2);
    assert_eq!(network.policy.assets[0].name, "USDC");
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("secret-path")
            && !shown.contains("1111111111111111111111111111111111111111111111111111111111111111")
    );
}

/// An address with a checksum must have the right one: a mistyped digit would pay another account.
#[test]
fn address_with_wrong_checksum_is_refused() {
    for (payee, is_valid) in [
        ("0x209693Bc6afc0C5328bA36FaF03C514EF312287C", true),
        ("0x209693bc6afc0c5328ba36faf03c514ef312287c", true),
        ("0x209693Bc6afc0C5328bA36FaF03C514EF312287D", false),
        ("0x209693bc6afc0C5328bA36FaF03C514EF312287C", false),
    ] {
        let mut environment = base_sepolia();
        environment.insert("X402D_PAYEES", payee);
        let read = Config::read(&Flags::default(), &environment);
        let result = read.map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(result.is_ok(), is_valid, "{payee}: {result:?}");
        let is_named = result
            .is_err_and(|error| error.contains("(X402D_PAYEES)[0]: expected an address whose"));
        assert_eq!(is_named, !is_valid, "{payee}");
    }
}

#[test]
fn migrate_needs_a_database_and_known_variables() {
    let read = |variables: &[(&'static str, &'static str)]| {
        let environment: HashMap<_, _> = variables.iter().copied().collect();
        let read = Config::read_database(&Flags::default(), &environment);
        read.map(|_| ()).map_err(|error| error.to_string())
    };
    let url = ("DATABASE_URL", "postgres://localhost/x402d");
    assert_eq!(read(&[url]), Ok(()));
    assert!(read(&[]).unwrap_err().contains("DATABASE_URL: expected"));
    let misspelt = ("X402D_NETWROK", "base");
    assert!(
        read(&[url, misspelt])
            .unwrap_err()
            .contains("X402D_NETWORK?")
    );
}

#[test]
fn mainnet_or_unknown_chain_without_payees_is_refused() {
    for network in ["base", "eip155:8453", "eip155:987654321"] {
        let mut environment = base_sepolia();
        environment.insert("X402D_NETWORK", network);
        let error = Config::read(&Flags::default(), &environment)
            .unwrap_err()
            .to_string();
        assert!(error.contains("X402D_PAYEES"), "{error}");
    }
    let mut environment = base_sepolia();
    environment.insert("X402D_NETWORK", "base");
    environment.insert("X402D_PAYEES", "0x2222222222222222222222222222222222222222");
    assert!(Config::read(&Flags::default(), &environment).is_ok());
}

#[test]
fn all_problems_are_reported_and_no_secret_is_repeated() {
    let mut environment = base_sepolia();
    environment.insert("X402D_SIGNER_KEYS", "0xdeadbeefsecret");
    environment.insert("X402D_LISTEN", "nowhere");
    environment.insert("X402D_SETTLE_WAIT", "600");
    environment.insert("X402D_RPC_URL", "wss://node/secret");
    let error = Config::read(&Flags::default(), &environment)
        .unwrap_err()
        .to_string();
    for key in [
        "X402D_LISTEN",
        "X402D_SETTLE_WAIT",
        "signer_keys[0]",
        "X402D_RPC_URL",
    ] {
        assert!(error.contains(key), "{key} is missing in {error}");
    }
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn unknown_key_in_file_is_refused_with_its_line() {
    let (flags, _file) = flags_with("listen = \"127.0.0.1:1\"\nsetle_wait_s = 3\n");
    let error = Config::read(&flags, &base_sepolia())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2") && error.contains("setle_wait_s"),
        "{error}"
    );
}

#[test]
fn flags_override_environment_which_overrides_file() {
    let (mut flags, _file) = flags_with(
        "listen = \"127.0.0.1:1\"\nsettle_wait_s = 3\n[networks.base-sepolia]\nconfirmations = 7\n",
    );
    let mut environment = base_sepolia();
    assert_eq!(Config::read(&flags, &environment).unwrap().listen.port(), 1);
    environment.insert("X402D_LISTEN", "127.0.0.1:2");
    environment.insert("X402D_SETTLE_WAIT", "4");
    let config = Config::read(&flags, &environment).unwrap();
    assert_eq!((config.listen.port(), config.settle_wait.as_secs()), (2, 4));
    assert_eq!(
        config.networks[0].policy.confirmations, 7,
        "the file's entry is completed, not replaced"
    );
    flags.listen = Some("127.0.0.1:3".parse().unwrap());
    assert_eq!(Config::read(&flags, &environment).unwrap().listen.port(), 3);
}

#[test]
fn misplaced_values_in_file_are_not_repeated() {
    for line in [
        "admin_token = 5e5ec2e7",
        "admin_token = 5e5ec2e7secret",
        "admin_token = [\"5e5ec2e7\"]",
        "admin_token = \"5e5ec2e7",
        "admin_token = '5e5ec2e7\"",
        "admin_token = \"\\q5e5ec2e7\"",
        "database_url = { 5e5ec2e7 = 1 }",
        "settle_wait_s = \"5e5ec2e7\"",
        "settle_wait_s = -5e5ec2e7",
        "listen = \"5e5ec2e7\"",
        "networks = \"5e5ec2e7\"",
        "[networks.base-sepolia]\nsigner_keys = \"0x5e5ec2e7\"",
        "[networks.base-sepolia]\nsigner_keys = 0x5e5ec2e7",
        "[networks.base-sepolia]\nsigner_keys = [0x5e5ec2e7]",
        "[networks.base-sepolia]\nrpc_urls = \"https://rpc.example/5e5ec2e7, expected\"",
        "[networks.base-sepolia]\npoll_ms = \"5e5ec2e7\"",
    ] {
        let (flags, _file) = flags_with(&format!("{line}\n"));
        let error = Config::read(&flags, &base_sepolia());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line "), "{line}: {error}");
        let shown = ["5e5ec2e7", "1583268583", "5ec2e7"];
        assert!(
            shown.iter().all(|text| !error.contains(text)),
            "{line}: {error}"
        );
    }
    let (flags, _file) = flags_with("[networks.base-sepolia]\nsigner_keys = \"0x11\"\n");
    let error = Config::read(&flags, &base_sepolia());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("line 2") && error.contains("expected a list"),
        "says what was expected: {error}"
    );
}

#[test]
fn useless_admin_tokens_and_limits_are_refused() {
    for (line, key) in [
        ("admin_token = \"\"", "admin_token"),
        ("admin_token = \" \"", "admin_token"),
        ("admin_token = \"two words\"", "admin_token"),
        ("admin_token = \"sécret\"", "admin_token"),
        ("admin_token = \"fifteen-letters\"", "admin_token"),
        ("admin_token = \"change-me\"", "admin_token"),
        ("admin_token = \"change-me-change-me\"", "admin_token"),
        ("connections_max = 0", "connections_max"),
        ("connections_max = 9223372036854775807", "connections_max"),
        ("database_connections_max = 0", "database_connections_max"),
        ("verify_lease_s = 0", "verify_lease_s"),
        ("verify_lease_s = 4294967295", "verify_lease_s"),
    ] {
        let (flags, _file) = flags_with(&format!("{line}\n"));
        let error = Config::read(&flags, &base_sepolia());
        let error = error.map(drop).expect_err(line).to_string();
        assert!(
            error.contains(key) && error.contains("expected"),
            "{line}: {error}"
        );
    }
    let mut environment = base_sepolia();
    environment.insert("X402D_ADMIN_TOKEN", "a-long-enough-token\n");
    let error = Config::read(&Flags::default(), &environment).unwrap_err();
    assert!(!error.to_string().contains("a-long"), "{error}");
    environment.insert("X402D_ADMIN_TOKEN", "a-long-enough-token");
    assert!(
        Config::read(&Flags::default(), &environment)
            .unwrap()
            .admin_token
            .is_some()
    );
}

#[test]
fn strangers_settle_on_test_networks_unless_the_operator_says_otherwise() {
    let access = |name: &'static str, toml: &str, payees: &'static str| {
        let (flags, _file) = flags_with(toml);
        let mut environment = base_sepolia();
        environment.insert("X402D_NETWORK", name);
        environment.insert("X402D_PAYEES", payees);
        Config::read(&flags, &environment).map(|config| config.access)
    };
    let (open, keys) = (
        "[access]\nsettle = \"open\"\n",
        "[access]\nsettle = \"keys\"\n",
    );
    for (name, toml, expected) in [
        ("base-sepolia", "", AccessMode::Open),
        ("base-sepolia", keys, AccessMode::Keys),
        ("base", "", AccessMode::Keys),
        ("base", open, AccessMode::Open),
    ] {
        assert_eq!(
            access(name, toml, PAYEE).unwrap(),
            expected,
            "{name} {toml}"
        );
    }
    let error = access("base", open, "").unwrap_err().to_string();
    assert!(
        error.contains("access.settle") && error.contains("payees"),
        "{error}"
    );
    let error = access("base", "[access]\nsettle = \"everybody\"\n", PAYEE);
    assert!(error.unwrap_err().to_string().contains("line 2"));
}

/// A configuration of one network by the environment and a file.
fn network(name: &'static str, toml: &str) -> Result<NetworkConfig, ConfigError> {
    let (flags, _file) = flags_with(toml);
    let mut environment = base_sepolia();
    environment.insert("X402D_NETWORK", name);
    environment.insert("X402D_PAYEES", "0x2222222222222222222222222222222222222222");
    Config::read(&flags, &environment).map(|mut config| config.networks.remove(0))
}

#[test]
fn confirmations_default_to_the_network_and_can_be_set() {
    for (name, confirmations) in [
        ("base-sepolia", 1),
        ("base", 1),
        ("polygon", 2),
        ("monad", 3),
        ("arbitrum", 1),
        ("world", 1),
        ("mezo", 1),
    ] {
        let config = network(name, "").unwrap();
        assert_eq!(config.policy.confirmations, confirmations, "{name}");
        let toml = format!("[networks.{name}]\nconfirmations = 7\n");
        let config = network(name, &toml).unwrap();
        assert_eq!(config.policy.confirmations, 7, "{name}");
    }
    let error = network("nowhere", "").unwrap_err().to_string();
    assert!(error.contains("x402d networks"), "{error}");
}

#[test]
fn network_has_the_tokens_and_methods_of_the_table() {
    let only = |name| network(name, "").unwrap().policy.assets.remove(0);
    let usdc = only("arbitrum");
    assert_eq!((usdc.method, usdc.eip2612), (TransferMethod::Eip3009, true));
    let musd = only("mezo");
    assert_eq!(
        (musd.method, musd.eip2612, musd.decimals),
        (TransferMethod::Permit2, true, 18)
    );
    assert_eq!(network("celo", "").unwrap().policy.assets.len(), 3);
}

#[test]
fn token_method_is_configured_known_or_usual_for_its_version() {
    let table_usdc = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
    let unknown = "0x4444444444444444444444444444444444444444";
    let (by_itself, by_permit2) = (TransferMethod::Eip3009, TransferMethod::Permit2);
    for (address, version, settings, expected) in [
        (unknown, "2", "", (by_itself, true)),
        (unknown, "1", "", (by_itself, false)),
        (unknown, "1", "eip2612 = true", (by_itself, true)),
        (
            unknown,
            "2",
            "transfer_method = \"permit2\"",
            (by_permit2, false),
        ),
        (
            unknown,
            "1",
            "transfer_method = \"permit2\"\neip2612 = true",
            (by_permit2, true),
        ),
        (
            table_usdc,
            "2",
            "transfer_method = \"permit2\"",
            (by_permit2, true),
        ),
        (table_usdc, "2", "eip2612 = false", (by_itself, false)),
    ] {
        let toml = format!(
            "[[networks.base-sepolia.assets]]\naddress = \"{address}\"\nname = \"USDC\"\nversion = \"{version}\"\ndecimals = 6\n{settings}\n"
        );
        let config = network("base-sepolia", &toml).unwrap();
        let asset = &config.policy.assets[0];
        assert_eq!((asset.method, asset.eip2612), expected, "{toml}");
    }
    let toml = format!(
        "[[networks.base-sepolia.assets]]\naddress = \"{unknown}\"\nname = \"A\"\nversion = \"1\"\ndecimals = 6\ntransfer_method = \"erc7710\"\n"
    );
    let error = network("base-sepolia", &toml).unwrap_err().to_string();
    assert!(
        error.contains("line 6") && error.contains("permit2"),
        "{error}"
    );
}

#[test]
fn mainnet_with_several_endpoints_requires_two_to_agree() {
    let with = |name, count: usize, line: &str| {
        let urls = vec!["\"http://127.0.0.1:1\""; count].join(", ");
        let toml = format!(
            "[networks.{name}]\nrpc_urls = [{urls}]\nsigner_keys = [\"{KEY}\"]\npayees = [\"{PAYEE}\"]\n{line}\n"
        );
        let (flags, _file) = flags_with(&toml);
        Config::read(&flags, &HashMap::<&str, &str>::new())
            .map(|config| config.networks[0].confirm_with)
    };
    assert_eq!(with("base", 1, "").unwrap(), 1);
    assert_eq!(with("base", 2, "").unwrap(), 2);
    assert_eq!(with("base", 3, "").unwrap(), 2);
    assert_eq!(with("base-sepolia", 2, "").unwrap(), 1);
    assert_eq!(with("base-sepolia", 2, "confirm_with = 2").unwrap(), 2);
    assert_eq!(with("base", 2, "confirm_with = 1").unwrap(), 1);
    for wrong in [0, 3] {
        let error = with("base", 2, &format!("confirm_with = {wrong}")).unwrap_err();
        assert!(
            error.to_string().contains("confirm_with: expected 1 to 2"),
            "{error}"
        );
    }
}

#[test]
fn common_mistakes_get_a_hint() {
    for (variable, value, says) in [
        (
            "X402D_NETWORK",
            "base-seploia",
            "did you mean base-sepolia?",
        ),
        ("X402D_NETWORK", "solana:mainnet", "EVM networks only"),
        (
            "X402D_SIGNER_KEYS",
            "0x2222222222222222222222222222222222222222",
            "this is an address",
        ),
        ("X402D_RPC_URL", "ws://node/secret", "http or https URLs"),
        ("X402D_PAYEE", "0x12", "did you mean X402D_PAYEES?"),
    ] {
        let mut environment = base_sepolia();
        environment.insert(variable, value);
        let error = Config::read(&Flags::default(), &environment);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says), "{variable}={value}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for (line, says) in [
        ("[networks.eip155:84532]", "[networks.\"eip155:84532\"]"),
        (
            "[networks.base]\nmax_fee_wei = \"20 gwei\"",
            "a whole number",
        ),
        ("[networks.base]\npayees = \"0x12\"", "a list"),
    ] {
        let (flags, _file) = flags_with(&format!("{line}\n"));
        let error = Config::read(&flags, &base_sepolia());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says), "{line}: {error}");
    }
}
