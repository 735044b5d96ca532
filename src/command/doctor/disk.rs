//! The room for the private Postgres: a full disk stops every payment.

use std::path::Path;

use crate::command::finding::Finding;
use crate::telemetry::disk::free_bytes;

const MEBIBYTE: u64 = 1 << 20;
/// Below this the operator has to make room soon.
const LOW: u64 = 1_000 * MEBIBYTE;
/// Below this Postgres may not be able to write its log any more.
const FULL: u64 = 64 * MEBIBYTE;

pub(super) fn examine(folder: &Path) -> Finding {
    match free_bytes(folder) {
        Ok(free) => finding(free, folder),
        Err(error) => Finding::warning(
            "room",
            format!("{}: {error}", folder.display()),
            "let this user look at the data directory",
        ),
    }
}

fn finding(free: u64, folder: &Path) -> Finding {
    let says = format!("{} MiB left in {}", free / MEBIBYTE, folder.display());
    let fix = "make room, or move the data directory to a larger disk while x402d is stopped";
    if free < FULL {
        Finding::wrong("room", says).with_fix(fix)
    } else if free < LOW {
        Finding::warning("room", says, fix)
    } else {
        Finding::ok("room", says)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_that_fills_up_is_told_before_it_is_full() {
        for (mebibytes, word) in [(1_000, "ok"), (999, "warn"), (64, "warn"), (63, "WRONG")] {
            let text = finding(mebibytes * MEBIBYTE, Path::new("/data")).formatted();
            assert!(text.trim_start().starts_with(word), "{text}");
            let says = format!("{mebibytes} MiB left in /data");
            assert!(text.contains(&says), "{text}");
            assert_eq!(text.contains("fix: make room"), word != "ok", "{text}");
        }
        let here = examine(&std::env::temp_dir());
        assert!(here.formatted().contains("MiB left"), "{here:?}");
    }
}
