//! The environment variables of x402d: a misspelt one would silently keep a default.

use super::Environment;

/// The prefix of the variables of x402d.
const PREFIX: &str = "X402D_";
/// The one variable without it: every tool for Postgres reads it.
const DATABASE_URL: &str = "DATABASE_URL";

/// Every variable that a part of x402d reads, the buyer's and the tests' too: one environment may serve several commands.
pub(super) const KNOWN: &[&str] = &[
    "X402D_ADMIN_TOKEN",
    "X402D_BUYER_KEY",
    "X402D_BUYER_RPC_URL",
    "X402D_CONFIRMATIONS",
    "X402D_DATA_DIR",
    "X402D_EIP6492_FACTORIES",
    "X402D_FAILPOINT",
    "X402D_GRANTS_LOST",
    "X402D_KEYSTORE_PASSWORD",
    "X402D_LISTEN",
    "X402D_LOG",
    "X402D_METRICS_LISTEN",
    "X402D_NETWORK",
    "X402D_PANIC",
    "X402D_PANICS",
    "X402D_PAYEES",
    "X402D_RPC_URL",
    "X402D_SETTLE_WAIT",
    "X402D_SIGNERS_DOWN",
    "X402D_SIGNER_AWS_KMS",
    "X402D_SIGNER_KEYS",
    "X402D_SIGNER_KEYSTORES",
    "X402D_SIGNER_KEYSTORE_PASSWORD_FILE",
    "X402D_SIGNER_KEYS_FILE",
    "X402D_TIMES_SHORTER",
    "X402D_TRUSTED_PROXIES",
];

/// The problems with the names of the environment.
pub(super) fn unknown(environment: &dyn Environment) -> Vec<String> {
    let mut names = environment.names();
    names.retain(|name| {
        name.starts_with(PREFIX) && !KNOWN.contains(&name.as_str()) && !is_set_by_kubernetes(name)
    });
    names.sort();
    names
        .iter()
        .map(|name| match similar_variable(name) {
            Some(known) => format!("{name}: there is no such variable; did you mean {known}?"),
            None => format!(
                "{name}: there is no such variable; docs/configuration.md lists those there are"
            ),
        })
        .collect()
}

fn similar_variable(name: &str) -> Option<&'static str> {
    let without_prefix = name.strip_prefix(PREFIX);
    if without_prefix == Some(DATABASE_URL) {
        return Some(DATABASE_URL);
    }
    super::nearest(name, KNOWN.iter().copied())
}

/// Kubernetes sets variables for each service in each container: for a service `x402d` it sets `X402D_SERVICE_HOST`,
/// `X402D_PORT_4402_TCP` and so on.
fn is_set_by_kubernetes(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn misspelt_variable_gets_the_similar_one_as_hint() {
        for (name, similar) in [
            ("X402D_PAYEE", Some("X402D_PAYEES")),
            ("X402D_ADMIN_TOKN", Some("X402D_ADMIN_TOKEN")),
            ("X402D_NETWROK", Some("X402D_NETWORK")),
            ("X402D_RPC_URLS", Some("X402D_RPC_URL")),
            ("X402D_SIGNER_KEY", Some("X402D_SIGNER_KEYS")),
            ("X402D_DATABASE_URL", Some("DATABASE_URL")),
            ("X402D_COLOUR_OF_THE_SKY", None),
        ] {
            let error = unknown(&HashMap::from([(name, "secret")])).concat();
            assert!(
                error.starts_with(name) && !error.contains("secret"),
                "{error}"
            );
            let hint = similar.map(|similar| format!("did you mean {similar}?"));
            assert_eq!(error.contains("did you mean"), similar.is_some(), "{error}");
            assert!(hint.is_none_or(|hint| error.ends_with(&hint)), "{error}");
        }
    }

    #[test]
    fn known_and_kubernetes_variables_are_accepted() {
        let known = KNOWN.iter().copied();
        let added = [
            "X402D_SERVICE_HOST",
            "X402D_SERVICE_PORT_HTTP",
            "X402D_PORT",
            "X402D_PORT_4402_TCP_ADDR",
            "X402D_STAGING_SERVICE_HOST",
            "PATH",
        ];
        let all: HashMap<_, _> = known.chain(added).map(|name| (name, "x")).collect();
        assert_eq!(unknown(&all), Vec::<String>::new());
    }

    /// A variable that is added to the sources has to be added to the list. Tests use wrong names on purpose.
    #[test]
    fn every_variable_in_the_sources_is_known() {
        let tests_only = [
            "X402D_WRITE_DOCS",
            "X402D_WRITE_OPENAPI",
            "X402D_SOAK_SECONDS",
        ];
        let mut folders = vec![std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src"
        ))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("config/variables.rs") && !path.ends_with("tests.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    for rest in text.split(&format!("\"{PREFIX}")).skip(1) {
                        let end = rest
                            .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
                        let name =
                            format!("{PREFIX}{}", rest.get(..end.unwrap_or_default()).unwrap());
                        if name == PREFIX {
                            continue;
                        }
                        assert!(
                            KNOWN.contains(&name.as_str()) || tests_only.contains(&name.as_str()),
                            "{name} of {} is missing in config/variables.rs",
                            path.display()
                        );
                    }
                }
            }
        }
    }
}
