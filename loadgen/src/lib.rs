//! The load generator: real connections, an open-loop schedule, and a verdict.
//!
//! What it does not do: it never slows down for the system under test, and never takes a figure
//! from it. Everything it reports was observed at its own sockets.
//!
//! A tour, from the outside in:
//!
//! - [`cli`]: the arguments; [`target`]: where the system under test is
//! - [`chat`] (and `fanout`, a chat that is only its room), [`idle`], [`echo`]: the scenarios
//! - [`coordinator`]: leads the threads through the phases; [`control`]: what they say to each
//!   other
//! - [`fleet`]: the users of one thread; [`driver`]: one thread's loop over io_uring
//! - [`scenario`]: who the users are and who talks to whom; [`pacer`]: when
//! - [`client`]: one user, a good client of the protocol, without I/O
//! - [`room`]: what all threads know of the live room
//! - [`record`]: histograms and counters; [`log`]: what the clients note for the verifier
//! - [`verify`]: the verdict on the messages; [`report`]: the result; [`threshold`]: conditions
//! - [`preflight`], [`groups`]: what must be there before a run begins
//!
//! The arrows run downward: scenarios → coordinator → fleet → client → log, record, scenario.

pub mod chat;
pub mod cli;
pub mod client;
pub mod clock;
pub mod control;
pub mod coordinator;
pub mod cpu;
pub mod driver;
pub mod echo;
pub mod exit;
pub mod fleet;
pub mod groups;
pub mod idle;
pub mod log;
pub mod pacer;
pub mod preflight;
pub mod record;
pub mod report;
pub mod room;
pub mod scenario;
pub mod target;
pub mod threshold;
pub mod timers;
pub mod verify;
