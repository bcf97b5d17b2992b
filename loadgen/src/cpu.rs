//! CPU time of this process, from /proc: the generator shares the machine with what it measures,
//! so its own appetite belongs into the result.

/// Ticks of /proc/self/stat per second; fixed by the kernel's user interface on all common
/// architectures.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time used so far, in seconds; 0 where /proc cannot be read.
pub fn seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    parse(&stat).unwrap_or(0.0)
}

fn parse(stat: &str) -> Option<f64> {
    // The second field is the name in parentheses and may hold anything.
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 9 1 1";
        assert_eq!(parse(stat), Some(2.0));
        assert_eq!(parse(""), None);
    }
}
