//! One timer for each slot of the connection table: a hierarchical timing wheel.
//!
//! Arming and cancelling are O(1): a timer is a node of a doubly linked list, and its links are
//! slot numbers. A timer never fires early and at most one tick late. Who re-arms often (a
//! heartbeat) does not touch the wheel: it stores a time, and looks at it when the timer fires.
//!
//! Invariant: a bucket of level `l` holds timers whose tick differs from the current one in the
//! `l`-th group of six bits and in no higher one; so the first occupied bucket of the lowest
//! occupied level is always the next one.

/// Precision: milliseconds of a tick.
pub(crate) const TICK_MS: u64 = 16;

const BITS: u32 = 6;
const BUCKETS: usize = 1 << BITS;
/// Enough for [`TICKS_AHEAD_MAX`] whatever the wheel's own tick is.
const LEVELS: usize = 6;

/// A deadline further away than this fires here already: 397 days. Who armed it looks at the time
/// and arms it again, as for every timer.
const TICKS_AHEAD_MAX: u64 = (1 << 31) - 1;

const NONE: u32 = u32::MAX;
/// The bucket of timers that have fired and were not handed out yet.
const FIRED: u32 = (LEVELS * BUCKETS) as u32;
/// In [`Node::previous`]: the node is the first of the bucket in the lower bits.
const FIRST: u32 = 1 << 31;
/// In [`Node::previous`]: the node is in no bucket.
const UNARMED: u32 = u32::MAX;

/// Nodes of one chunk.
const CHUNK: usize = 1024;

/// The wheel.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    chunks: Vec<Chunk>,
    heads: Box<[u32; LEVELS * BUCKETS + 1]>,
    occupied: [u64; LEVELS],
    tick: u64,
    armed: u32,
}

/// Grows without copying. Has memory while one of its timers is armed.
#[derive(Debug, Default)]
struct Chunk {
    nodes: Box<[Node]>,
    armed: u32,
}

/// 12 bytes a slot.
#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    /// The slot before it in its bucket, or [`FIRST`] and the bucket, or [`UNARMED`].
    previous: u32,
    /// The lower half of the tick; it is at most [`TICKS_AHEAD_MAX`] ahead of the wheel's.
    tick: u32,
}

impl Node {
    const UNARMED: Self = Self { next: NONE, previous: UNARMED, tick: 0 };
}

impl TimerWheel {
    /// A wheel that stands at `now_ms`.
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            chunks: Vec::new(),
            heads: Box::new([NONE; LEVELS * BUCKETS + 1]),
            occupied: [0; LEVELS],
            tick: now_ms / TICK_MS,
            armed: 0,
        }
    }

    /// Timers that are armed.
    pub(crate) const fn armed(&self) -> u32 {
        self.armed
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        let nodes: usize = self.chunks.iter().map(|chunk| chunk.nodes.len()).sum();
        nodes * size_of::<Node>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + size_of_val(&*self.heads)
    }

    /// Arms the slot's timer, or moves it.
    pub(crate) fn arm(&mut self, slot: u32, deadline_ms: u64) {
        let place = slot as usize / CHUNK;
        if self.chunks.len() <= place {
            self.chunks.resize_with(place + 1, Chunk::default);
        }
        let tick = deadline_ms.div_ceil(TICK_MS);
        let tick = tick.clamp(self.tick + 1, self.tick + TICKS_AHEAD_MAX);
        let chunk = &mut self.chunks[place];
        if chunk.nodes.is_empty() {
            chunk.nodes = vec![Node::UNARMED; CHUNK].into_boxed_slice();
        }
        let node = chunk.nodes[slot as usize % CHUNK];
        if node.previous == UNARMED {
            chunk.armed += 1;
            self.armed += 1;
        } else {
            self.unlink(slot, node);
        }
        self.link(slot, tick);
    }

    /// Disarms the slot's timer, if it is armed. An upper chunk whose last timer it was gives its
    /// memory back.
    pub(crate) fn cancel(&mut self, slot: u32) {
        let place = slot as usize / CHUNK;
        let Some(chunk) = self.chunks.get_mut(place) else { return };
        let Some(&node) = chunk.nodes.get(slot as usize % CHUNK) else { return };
        if node.previous == UNARMED {
            return;
        }
        chunk.armed -= 1;
        self.armed -= 1;
        self.unlink(slot, node);
        let chunk = &mut self.chunks[place];
        if chunk.armed == 0 && place > 0 {
            chunk.nodes = Box::default();
        }
    }

    /// The next slot whose timer has fired by `now_ms`. Call it until there is none.
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<u32> {
        let target = now_ms / TICK_MS;
        loop {
            let slot = self.heads[FIRED as usize];
            if slot != NONE {
                self.cancel(slot);
                return Some(slot);
            }
            match self.next_bucket() {
                Some((level, bucket, start)) if start <= target => {
                    self.tick = start;
                    self.cascade(level, bucket);
                }
                _ => {
                    self.tick = self.tick.max(target);
                    return None;
                }
            }
        }
    }

    fn node(&mut self, slot: u32) -> &mut Node {
        &mut self.chunks[slot as usize / CHUNK].nodes[slot as usize % CHUNK]
    }

    /// When [`Self::pop`] is to be called next: never later than the next timer, sometimes
    /// earlier.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        if self.heads[FIRED as usize] != NONE {
            return Some(self.tick * TICK_MS);
        }
        self.next_bucket().map(|(_, _, start)| start * TICK_MS)
    }

    fn next_bucket(&self) -> Option<(usize, usize, u64)> {
        let (level, occupied) =
            self.occupied.iter().enumerate().find(|(_, occupied)| **occupied != 0)?;
        let shift = BITS * level as u32;
        // By the invariant all occupied buckets of this level lie ahead.
        let bucket = occupied.trailing_zeros() as usize;
        let start = self.tick >> (shift + BITS) << (shift + BITS) | (bucket as u64) << shift;
        Some((level, bucket, start))
    }

    /// Spreads a bucket whose time has come over the lower levels; on the lowest, fires it.
    fn cascade(&mut self, level: usize, bucket: usize) {
        let mut slot = self.heads[level * BUCKETS + bucket];
        while slot != NONE {
            let node = *self.node(slot);
            self.unlink(slot, node);
            // The bucket's time is not later than the node's.
            let ahead = node.tick.wrapping_sub(self.tick as u32);
            self.link(slot, self.tick + u64::from(ahead));
            slot = node.next;
        }
    }

    fn link(&mut self, slot: u32, tick: u64) {
        let bucket = if tick <= self.tick {
            FIRED
        } else {
            let highest = 63 - (tick ^ self.tick).leading_zeros();
            let level = (highest / BITS) as usize;
            let index = (tick >> (BITS * level as u32)) as usize % BUCKETS;
            self.occupied[level] |= 1 << index;
            (level * BUCKETS + index) as u32
        };
        let next = std::mem::replace(&mut self.heads[bucket as usize], slot);
        if next != NONE {
            self.node(next).previous = slot;
        }
        *self.node(slot) = Node { next, previous: FIRST | bucket, tick: tick as u32 };
    }

    fn unlink(&mut self, slot: u32, node: Node) {
        if node.next != NONE {
            self.node(node.next).previous = node.previous;
        }
        if node.previous & FIRST == 0 {
            self.node(node.previous).next = node.next;
        } else {
            let bucket = (node.previous & !FIRST) as usize;
            self.heads[bucket] = node.next;
            if node.next == NONE && bucket < LEVELS * BUCKETS {
                self.occupied[bucket / BUCKETS] &= !(1 << (bucket % BUCKETS));
            }
        }
        *self.node(slot) = Node::UNARMED;
    }
}

#[cfg(test)]
mod tests {
    use super::{Node, TICK_MS, TimerWheel};
    use std::collections::HashMap;

    #[test]
    fn a_node_takes_twelve_bytes() {
        assert_eq!(size_of::<Node>(), 12);
    }

    #[test]
    fn a_far_deadline_is_kept_and_its_wait_is_bounded() {
        let mut wheel = TimerWheel::new(5);
        wheel.arm(3, u64::MAX);
        wheel.arm(4, 10_000_000_000);
        assert_eq!(wheel.pop(9_999_999_999), None);
        assert_eq!(wheel.pop(10_000_000_016), Some(4));
        assert_eq!(wheel.armed(), 1);
    }

    #[test]
    fn timers_fire_never_early_and_at_most_a_tick_late() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for start in [0, 1_000, 16 * ((1 << 24) - 500)] {
            let mut now = start;
            let mut wheel = TimerWheel::new(now);
            let mut model: HashMap<u32, u64> = HashMap::new();
            for _ in 0..30_000 {
                match random.u8(..10) {
                    0..=4 => {
                        let slot = random.u32(..500);
                        let far = 1 << random.u32(1..28);
                        let deadline = now + random.u64(..far);
                        wheel.arm(slot, deadline);
                        model.insert(slot, deadline);
                    }
                    5 => {
                        let slot = random.u32(..600);
                        wheel.cancel(slot);
                        model.remove(&slot);
                    }
                    _ => {
                        // Either a random step, or exactly to where the wheel asks to be called.
                        let far = 1 << random.u32(1..22);
                        now = match wheel.next_deadline_ms() {
                            Some(next) if random.bool() => now.max(next),
                            _ => now + random.u64(..far),
                        };
                        while let Some(slot) = wheel.pop(now) {
                            let deadline = model.remove(&slot).expect("an armed timer fires");
                            assert!(deadline <= now, "early");
                        }
                        let late = model.values().filter(|d| **d + TICK_MS <= now).count();
                        assert_eq!(late, 0, "timers were forgotten");
                        if let Some(next) = model.values().min() {
                            let asked = wheel.next_deadline_ms().expect("timers are armed");
                            assert!(asked <= next + TICK_MS);
                        }
                    }
                }
                assert_eq!(wheel.armed() as usize, model.len());
            }
        }
    }
}
