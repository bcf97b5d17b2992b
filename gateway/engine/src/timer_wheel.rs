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
/// Six levels reach 34 years; what is later waits at the far end and is looked at again there.
const LEVELS: usize = 6;
const TICKS_MAX: u64 = (1 << (BITS as u64 * LEVELS as u64)) - 1;

const NONE: u32 = u32::MAX;
/// The bucket of timers that have fired and were not handed out yet.
const FIRED: u16 = (LEVELS * BUCKETS) as u16;
const UNARMED: u16 = u16::MAX;

/// The wheel.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    nodes: Vec<Node>,
    heads: Box<[u32; LEVELS * BUCKETS + 1]>,
    occupied: [u64; LEVELS],
    tick: u64,
    armed: u32,
}

/// 16 bytes a slot.
#[derive(Clone, Copy, Debug)]
struct Node {
    next: u32,
    previous: u32,
    /// The tick in the upper 48 bits, the bucket in the lower 16.
    place: u64,
}

impl Node {
    const UNARMED: Self = Self { next: NONE, previous: NONE, place: UNARMED as u64 };

    const fn bucket(self) -> u16 {
        self.place as u16
    }

    const fn tick(self) -> u64 {
        self.place >> 16
    }
}

impl TimerWheel {
    /// A wheel that stands at `now_ms`.
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            nodes: Vec::new(),
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

    /// Arms the slot's timer, or moves it.
    pub(crate) fn arm(&mut self, slot: u32, deadline_ms: u64) {
        if self.nodes.len() <= slot as usize {
            self.nodes.resize(slot as usize + 1, Node::UNARMED);
        }
        self.cancel(slot);
        let tick = deadline_ms.div_ceil(TICK_MS).clamp(self.tick + 1, TICKS_MAX);
        self.link(slot, tick);
        self.armed += 1;
    }

    /// Disarms the slot's timer, if it is armed.
    pub(crate) fn cancel(&mut self, slot: u32) {
        let Some(&node) = self.nodes.get(slot as usize) else { return };
        if node.bucket() == UNARMED {
            return;
        }
        self.unlink(slot, node);
        self.armed -= 1;
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
            let node = self.nodes[slot as usize];
            self.unlink(slot, node);
            self.link(slot, node.tick());
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
            (level * BUCKETS + index) as u16
        };
        let next = self.heads[bucket as usize];
        if next != NONE {
            self.nodes[next as usize].previous = slot;
        }
        self.heads[bucket as usize] = slot;
        self.nodes[slot as usize] =
            Node { next, previous: NONE, place: tick << 16 | u64::from(bucket) };
    }

    fn unlink(&mut self, slot: u32, node: Node) {
        let bucket = node.bucket() as usize;
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        if node.previous != NONE {
            self.nodes[node.previous as usize].next = node.next;
        } else {
            self.heads[bucket] = node.next;
            if node.next == NONE && bucket < LEVELS * BUCKETS {
                self.occupied[bucket / BUCKETS] &= !(1 << (bucket % BUCKETS));
            }
        }
        self.nodes[slot as usize] = Node::UNARMED;
    }
}

#[cfg(test)]
mod tests {
    use super::{Node, TICK_MS, TimerWheel};
    use std::collections::HashMap;

    #[test]
    fn a_node_takes_sixteen_bytes() {
        assert_eq!(size_of::<Node>(), 16);
    }

    #[test]
    fn a_far_deadline_is_kept_and_its_wait_is_bounded() {
        let mut wheel = TimerWheel::new(5);
        wheel.arm(3, u64::MAX);
        wheel.arm(4, 100_000_000_000);
        assert_eq!(wheel.pop(99_999_999_999), None);
        assert_eq!(wheel.pop(100_000_000_016), Some(4));
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
