//! The machine that a process runs on. It knows its name and nothing else.

use std::fs;

/// The name of this host, of the pod where it is one; `None` where the system has none or does not say.
pub fn name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    // What Linux calls a machine that nobody has named.
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_is_the_one_that_the_system_tells_everybody() {
        let told = std::process::Command::new("uname").arg("-n").output().expect("uname runs");
        let told = String::from_utf8(told.stdout).expect("a name");
        assert_eq!(super::name().as_deref(), Some(told.trim()));
    }
}
