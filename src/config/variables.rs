//! The environment variables that x402d knows: a misspelt one would be a setting that nobody made.

use super::Environment;

/// What all our variables begin with.
const PREFIX: &str = "X402D_";

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
    "X402D_NETWORK",
    "X402D_PANIC",
    "X402D_PANICS",
    "X402D_PAYEES",
    "X402D_RPC_URL",
    "X402D_SETTLE_WAIT",
    "X402D_SIGNERS_DOWN",
    "X402D_SIGNER_KEYS",
];

/// What is wrong with the names of the environment.
pub(super) fn unknown(environment: &dyn Environment) -> Vec<String> {
    let mut names = environment.names();
    names.retain(|name| {
        name.starts_with(PREFIX) && !KNOWN.contains(&name.as_str()) && !is_of_a_service(name)
    });
    names.sort();
    names
        .iter()
        .map(|name| match super::nearest(name, KNOWN.iter().copied()) {
            Some(meant) => format!("{name}: there is no such variable; did you mean {meant}?"),
            None => format!(
                "{name}: there is no such variable; docs/configuration.md lists those there are"
            ),
        })
        .collect()
}

/// Kubernetes describes each service to each container: one that is called `x402d` gives `X402D_SERVICE_HOST`, `X402D_PORT_4402_TCP` and so
/// on.
fn is_of_a_service(name: &str) -> bool {
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
    fn a_misspelt_variable_is_named_with_the_one_that_was_meant() {
        for (name, meant) in [
            ("X402D_PAYEE", Some("X402D_PAYEES")),
            ("X402D_ADMIN_TOKN", Some("X402D_ADMIN_TOKEN")),
            ("X402D_NETWROK", Some("X402D_NETWORK")),
            ("X402D_RPC_URLS", Some("X402D_RPC_URL")),
            ("X402D_SIGNER_KEY", Some("X402D_SIGNER_KEYS")),
            ("X402D_COLOUR_OF_THE_SKY", None),
        ] {
            let said = unknown(&HashMap::from([(name, "secret")])).concat();
            assert!(said.starts_with(name) && !said.contains("secret"), "{said}");
            let hint = meant.map(|meant| format!("did you mean {meant}?"));
            assert_eq!(said.contains("did you mean"), meant.is_some(), "{said}");
            assert!(hint.is_none_or(|hint| said.ends_with(&hint)), "{said}");
        }
    }

    #[test]
    fn what_is_known_and_what_kubernetes_adds_is_taken() {
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

    /// Whoever adds a variable adds it to the list. Tests name wrong ones on purpose.
    #[test]
    fn every_variable_that_the_sources_name_is_known() {
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
