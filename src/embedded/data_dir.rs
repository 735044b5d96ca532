//! The default data directory.

use std::path::{Path, PathBuf};

/// Whether this process runs as root: it decides on the data directory and on the account that runs Postgres.
pub fn running_as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The data directory: the configured one, else `/var/lib/x402d` as root, else `x402d` in the XDG data home.
///
/// `environment` looks up a variable of the process. A relative `XDG_DATA_HOME` is ignored, as the XDG Base Directory Specification
/// requires. Without a home folder it is `.x402d` in the working directory.
pub fn default_data_dir(
    configured: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
    is_root: bool,
) -> PathBuf {
    if let Some(configured) = configured {
        return configured.to_path_buf();
    }
    if is_root {
        return PathBuf::from("/var/lib/x402d");
    }
    let absolute = |name: &str| {
        environment(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from(".x402d"), |home| home.join("x402d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(configured: Option<&str>, variables: &[(&str, &str)], is_root: bool) -> PathBuf {
        let environment = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        default_data_dir(configured.map(Path::new), &environment, is_root)
    }

    #[test]
    fn configured_folder_precedes_root_data_home_and_home() {
        let variables = [("XDG_DATA_HOME", "/data"), ("HOME", "/home/a")];
        assert_eq!(chosen(Some("here"), &variables, true), Path::new("here"));
        assert_eq!(chosen(None, &variables, true), Path::new("/var/lib/x402d"));
        assert_eq!(chosen(None, &variables, false), Path::new("/data/x402d"));
        assert_eq!(
            chosen(None, &variables[1..], false),
            Path::new("/home/a/.local/share/x402d")
        );
    }

    #[test]
    fn relative_data_home_and_missing_home_have_fallbacks() {
        assert_eq!(
            chosen(None, &[("XDG_DATA_HOME", "data"), ("HOME", "/h")], false),
            Path::new("/h/.local/share/x402d")
        );
        assert_eq!(chosen(None, &[], false), Path::new(".x402d"));
    }
}
