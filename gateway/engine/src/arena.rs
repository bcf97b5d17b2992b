//! Many small byte strings that live long: packed by size into chunks, named by 32 bits.
//!
//! A string takes its length rounded up to four bytes and nothing else: no header, no pointer of
//! 16 bytes, none of the rounding of an allocator. Chunks grow without copying and are given back
//! when they are empty. Whoever holds a [`Record`] owns it; a record is not checked for staleness,
//! because each has exactly one owner that removes it once.

use crate::slab::Slab;

/// Sizes are multiples of this.
const GRAIN: usize = 4;

/// Sizes that have chunks; a longer string has an allocation of its own.
const CLASSES: usize = 63;

/// The class of strings with an allocation of their own.
const LARGE: u32 = CLASSES as u32;

/// Bits of a record's number within its class.
const INDEX_BITS: u32 = 26;

/// Records of one chunk.
const CHUNK: usize = 1024;

/// No record of a chunk.
const NONE: u16 = u16::MAX;

/// The name of one string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record(u32);

/// The strings.
#[derive(Debug)]
pub(crate) struct Arena {
    classes: Vec<Class>,
    large: Slab<Box<[u8]>>,
    large_bytes: usize,
}

/// The chunks of one size.
#[derive(Debug, Default)]
struct Class {
    chunks: Vec<Chunk>,
    /// No chunk below this one has room.
    first_with_room: usize,
}

/// Invariant: `bytes` holds `fresh` records; those not in use are linked from `free` on, by the
/// first two bytes of each.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    used: u16,
    fresh: u16,
    free: u16,
}

impl Record {
    /// What takes the place of a record where there is none.
    pub(crate) const NONE: Self = Self(u32::MAX);

    const fn class(self) -> u32 {
        self.0 >> INDEX_BITS
    }

    const fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }
}

impl Chunk {
    const EMPTY: Self = Self { bytes: Vec::new(), used: 0, fresh: 0, free: NONE };

    const fn has_room(&self) -> bool {
        self.free != NONE || (self.fresh as usize) < CHUNK
    }

    fn insert(&mut self, size: usize) -> usize {
        self.used += 1;
        if self.free == NONE {
            if self.fresh == 0 {
                self.bytes.reserve_exact(size * CHUNK);
            }
            self.fresh += 1;
            self.bytes.resize(usize::from(self.fresh) * size, 0);
            return usize::from(self.fresh) - 1;
        }
        let index = usize::from(self.free);
        self.free = u16::from_le_bytes([self.bytes[index * size], self.bytes[index * size + 1]]);
        index
    }

    fn remove(&mut self, index: usize, size: usize) {
        self.used -= 1;
        let next = self.free.to_le_bytes();
        self.bytes[index * size..index * size + 2].copy_from_slice(&next);
        self.free = index as u16;
    }
}

impl Arena {
    /// An arena without strings.
    pub(crate) fn new() -> Self {
        let classes = std::iter::repeat_with(Class::default).take(CLASSES).collect();
        Self { classes, large: Slab::new(1 << INDEX_BITS), large_bytes: 0 }
    }

    /// Keeps a string. Reading it back gives it with zeros up to the next multiple of four.
    pub(crate) fn insert(&mut self, bytes: &[u8]) -> Record {
        let units = bytes.len().div_ceil(GRAIN).max(1);
        if units > CLASSES {
            self.large_bytes += bytes.len();
            let (slot, _) = self.large.insert(bytes.into()).expect("one a connection at most");
            return Record(LARGE << INDEX_BITS | slot);
        }
        let size = units * GRAIN;
        let class = &mut self.classes[units - 1];
        while class.chunks.get(class.first_with_room).is_some_and(|chunk| !chunk.has_room()) {
            class.first_with_room += 1;
        }
        if class.first_with_room == class.chunks.len() {
            class.chunks.push(Chunk::EMPTY);
        }
        let chunk = &mut class.chunks[class.first_with_room];
        let index = chunk.insert(size);
        let place = &mut chunk.bytes[index * size..(index + 1) * size];
        let (content, padding) = place.split_at_mut(bytes.len());
        content.copy_from_slice(bytes);
        padding.fill(0);
        let index = class.first_with_room * CHUNK + index;
        debug_assert!(index < 1 << INDEX_BITS, "more records than connections");
        Record((units as u32 - 1) << INDEX_BITS | index as u32)
    }

    /// A string that was kept.
    pub(crate) fn get(&self, record: Record) -> &[u8] {
        if record.class() == LARGE {
            return self.large.at(record.index() as u32).expect("its owner has not removed it");
        }
        let size = (record.class() as usize + 1) * GRAIN;
        let (chunk, index) = (record.index() / CHUNK, record.index() % CHUNK);
        let chunk = &self.classes[record.class() as usize].chunks[chunk];
        &chunk.bytes[index * size..(index + 1) * size]
    }

    /// A string that was kept, to be changed in place.
    pub(crate) fn get_mut(&mut self, record: Record) -> &mut [u8] {
        if record.class() == LARGE {
            return self.large.at_mut(record.index() as u32).expect("not removed by its owner");
        }
        let size = (record.class() as usize + 1) * GRAIN;
        let (chunk, index) = (record.index() / CHUNK, record.index() % CHUNK);
        let chunk = &mut self.classes[record.class() as usize].chunks[chunk];
        &mut chunk.bytes[index * size..(index + 1) * size]
    }

    /// Lets a string go. The lowest chunk of a size keeps its memory, so that one that comes and
    /// goes costs no allocation.
    pub(crate) fn remove(&mut self, record: Record) {
        if record.class() == LARGE {
            let removed = self.large.take(record.index() as u32);
            self.large_bytes -= removed.map_or(0, |bytes| bytes.len());
            return;
        }
        let size = (record.class() as usize + 1) * GRAIN;
        let class = &mut self.classes[record.class() as usize];
        let place = record.index() / CHUNK;
        let chunk = &mut class.chunks[place];
        chunk.remove(record.index() % CHUNK, size);
        if chunk.used == 0 && place > 0 {
            *chunk = Chunk::EMPTY;
        }
        class.first_with_room = class.first_with_room.min(place);
    }

    /// Puts another string in a record's place.
    pub(crate) fn replace(&mut self, record: &mut Record, bytes: &[u8]) {
        self.remove(*record);
        *record = self.insert(bytes);
    }

    /// Bytes of memory that are in use or were, chunks and bookkeeping.
    pub(crate) fn bytes(&self) -> usize {
        let chunks = self.classes.iter().flat_map(|class| &class.chunks);
        let held: usize = chunks.map(|chunk| chunk.bytes.len() + size_of::<Chunk>()).sum();
        held + self.large_bytes + self.large.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::{Arena, CHUNK, Record};

    #[test]
    fn strings_come_back_as_they_were_over_a_random_history() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut arena = Arena::new();
        let mut model: Vec<(Record, Vec<u8>)> = Vec::new();
        for _ in 0..30_000 {
            let bytes: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            match random.u8(..10) {
                0..5 => model.push((arena.insert(&bytes), bytes)),
                5..7 if !model.is_empty() => {
                    let at = random.usize(..model.len());
                    arena.replace(&mut model[at].0, &bytes);
                    model[at].1 = bytes;
                }
                _ if !model.is_empty() => {
                    let (record, bytes) = model.swap_remove(random.usize(..model.len()));
                    assert_eq!(arena.get(record)[..bytes.len()], bytes);
                    arena.remove(record);
                }
                _ => {}
            }
        }
        for (record, bytes) in &model {
            let found = arena.get(*record);
            assert_eq!(&found[..bytes.len()], bytes);
            assert!(found[bytes.len()..].iter().all(|byte| *byte == 0));
            assert!(found.len() < bytes.len().max(1) + 4);
        }
        for (record, _) in model {
            arena.remove(record);
        }
        assert!(arena.classes.iter().all(|class| class.chunks.iter().all(|c| c.used == 0)));
        assert_eq!(arena.large_bytes, 0);
    }

    #[test]
    fn a_crowd_that_left_leaves_one_chunk_of_each_size() {
        let mut arena = Arena::new();
        let records: Vec<_> = (0..10 * CHUNK).map(|_| arena.insert(&[1; 50])).collect();
        let full = arena.bytes();
        assert!(full < 10 * CHUNK * 52 + 10_000, "{full}");
        for record in records {
            arena.remove(record);
        }
        assert!(arena.bytes() < CHUNK * 52 + 10_000, "{}", arena.bytes());
    }
}
