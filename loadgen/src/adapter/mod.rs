//! The seam to other people's servers: what a protocol must know, so that every scenario (stages,
//! thresholds, storms, the open model, the report) drives a server that speaks it.
//!
//! An [`Adapter`] turns bytes into [`Event`]s and a message into bytes, for one connection. Everything
//! else is done for it: [`guest`] connects, comes back, pings, waits and times, as the client of
//! Millrace's own protocol does; [`streams`] numbers the messages and judges what arrived. To write
//! one more: a file beside `websocket_echo`, a name in `scenario::Protocol` with what it cannot do in
//! `scenario/protocol.rs`, and a line in `engine::setup`.

pub mod guest;
mod letters;
pub mod mqtt;
pub mod payload;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod websocket_echo;

use crate::{
    client::{Context, Endpoint, Settings},
    population::Target,
    record::Metric,
};

/// How a sender hears that its message arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The message itself comes back; after a lost connection it does not.
    Echo,
    /// The server acknowledges it under the sender's label, and it is written again after a lost
    /// connection.
    Acknowledgement,
    /// Not at all.
    None,
}

/// A message to be written.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The sender's index.
    pub user: u32,
    /// Where it goes: a user, or [`streams::ROOM`].
    pub target: Target,
    /// The sender's number for it in its stream.
    pub number: u32,
    /// Under which the server acknowledges it: from 1, and not that of another one on its way.
    pub label: u16,
    /// It was written before, on a connection that was lost.
    pub is_again: bool,
    /// What it holds.
    pub payload: &'a [u8],
}

/// What bytes of the server meant.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step of the way to a session is done; it took the time since the last one.
    Passed(Metric),
    /// The session is up, and everything subscribed that this user wants to hear.
    Ready,
    /// The server has taken the message of this label.
    Acknowledged(u16),
    /// A message.
    Message {
        /// Whom it is for, as far as the protocol says: a user, or [`streams::ROOM`].
        target: Option<Target>,
        /// What it holds.
        payload: &'a [u8],
    },
    /// A message that is none of ours.
    Other,
    /// The answer to a ping.
    Pong,
    /// The server wants nothing of us.
    Refused {
        /// Why, in words.
        reason: String,
        /// It will be the same the next time.
        is_final: bool,
    },
    /// The server says that it ends the connection.
    Closing(String),
}

/// See the module. One for each connection, so it should be small.
pub trait Adapter: Sized {
    /// Where to connect.
    fn endpoint(settings: &Settings) -> Option<&Endpoint>;

    /// The bytes of a fresh connection go to `out`.
    fn open(user: u32, cx: &mut Context, out: &mut Vec<u8>) -> Self;

    /// Reads at most one event, and answers how many bytes that took. It is called with the rest
    /// until there is none; what is unfinished then it keeps. What the protocol wants answered at
    /// once goes to `out`.
    ///
    /// # Errors
    /// The bytes break the protocol, in words; the connection is given up.
    fn read<'a>(
        &'a mut self,
        user: u32,
        cx: &mut Context,
        bytes: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event<'a>>), String>;

    /// Appends a message.
    fn write_message(cx: &mut Context, out: &mut Vec<u8>, message: &Outgoing<'_>);

    /// Appends a ping, which the server answers.
    fn write_ping(cx: &mut Context, out: &mut Vec<u8>);

    /// The last bytes of somebody who goes in good order.
    fn farewell(cx: &mut Context) -> Vec<u8>;

    /// How a sender hears that its message arrived.
    fn answer(settings: &Settings) -> Answer;

    /// The server may deliver a message more than once.
    fn is_at_least_once(settings: &Settings) -> bool;

    /// Between two pings of a connection; 0: there are none.
    fn ping_interval_ns(settings: &Settings) -> u64;
}
