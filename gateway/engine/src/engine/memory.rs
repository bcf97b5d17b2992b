//! The memory ledger: what a shard's engine holds, by part, so that what a connection costs can be
//! named, and not only seen in the process's resident memory.
//!
//! Counted are the bytes that were touched: a table's slots up to the highest ever used, lists by
//! their capacity. Not counted: the driver's table and buffers, code, and what an allocator keeps.

use std::collections::VecDeque;

use super::Engine;
use crate::link::Link;

/// Bytes held, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The table of connections.
    pub connections: u64,
    /// The timer wheel.
    pub timers: u64,
    /// Who the connections are: addresses, users, devices, what logic attached.
    pub identities: u64,
    /// Connections of each address, where their number is limited.
    pub addresses: u64,
    /// What connections have going on: requests, backlogs, queues without their bytes.
    pub work: u64,
    /// Unfinished input.
    pub receive: u64,
    /// Bytes that wait to be sent; shared ones count for each receiver.
    pub send: u64,
    /// Rooms, their lists of members, and the members' lists of rooms.
    pub rooms: u64,
    /// What the owner is to do, fan-outs under way, and who is held back.
    pub effects: u64,
    /// What waits for the links, and who waits for their credit.
    pub link: u64,
}

impl Memory {
    /// Every part with its label, which is also the metric's.
    pub const fn parts(&self) -> [(&'static str, u64); 10] {
        [
            ("connections", self.connections),
            ("timers", self.timers),
            ("identities", self.identities),
            ("addresses", self.addresses),
            ("work", self.work),
            ("receive", self.receive),
            ("send", self.send),
            ("rooms", self.rooms),
            ("effects", self.effects),
            ("link", self.link),
        ]
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Engine {
    /// What the engine holds. It looks at each chunk of a thousand connections, not at each
    /// connection.
    pub fn memory(&self) -> Memory {
        let buckets = (self.addresses.capacity() * 8).div_ceil(7);
        Memory {
            connections: self.connections.bytes() as u64,
            timers: self.timers.bytes() as u64,
            identities: self.identities.bytes() as u64,
            // A key, a value, padding and a byte of control for each bucket.
            addresses: (buckets * 17) as u64,
            work: self.works.bytes() as u64,
            receive: self.works.input_bytes() as u64,
            send: self.counters.send_queue_bytes,
            rooms: (self.rooms.bytes() + self.memberships.bytes()) as u64,
            effects: (list_bytes(&self.effects) + list_bytes(&self.held) + self.fan_outs.bytes())
                as u64,
            link: self.links.iter().map(Link::bytes).sum::<usize>() as u64,
        }
    }
}

fn list_bytes<T>(list: &VecDeque<T>) -> usize {
    list.capacity() * size_of::<T>()
}
