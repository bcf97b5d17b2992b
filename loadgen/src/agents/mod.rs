//! One load from several machines: a coordinator, which makes none itself, and agents.
//!
//! The coordinator reads the scenario, [`split`]s it, measures each agent's clock ([`offset`]), has
//! every agent look whether its machine can hold its share, and starts all of them at one moment. The
//! agents run the same engine as a single process does ([`lead`] tells it when), and stream what they
//! measure ([`wire`]); the coordinator adds the histograms up and judges the sum. A machine that is
//! lost ends the run for all, and is named.
//!
//! - [`arguments`]: the command line of both
//! - [`agent`]: the server that waits for runs; [`session`]: one of them, [`lead`]: its phases
//! - [`coordinator`]: leads a run; [`member`]: what it knows of one agent; [`summary`]: what an agent
//!   says at the end, and how all of them become one report
//!
//! There is no encryption: who listens on the network between them reads the secrets with which the
//! users log in, and a token. See docs/loadgen.md.

pub mod agent;
pub mod arguments;
pub mod coordinator;
pub mod lead;
pub mod member;
pub mod offset;
pub mod session;
pub mod split;
pub mod summary;
pub mod wire;

/// What both sides say to each other; proto/agents.proto.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    reason = "generated; the .proto has the words"
)]
pub mod proto {
    tonic::include_proto!("millrace.loadgen");
}

/// Agents of one run at most.
pub const AGENTS_MAX: usize = 64;
/// Largest message from a coordinator: a scenario with its secrets and a key.
pub const ORDER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest message from an agent: what it measured in a second, in parts, and its last words.
pub const REPORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages that wait to be sent to one side.
pub const MESSAGES_MAX: usize = 64;

/// Version and fingerprint of this build: machines of other builds are refused.
pub fn build() -> &'static str {
    env!("MILLRACE_LOADGEN_BUILD")
}
