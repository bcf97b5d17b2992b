//! What the fleet asks of a user, whatever protocol it speaks: [`crate::client::Client`] is one of
//! Millrace's own, [`crate::adapter::guest::Guest`] one at somebody else's server.
//!
//! A user reads no clock and does no I/O: every call carries the nanoseconds since the start of the
//! run, and afterwards the owner asks for bytes, for a wish and for the next deadline.

use std::{io, ops::Range};

use crate::{
    client::{Context, Manner, Standing, Wish},
    log::{self, Log},
    population::{Population, Target},
};

/// See the module.
pub trait User: Sized {
    /// The user of this index, who has not connected yet.
    fn new(user: u32, population: &Population) -> Self;
    /// The index.
    fn user(&self) -> u32;
    /// Where it stands.
    fn standing(&self) -> Standing;
    /// Whether the session is up.
    fn is_ready(&self) -> bool;
    /// Whether it went by itself and has not come back yet.
    fn is_away(&self) -> bool;
    /// Messages whose arrival it has not heard of.
    fn outstanding(&self) -> usize;

    /// What it wants done with its connection, once.
    fn take_wish(&mut self) -> Option<Wish>;
    /// Whether there are bytes to write.
    fn has_output(&self) -> bool;
    /// Those bytes.
    fn take_output(&mut self, now_ns: u64, cx: &mut Context) -> Vec<u8>;
    /// When [`User::tick`] is wanted, at the latest.
    fn deadline_ns(&self, cx: &Context) -> u64;
    /// Gives back what only a busy user needs.
    fn rest(&mut self);

    /// Wants a connection for the first time, as the schedule wanted it then.
    fn start(&mut self, now_ns: u64, intended_ns: u64, cx: &Context);
    /// Wants one for another visit, timed as if it were the first.
    fn call(&mut self, now_ns: u64, intended_ns: u64, cx: &Context);
    /// The connection stands, or could not be made.
    fn connected(&mut self, now_ns: u64, cx: &mut Context, result: io::Result<()>);
    /// Bytes arrived.
    fn received(&mut self, now_ns: u64, cx: &mut Context, bytes: &mut [u8]);
    /// The connection is over.
    fn ended(&mut self, now_ns: u64, cx: &mut Context);
    /// Time has passed.
    fn tick(&mut self, now_ns: u64, cx: &mut Context);
    /// Ends the session in good order, for good.
    fn finish(&mut self, now_ns: u64, cx: &mut Context);

    /// Whom a user writes to; `choice` is any number.
    fn partner(cx: &Context, user: u32, choice: u32) -> u32;
    /// A message of the schedule: written at once, or as soon as there is a session.
    fn send(&mut self, now_ns: u64, cx: &mut Context, target: Target, intended_ns: u64);
    /// The next message to the room.
    fn publish(&mut self, now_ns: u64, cx: &mut Context, intended_ns: u64);
    /// Whether a heartbeat can be sent now.
    fn may_beat(&self) -> bool;
    /// Sends one that was meant then.
    fn beat(&mut self, now_ns: u64, intended_ns: u64, cx: &mut Context);
    /// Whether it may go for a while: nothing of its own is on its way.
    fn may_step_away(&self, cx: &Context) -> bool;
    /// Goes, and comes back later.
    fn step_away(&mut self, now_ns: u64, cx: &mut Context, manner: Manner);
    /// Its connection breaks without a word, and it comes back after so long.
    fn break_off(&mut self, now_ns: u64, cx: &mut Context, back_ns: u64);
    /// A frame of a team's own backend, by its number; only where the protocol has such.
    fn send_custom(&mut self, _now_ns: u64, _cx: &mut Context, _number: usize, _intended_ns: u64) {}
    /// Asks for a range on the verifier's behalf; only where the protocol can.
    fn pull_for_verifier(&mut self, _now_ns: u64, _cx: &mut Context, _range: log::Range) {}

    /// The users who may be owed messages that are not in the counters.
    fn owed_to(population: &Population) -> Range<u32>;
    /// How many this one is still owed.
    fn owed(&self, cx: &Context) -> u64;
    /// Notes for the verifier what is unanswered and owed.
    fn note_rest(&self, cx: &Context, log: &mut Log);
}
