//! Steps of a settlement at which a test can kill the process, and other faults that a test can cause.

use crate::timing::Timing;

/// A step that has just been completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A lane took the payment from the queue; nothing is recorded.
    Picked,
    /// Its transfer was simulated.
    Simulated,
    /// Its transaction is signed, in memory only.
    Signed,
    /// Bytes, hash and nonce are committed; nothing is sent.
    Recorded,
    /// The bytes were broadcast.
    Broadcast,
    /// Its receipt was read; the result is not committed.
    Mined,
    /// The result is committed, mined or settled; no caller has an answer.
    ResultRecorded,
    /// The grant is committed; the answer is not written.
    Granted,
}

/// Kills the process here if `X402D_FAILPOINT` names the step.
#[inline]
pub fn reach(step: Step) {
    if let Some(wanted) = asked("X402D_FAILPOINT")
        && wanted == format!("{step:?}").to_lowercase()
    {
        // SIGKILL instead of an orderly abort: nothing may be flushed or released.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Whether signing fails: while the file named by `X402D_SIGNERS_DOWN` exists.
#[inline]
pub fn signers_are_down() -> bool {
    asked("X402D_SIGNERS_DOWN").is_some_and(|file| std::path::Path::new(&file).exists())
}

/// Whether the answer of a commit that takes a grant is lost: while the file named by `X402D_GRANTS_LOST` exists.
#[inline]
pub fn grant_answers_are_lost() -> bool {
    asked("X402D_GRANTS_LOST").is_some_and(|file| std::path::Path::new(&file).exists())
}

/// Panics if `X402D_PANIC` names the task: once per byte of the file named by `X402D_PANICS`, always if that is not set.
#[inline]
pub fn panic_if_asked(task: &str) {
    if asked("X402D_PANIC").is_none_or(|wanted| wanted != task) {
        return;
    }
    if let Some(file) = asked("X402D_PANICS") {
        let Ok(left) = std::fs::read(&file) else {
            return;
        };
        let Some((_, left)) = left.split_last() else {
            return;
        };
        let _ = std::fs::write(&file, left);
    }
    std::panic::panic_any("as a test has asked");
}

/// The durations of this process: those of production, divided by `X402D_TIMES_SHORTER` if a test has set it.
pub fn timing() -> Timing {
    let divisor = asked("X402D_TIMES_SHORTER").and_then(|text| text.parse().ok());
    divisor.map_or_else(Timing::default, |divisor| {
        Timing::default().shortened(divisor)
    })
}

/// The value of a test's environment variable. Always `None` unless the feature `failpoints` is on.
#[inline]
fn asked(variable: &str) -> Option<String> {
    // Not an attribute: both kinds of build compile the same code.
    if cfg!(feature = "failpoints") {
        std::env::var(variable).ok()
    } else {
        None
    }
}
