//! The numbered steps of a settlement, as places where a test can kill the process, and a key that a test can take away.

/// A step that has just been completed (`docs/architecture.md#the-path-of-a-payment`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A lane took the payment from the queue; nothing is written.
    Picked,
    /// Its transfer was simulated.
    Simulated,
    /// Its transaction is signed, in memory only.
    Signed,
    /// Bytes, hash and nonce are committed; nothing is sent.
    Recorded,
    /// The bytes were handed to the chain.
    Broadcast,
    /// Its receipt was seen; the result is not committed.
    Mined,
    /// The result is committed; nobody was told.
    Settled,
    /// The grant is committed; the answer is not written.
    Granted,
}

/// Kills the process here if `X402D_FAILPOINT` names the step.
#[inline]
pub fn reach(step: Step) {
    if let Some(wanted) = asked("X402D_FAILPOINT")
        && wanted == format!("{step:?}").to_lowercase()
    {
        // SIGKILL, not an orderly abort: nothing may be flushed or released on the way out.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Whether the lanes' keys cannot be asked now: while the file exists that `X402D_SIGNERS_DOWN` names.
#[inline]
pub fn signers_are_down() -> bool {
    asked("X402D_SIGNERS_DOWN").is_some_and(|file| std::path::Path::new(&file).exists())
}

/// Whether the answer of a commit that takes a grant gets lost now: while the file exists that `X402D_GRANTS_LOST` names.
#[inline]
pub fn grant_answers_are_lost() -> bool {
    asked("X402D_GRANTS_LOST").is_some_and(|file| std::path::Path::new(&file).exists())
}

/// Panics if `X402D_PANIC` names the task, once for each byte of the file that `X402D_PANICS` names, or always without one.
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

/// What a test asks for. Compiled to nothing unless the feature `failpoints` is on.
#[inline]
fn asked(variable: &str) -> Option<String> {
    #[cfg(feature = "failpoints")]
    let asked = std::env::var(variable).ok();
    #[cfg(not(feature = "failpoints"))]
    let asked = {
        let _ = variable;
        None
    };
    asked
}
