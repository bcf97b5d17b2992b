//! A table whose entries stay where they are and whose ids are never reused: slot and generation.
//!
//! Entries live in chunks, so that growing never copies what is there. A new entry goes into the
//! lowest chunk with room, so that after a crowd has left the upper chunks run empty; their memory
//! is given back, but for one chunk that is kept as a spare. A chunk remembers the highest
//! generation it ever used, and begins above it when its slots are needed again.

/// Entries of one chunk.
const CHUNK: usize = 1024;

/// No slot.
const NONE: u32 = u32::MAX;

/// A table of `T`.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    slots_max: u32,
    used: u32,
    /// No chunk below this one has room.
    first_with_room: usize,
    /// A chunk that ran empty and kept its memory; it may be in use again.
    spare: Option<usize>,
    /// The slot that became free last is used first.
    is_stack: bool,
}

/// Invariant: `slots` is empty exactly when the chunk has no memory.
#[derive(Debug)]
struct Chunk<T> {
    slots: Vec<Slot<T>>,
    slots_max: usize,
    free_first: u32,
    free_last: u32,
    used: u32,
    /// What the slots of this chunk had reached when its memory was given back.
    generation_base: u32,
}

#[derive(Debug)]
struct Slot<T> {
    /// Grows with every use of the slot; 0 before the first.
    generation: u32,
    entry: Entry<T>,
}

#[derive(Debug)]
enum Entry<T> {
    Used(T),
    Free { next: u32 },
}

impl<T> Chunk<T> {
    const fn new(slots_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            slots_max,
            free_first: NONE,
            free_last: NONE,
            used: 0,
            generation_base: 0,
        }
    }

    const fn has_room(&self) -> bool {
        self.free_first != NONE || self.slots.len() < self.slots_max
    }

    /// Puts an entry in; returns its place in the chunk and its generation.
    fn insert(&mut self, value: T) -> (u32, u32) {
        let index = if self.free_first == NONE {
            if self.slots.is_empty() {
                self.slots.reserve_exact(self.slots_max);
            }
            let generation = self.generation_base;
            self.slots.push(Slot { generation, entry: Entry::Free { next: NONE } });
            self.slots.len() as u32 - 1
        } else {
            let index = self.free_first;
            let Entry::Free { next } = self.slots[index as usize].entry else {
                unreachable!("the free list links free slots only")
            };
            self.free_first = next;
            if next == NONE {
                self.free_last = NONE;
            }
            index
        };
        self.used += 1;
        let slot = &mut self.slots[index as usize];
        slot.generation += 1;
        slot.entry = Entry::Used(value);
        (index, slot.generation)
    }

    /// Frees a slot. One whose generations are used up is never used again.
    fn remove(&mut self, index: u32, is_stack: bool) -> Entry<T> {
        let slot = &mut self.slots[index as usize];
        let entry = std::mem::replace(&mut slot.entry, Entry::Free { next: NONE });
        let generation = slot.generation;
        self.used -= 1;
        if generation < u32::MAX {
            if self.free_last == NONE {
                self.free_first = index;
            } else if is_stack {
                slot.entry = Entry::Free { next: self.free_first };
                self.free_first = index;
                return entry;
            } else {
                self.slots[self.free_last as usize].entry = Entry::Free { next: index };
            }
            self.free_last = index;
        }
        entry
    }

    /// Gives the memory of an empty chunk back, unless a slot of it has used up its generations.
    fn release(&mut self) {
        debug_assert_eq!(self.used, 0, "only an empty chunk gives its memory back");
        let highest = self.slots.iter().map(|slot| slot.generation).max();
        let highest = highest.unwrap_or(self.generation_base);
        if highest < u32::MAX {
            self.generation_base = highest;
            self.slots = Vec::new();
            (self.free_first, self.free_last) = (NONE, NONE);
        }
    }
}

impl<T> Slab<T> {
    /// An empty table that holds at most `slots_max` entries.
    pub(crate) const fn new(slots_max: u32) -> Self {
        Self::with(slots_max, false)
    }

    const fn with(slots_max: u32, is_stack: bool) -> Self {
        Self { chunks: Vec::new(), slots_max, used: 0, first_with_room: 0, spare: None, is_stack }
    }

    /// An empty table whose entries come and go often: the slot that became free last is used
    /// first, because it is still in the cache. In others slots are used again in the order in
    /// which they became free, so that generations last longest.
    pub(crate) const fn stack(slots_max: u32) -> Self {
        Self::with(slots_max, true)
    }

    /// Entries in use.
    pub(crate) const fn len(&self) -> u32 {
        self.used
    }

    /// One past the highest slot that may be in use.
    pub(crate) fn slots(&self) -> u32 {
        let below = self.chunks.len().saturating_sub(1) * CHUNK;
        (below + self.chunks.last().map_or(0, |chunk| chunk.slots.len())) as u32
    }

    /// Puts an entry in; returns its slot and generation, or gives it back if the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<(u32, u32), T> {
        while self.chunks.get(self.first_with_room).is_some_and(|chunk| !chunk.has_room()) {
            self.first_with_room += 1;
        }
        let place = self.first_with_room;
        if place == self.chunks.len() {
            let left = (self.slots_max as usize).saturating_sub(place * CHUNK);
            if left == 0 {
                return Err(value);
            }
            self.chunks.push(Chunk::new(left.min(CHUNK)));
        }
        let (index, generation) = self.chunks[place].insert(value);
        self.used += 1;
        Ok(((place * CHUNK) as u32 + index, generation))
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, slot: u32, generation: u32) -> Option<T> {
        self.get(slot, generation)?;
        let place = slot as usize / CHUNK;
        let chunk = &mut self.chunks[place];
        let entry = chunk.remove(slot % CHUNK as u32, self.is_stack);
        let is_empty = chunk.used == 0;
        self.used -= 1;
        self.first_with_room = self.first_with_room.min(place);
        if is_empty {
            self.release_all_but_one(place);
        }
        match entry {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// Of the chunk that just ran empty and the spare one, the upper gives its memory back. One is
    /// kept, so that a connection that comes and goes at a chunk's edge costs no allocation.
    fn release_all_but_one(&mut self, place: usize) {
        let keep = match self.spare {
            Some(spare) if spare != place && self.chunks[spare].used == 0 => {
                self.chunks[spare.max(place)].release();
                spare.min(place)
            }
            _ => place,
        };
        self.spare = Some(keep);
    }

    /// The entry, if this generation still lives.
    #[inline]
    pub(crate) fn get(&self, slot: u32, generation: u32) -> Option<&T> {
        let found = self.chunks.get(slot as usize / CHUNK)?.slots.get(slot as usize % CHUNK)?;
        match &found.entry {
            Entry::Used(value) if found.generation == generation => Some(value),
            _ => None,
        }
    }

    /// The entry, if this generation still lives.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(slot as usize / CHUNK)?;
        let found = chunk.slots.get_mut(slot as usize % CHUNK)?;
        match &mut found.entry {
            Entry::Used(value) if found.generation == generation => Some(value),
            _ => None,
        }
    }

    /// The entry in a slot, for whoever owns the slot and so needs no generation.
    #[inline]
    pub(crate) fn at(&self, slot: u32) -> Option<&T> {
        let found = self.chunks.get(slot as usize / CHUNK)?.slots.get(slot as usize % CHUNK)?;
        match &found.entry {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// The entry in a slot, for whoever owns the slot.
    #[inline]
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(slot as usize / CHUNK)?;
        match &mut chunk.slots.get_mut(slot as usize % CHUNK)?.entry {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// Takes the entry out of a slot, for whoever owns the slot.
    pub(crate) fn take(&mut self, slot: u32) -> Option<T> {
        self.remove(slot, self.generation(slot)?)
    }

    /// Bytes of memory that are in use or were: slots and bookkeeping, not what entries point to.
    pub(crate) fn bytes(&self) -> usize {
        let slots: usize = self.chunks.iter().map(|chunk| chunk.slots.len()).sum();
        slots * size_of::<Slot<T>>() + self.chunks.capacity() * size_of::<Chunk<T>>()
    }

    /// The generation that lives in a slot, if one does.
    pub(crate) fn generation(&self, slot: u32) -> Option<u32> {
        let found = self.chunks.get(slot as usize / CHUNK)?.slots.get(slot as usize % CHUNK)?;
        matches!(found.entry, Entry::Used(_)).then_some(found.generation)
    }
}

/// Bytes of one entry with its bookkeeping.
#[cfg(test)]
pub(crate) const fn slot_bytes<T>() -> usize {
    size_of::<Slot<T>>()
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Slab};

    #[test]
    fn an_old_generation_never_reaches_a_new_entry() {
        let mut slab = Slab::new(10);
        let (slot, first) = slab.insert("a").expect("room");
        assert_eq!(slab.remove(slot, first), Some("a"));
        assert_eq!(slab.remove(slot, first), None);
        let (again, second) = slab.insert("b").expect("room");
        assert_eq!((slot, first, second), (again, 1, 2));
        assert_eq!(slab.get(slot, first), None);
        assert_eq!(slab.get_mut(slot, second), Some(&mut "b"));
        assert_eq!(slab.get(99, 1), None);
    }

    #[test]
    fn a_full_table_gives_the_entry_back() {
        let mut slab = Slab::new(2);
        slab.insert(1).expect("room");
        let (slot, generation) = slab.insert(2).expect("room");
        assert_eq!(slab.insert(3), Err(3));
        slab.remove(slot, generation);
        assert_eq!(slab.insert(3), Ok((slot, generation + 1)));
        assert_eq!((slab.len(), slab.slots()), (2, 2));
    }

    #[test]
    fn it_agrees_with_a_map_over_a_random_history() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut slab = Slab::new(5000);
        let mut model: Vec<((u32, u32), u64)> = Vec::new();
        for round in 0..20_000_u64 {
            if random.u8(..) < 140 {
                if let Ok(id) = slab.insert(round) {
                    assert!(model.iter().all(|(other, _)| other.0 != id.0));
                    model.push((id, round));
                }
            } else if !model.is_empty() {
                let ((slot, generation), value) = model.swap_remove(random.usize(..model.len()));
                assert_eq!(slab.remove(slot, generation), Some(value));
            }
        }
        assert_eq!(slab.len() as usize, model.len());
        for ((slot, generation), value) in model {
            assert_eq!(slab.get(slot, generation), Some(&value));
            assert_eq!(slab.generation(slot), Some(generation));
        }
    }

    #[test]
    fn a_crowd_that_left_leaves_the_memory_of_one_chunk_and_no_id_comes_again() {
        let mut slab = Slab::new(10 * CHUNK as u32);
        let memory = |slab: &Slab<u32>| {
            slab.chunks.iter().filter(|chunk| chunk.slots.capacity() > 0).count()
        };
        let mut seen = std::collections::HashSet::new();
        for wave in 0..4_u32 {
            let ids: Vec<_> =
                (0..10 * CHUNK as u32).map(|_| slab.insert(wave).expect("room")).collect();
            assert_eq!(slab.insert(wave), Err(wave));
            assert_eq!(memory(&slab), 10);
            for id in ids {
                assert!(seen.insert(id), "{id:?} was used before");
                assert_eq!(slab.remove(id.0, id.1), Some(wave));
                assert_eq!(slab.get(id.0, id.1), None);
            }
            assert_eq!((slab.len(), memory(&slab)), (0, 1));
        }
    }

    #[test]
    fn a_stack_uses_the_slot_that_became_free_last() {
        let mut slab = Slab::stack(10);
        let ids: Vec<_> = (0..4).map(|n| slab.insert(n).expect("room")).collect();
        for place in [1, 3, 0] {
            assert_eq!(slab.take(ids[place].0), Some(place));
        }
        let again: Vec<u32> = (0..4).map(|n| slab.insert(n).expect("room").0).collect();
        assert_eq!(again, [ids[0].0, ids[3].0, ids[1].0, 4]);
    }

    #[test]
    fn new_entries_go_low_so_that_high_chunks_run_empty() {
        let mut slab = Slab::new(3 * CHUNK as u32);
        let ids: Vec<_> = (0..3 * CHUNK as u32).map(|n| slab.insert(n).expect("room")).collect();
        for (slot, generation) in ids.iter().take(CHUNK) {
            slab.remove(*slot, *generation);
        }
        for n in 0..100 {
            let (slot, _) = slab.insert(n).expect("room");
            assert!((slot as usize) < CHUNK);
        }
    }
}
