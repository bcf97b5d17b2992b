//! Measures servers from outside, over real sockets, as their clients would see them.
//!
//! Programs, each with `--help`:
//!
//! - `runtimes`: the same echo work on Millrace and on other runtimes and libraries, in one run
//! - `fan-out`: one message to a room's members through the real gateway
//! - `report`: tables and plots from the JSON that the others wrote
//! - `plain-ring`: the least an echo server on the ring can be, to be compared with
//!
//! The figures of gateway, logic and load generator together come from `tests/e2e/million.py`.
//!
//! Rooms: [`clients`] is the load on one core, [`processes`] starts, places and watches what is
//! measured, [`tiers`] knows how a gateway is configured for a measurement and is its logic, [`results`]
//! is what is written down, [`plot`] what is drawn of it, and [`sections`] what is told of the
//! end-to-end scripts. Nothing here decides whether a figure is good.

pub mod clients;
pub mod plot;
pub mod processes;
pub mod results;
pub mod sections;
pub mod tiers;
