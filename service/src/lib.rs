//! What every Millrace process needs and none should write twice.
//!
//! - [`cpu_time`]: what a process and its threads have used
//! - [`config`]: TOML with units, refused with `file:line:column` and the nearest known key
//! - [`units`]: [`Duration`] (`"10s"`) and [`ByteSize`] (`"64KiB"`)
//! - [`host`]: the name of the machine
//! - [`logging`]: one line an event on standard error, JSON when nobody watches
//! - [`signal`]: SIGTERM and SIGINT as a future
//!
//! With the feature `testing`, `documented`: whether a commented file shows every key.
//!
//! Nothing here knows the gateway or the logic tier, and nothing runs unless it is called: there
//! are no globals besides the one log subscriber that [`logging::init`] installs.

pub mod config;
pub mod cpu_time;
#[cfg(any(test, feature = "testing"))]
pub mod documented;
pub mod host;
pub mod logging;
pub mod signal;
pub mod units;

pub use config::{ConfigError, Invalid};
pub use units::{ByteSize, Duration};
