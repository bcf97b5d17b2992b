//! The load generator: real connections, an open-loop schedule, and a verdict.
//!
//! What it does not do: it never slows down for the system under test, and never takes a figure
//! from it. Everything it reports was observed at its own sockets.
//!
//! A tour, from the outside in:
//!
//! - [`cli`]: the arguments; [`target`]: where the system under test is
//! - [`run`]: a scenario from a file or a preset; [`subcommands`]: `chat`, `fanout` and `idle`, each
//!   a scenario that arguments describe; [`echo`]: the one that speaks to other servers, too
//! - [`scenario`]: the file, its presets, and the plan that is made of it
//! - [`engine`]: runs a plan from the ramp to the report
//! - [`agents`]: one load from several machines: a coordinator and agents
//! - [`crew`]: leads the threads through the phases; [`control`]: what they say to each
//!   other
//! - [`fleet`]: the users of one thread; [`driver`]: one thread's loop over io_uring
//! - [`population`]: who the users are and who talks to whom; [`pacer`], [`load`]: when; [`slow`]:
//!   who does not read
//! - [`user`]: what the fleet asks of a user; [`client`]: one user, a good client of Millrace's own
//!   protocol, without I/O; [`adapter`]: the seam to servers that speak another one
//! - [`room`]: what all threads know of the live room
//! - [`record`]: histograms and counters; [`windows`]: the same second by second; [`health`]: the
//!   generator's account of itself, and when it refuses its result; [`log`]: what the clients note for the verifier
//! - [`verify`]: the verdict on the messages; [`report`]: the result; [`threshold`]: conditions
//! - [`preflight`], [`groups`]: what must be there before a run begins
//! - [`live`]: what is seen while a run goes on
//! - [`output`]: what a finished run leaves behind, drawn from its JSON; [`compare`]: two of them
//! - [`doctor`]: whether this machine can; [`plan`]: which machines can, from the [`ledger`];
//!   [`predict`]: what the ledger says of a run, beside what [`observe`] saw
//!
//! The arrows run downward: subcommands → agents → engine → crew → fleet → client → log, record,
//! population.

pub mod adapter;
pub mod addresses;
pub mod agents;
pub mod cli;
pub mod client;
pub mod clock;
pub mod compare;
pub mod control;
pub mod cpu;
pub mod crew;
pub mod doctor;
pub mod driver;
pub mod echo;
pub mod engine;
pub mod exit;
pub mod figures;
pub mod fleet;
pub mod groups;
pub mod health;
pub mod ledger;
pub mod live;
pub mod load;
pub mod log;
pub mod observe;
pub mod output;
pub mod pacer;
pub mod plan;
pub mod population;
pub mod predict;
pub mod preflight;
pub mod record;
pub mod report;
pub mod room;
pub mod run;
pub mod scenario;
pub mod slow;
pub mod subcommands;
pub mod target;
pub mod threshold;
pub mod timers;
pub mod user;
pub mod verify;
pub mod windows;
