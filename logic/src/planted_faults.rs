//! Faults that a test build makes when it is asked to, so that the cluster test can show that its checker finds them
//! (docs/cluster-test.md). They exist only with the cargo feature `planted-faults`, which nothing enables by default; such a build
//! refuses to start unless `MILLRACE_PLANTED_FAULT` names one, or says `none`. Without the feature [`is_planted`] is a constant
//! `false` and leaves nothing behind.

/// What can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A message that is sent again is stored again.
    Dedupe,
    /// The counter of a conversation moves outside of the message's transaction: some numbers are taken and never used.
    Counter,
    /// The registry does not look whether the session that ended is the one that is online: a late end of an old one
    /// takes the newer one of its device away. In a registry on Redis it does so whichever process stated the newer one,
    /// and neither late calls nor earlier lives of a gateway are refused.
    Fencing,
}

/// Where it is named.
#[cfg(feature = "planted-faults")]
const VARIABLE: &str = "MILLRACE_PLANTED_FAULT";

/// Whether this fault is to be made.
#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) const fn is_planted(_fault: Fault) -> bool {
    false
}

/// Whether this fault is to be made.
#[cfg(feature = "planted-faults")]
pub(crate) fn is_planted(fault: Fault) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Fault>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| chosen().ok().flatten()) == Some(fault)
}

/// Refuses to start a build with faults by mistake.
///
/// # Errors
/// A sentence, unless the environment names a fault or `none`.
#[cfg(feature = "planted-faults")]
pub(crate) fn check() -> Result<(), String> {
    let fault = chosen()?;
    tracing::warn!(?fault, "a build with planted faults: for tests alone");
    Ok(())
}

#[cfg(feature = "planted-faults")]
fn chosen() -> Result<Option<Fault>, String> {
    match std::env::var(VARIABLE).as_deref() {
        Ok("dedupe") => Ok(Some(Fault::Dedupe)),
        Ok("counter") => Ok(Some(Fault::Counter)),
        Ok("fencing") => Ok(Some(Fault::Fencing)),
        Ok("none") => Ok(None),
        _ => Err(format!(
            "this is a test build with planted faults; set {VARIABLE} to dedupe, counter, fencing or none, or use another build"
        )),
    }
}
