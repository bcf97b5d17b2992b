//! CPU time of a process and of its threads, from `/proc`.
//!
//! Whoever measures a tier reads it here, so that every figure counts the same thing. What cannot be
//! read (no such process, no `/proc`) is `None`, never a guess.

use std::{fs, time::Duration};

/// User and system time of all threads of a process, those that ended included; `None` for the pid
/// means this process. The kernel counts in clock ticks, 10 ms on most machines.
pub fn of_process(pid: Option<u32>) -> Option<Duration> {
    let stat = fs::read_to_string(format!("{}/stat", folder(pid))).ok()?;
    in_stat(&stat, rustix::param::clock_ticks_per_second())
}

/// This process's nice value, -20 (before everybody) to 19; `None` where it may not be asked.
pub fn nice() -> Option<i32> {
    rustix::process::getpriority_process(None).ok()
}

/// Time on a CPU of one thread, to the nanosecond. `thread_path` is its folder in `/proc`.
pub fn of_thread(thread_path: &str) -> Option<Duration> {
    let schedstat = fs::read_to_string(format!("{thread_path}/schedstat")).ok()?;
    let nanoseconds = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

/// Name and time on a CPU of each thread that a process has now; `None` for the pid means this
/// process. Empty where that cannot be read.
pub fn of_threads(pid: Option<u32>) -> Vec<(String, Duration)> {
    let Ok(threads) = fs::read_dir(format!("{}/task", folder(pid))) else { return Vec::new() };
    let thread = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).ok()?.trim_end().to_owned();
        Some((name, of_thread(path.to_str()?)?))
    };
    // A thread may end while this looks.
    threads.filter_map(Result::ok).filter_map(thread).collect()
}

fn folder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "/proc/self".to_owned(), |pid| format!("/proc/{pid}"))
}

/// Fields 14 and 15 of a `stat` file: clock ticks in user and kernel mode.
fn in_stat(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // The second field is the name in parentheses, which may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    (ticks_per_second > 0)
        .then(|| Duration::from_secs_f64((user + kernel) as f64 / ticks_per_second as f64))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{in_stat, of_process, of_threads};

    #[test]
    fn the_nice_value_is_what_the_kernel_says() {
        // Without a command, nice(1) prints the value that it got from us.
        let said = std::process::Command::new("nice").output().expect("coreutils");
        let said = String::from_utf8_lossy(&said.stdout).trim().parse().ok();
        assert_eq!(super::nice(), said);
        assert!(said.is_some());
    }

    #[test]
    fn a_process_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1";
        assert_eq!(in_stat(stat, 100), Some(Duration::from_secs(3)));
        assert_eq!(in_stat(stat, 1_000), Some(Duration::from_millis(300)));
        assert_eq!(in_stat(stat, 0), None);
        assert_eq!(in_stat("", 100), None);
    }

    #[test]
    fn work_is_counted_for_the_process_and_for_the_thread_that_did_it() {
        let mine = || {
            let threads = of_threads(None).into_iter();
            threads.filter(|(name, _)| name == "cpu-time-test").map(|(_, time)| time).sum()
        };
        let worker = move || {
            let (before, thread_before): (_, Duration) = (of_process(None), mine());
            let (before, began) = (before.expect("readable"), Instant::now());
            // A tick is 10 ms; a busy machine may take its time to give this thread ten of them.
            while mine() < thread_before + Duration::from_millis(100) {
                assert!(began.elapsed() < Duration::from_secs(60), "work is not counted");
                std::hint::black_box((0..100_000_u64).sum::<u64>());
            }
            let after = of_process(Some(std::process::id())).expect("readable");
            assert!(after >= before + Duration::from_millis(50));
        };
        let thread = std::thread::Builder::new().name("cpu-time-test".to_owned());
        thread.spawn(worker).expect("a thread").join().expect("it did not fail");
    }

    #[test]
    fn a_process_that_is_not_there_has_no_time() {
        assert_eq!(of_process(Some(u32::MAX)), None);
        assert!(of_threads(Some(u32::MAX)).is_empty());
    }
}
