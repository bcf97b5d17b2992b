//! What `/proc` says about this process. A figure that cannot be read is left out, not guessed.

use std::fs;

use millrace_service::cpu_time;

/// Figures of the `process_*` metrics.
#[derive(Debug, Default)]
pub(super) struct ProcessFigures {
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub threads: Option<u64>,
    pub open_descriptors: Option<u64>,
    pub cpu_seconds: Option<f64>,
}

impl ProcessFigures {
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name| field(&status, name).map(|kib| kib * 1024);
        Self {
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            threads: field(&status, "Threads:"),
            open_descriptors: fs::read_dir("/proc/self/fd")
                .ok()
                // The listing itself has one open.
                .map(|entries| (entries.count() as u64).saturating_sub(1)),
            cpu_seconds: cpu_time::of_process(None).map(|time| time.as_secs_f64()),
        }
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A URI without the credentials that may stand before its host.
pub(crate) fn redact(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let authority_end = rest.find('/').unwrap_or(rest.len());
            match rest[..authority_end].rfind('@') {
                Some(at) => format!("{scheme}://***@{}", &rest[at + 1..]),
                None => uri.to_owned(),
            }
        }
        None => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{ProcessFigures, redact};

    #[test]
    fn this_process_has_figures() {
        let figures = ProcessFigures::read();
        assert!(figures.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(figures.open_descriptors.is_some_and(|count| count >= 3));
        assert!(figures.threads.is_some_and(|threads| threads >= 1));
        assert!(figures.cpu_seconds.is_some());
    }

    #[test]
    fn credentials_in_a_uri_are_left_out() {
        assert_eq!(redact("http://user:secret@logic:9700/a@b"), "http://***@logic:9700/a@b");
        assert_eq!(redact("http://logic:9700"), "http://logic:9700");
    }
}
