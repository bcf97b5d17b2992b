//! CPU time of this process: the generator shares the machine with what it measures, so its own
//! appetite belongs into the result.

/// User and system time used so far, in seconds; 0 where `/proc` cannot be read.
pub fn seconds() -> f64 {
    millrace_service::cpu_time::of_process(None).unwrap_or_default().as_secs_f64()
}
