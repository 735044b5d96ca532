//! The limit of open files: every connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;
use crate::http::accept::RESERVE;
use crate::server::problem::TooFewDescriptors;

/// Descriptors for everything but callers and the database: RPC connections, the log, the runtime.
const OTHERS: usize = 128;

/// Raises the soft limit to the hard one, and checks that the configured connections fit into it.
pub(super) fn provide(config: &Config) -> Result<(), TooFewDescriptors> {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        // Without the figure nothing can be compared.
        return Ok(());
    };
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "limit of open files not raised");
    }
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    check(config, usize::try_from(allowed).unwrap_or(usize::MAX))
}

fn check(config: &Config, allowed: usize) -> Result<(), TooFewDescriptors> {
    let database = usize::try_from(config.database_connections_max).unwrap_or(usize::MAX);
    let besides = OTHERS.saturating_add(RESERVE).saturating_add(database);
    let connections_max = config.connections.max;
    let needed = connections_max.saturating_add(besides);
    if needed <= allowed {
        return Ok(());
    }
    Err(TooFewDescriptors {
        connections_max,
        needed,
        allowed,
        fitting: allowed.saturating_sub(besides),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};

    struct OneNetwork;

    impl Environment for OneNetwork {
        fn get(&self, name: &str) -> Option<String> {
            let value = match name {
                "X402D_NETWORK" => "base-sepolia",
                "X402D_RPC_URL" => "http://127.0.0.1:8545",
                "X402D_SIGNER_KEYS" => {
                    "0x1111111111111111111111111111111111111111111111111111111111111111"
                }
                _ => return None,
            };
            Some(value.to_owned())
        }

        fn names(&self) -> Vec<String> {
            Vec::new()
        }
    }

    #[test]
    fn connections_that_the_system_does_not_allow_are_refused() {
        let config = Config::read_without_file(&Flags::default(), &OneNetwork).unwrap();
        let besides = OTHERS + RESERVE + 32;
        assert!(check(&config, 8192 + besides).is_ok());
        let error = check(&config, 4096).unwrap_err().to_string();
        for part in [
            "connections_max: 8192",
            "allows 4096",
            "LimitNOFILE",
            &format!("to {} at most", 4096 - besides),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
