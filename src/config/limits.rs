//! What one caller may ask for, and who is refused: `[limits]`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use url::Url;

use super::Settings;
use super::file::LimitsFile;
use crate::payment::DenyList;

/// The limits of callers.
#[derive(Debug)]
pub struct LimitsConfig {
    /// Calls of `/verify` and `/status` a second, of one caller.
    pub verify_per_second: NonZeroU32,
    /// Calls of `/settle` and submissions for sessions a second.
    pub settle_per_second: NonZeroU32,
    /// Sessions opened a second.
    pub sessions_per_second: NonZeroU32,
    /// Settlements of one caller that outlive their requests, at most.
    pub unattended_per_caller: usize,
    /// Reads of sessions of one caller that wait for a change, at most.
    pub waits_per_caller: usize,
    /// The file with denied addresses, and what it holds at the start.
    pub deny_list: Option<(PathBuf, DenyList)>,
    /// The operator's policy service, and whether payments are admitted while it does not answer.
    pub policy_service: Option<(Url, bool)>,
}

pub(super) fn read(settings: &mut Settings<'_>, file: LimitsFile) -> LimitsConfig {
    let mut rate = |key: &str, value: Option<u32>, default: u32| {
        let value = settings.between(key, value, 1..=1_000_000);
        NonZeroU32::new(value.unwrap_or(default)).unwrap_or(NonZeroU32::MIN)
    };
    let rates = [
        rate("limits.verify_per_second", file.verify_per_second, 50),
        rate("limits.settle_per_second", file.settle_per_second, 20),
        rate("limits.sessions_per_second", file.sessions_per_second, 2),
    ];
    let mut places = |key: &str, value: Option<usize>, default: usize| {
        let value = settings.between(key, value, 1..=1_000_000);
        value.unwrap_or(default)
    };
    let unattended = places(
        "limits.unattended_per_caller",
        file.unattended_per_caller,
        256,
    );
    let waits = places("limits.waits_per_caller", file.waits_per_caller, 32);
    let [verify_per_second, settle_per_second, sessions_per_second] = rates;
    LimitsConfig {
        unattended_per_caller: unattended,
        waits_per_caller: waits,
        verify_per_second,
        settle_per_second,
        sessions_per_second,
        policy_service: policy_service(settings, file.policy_url, file.policy_fail.as_deref()),
        deny_list: file.deny_list.and_then(|path| deny_list(settings, path)),
    }
}

fn deny_list(settings: &mut Settings<'_>, path: PathBuf) -> Option<(PathBuf, DenyList)> {
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let list = text.and_then(|text| DenyList::parse(&text).map_err(|error| error.to_string()));
    match list {
        Ok(list) => Some((path, list)),
        Err(why) => {
            let path = path.display();
            let problem = format!("limits.deny_list: expected a file of addresses, {path}: {why}");
            settings.problems.push(problem);
            None
        }
    }
}

fn policy_service(
    settings: &mut Settings<'_>,
    url: Option<String>,
    fail: Option<&str>,
) -> Option<(Url, bool)> {
    let is_fail_open = match fail {
        None | Some("closed") => false,
        Some("open") => true,
        Some(_) => {
            let problem = "limits.policy_fail: expected \"closed\" or \"open\"";
            settings.problems.push(problem.to_owned());
            false
        }
    };
    // The URL is not shown: it may hold a key.
    let parsed = url?.parse::<Url>().ok();
    let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
    if parsed.is_none() {
        let problem = "limits.policy_url: expected an http or https URL";
        settings.problems.push(problem.to_owned());
    }
    parsed.map(|url| (url, is_fail_open))
}
