//! A table whose entries stay where they are and whose ids are never reused: slot and generation.
//!
//! Entries live in chunks, so that growing never copies what is there. Free slots are used again
//! in the order they became free.

/// Entries of one chunk.
const CHUNK: usize = 1024;

/// No slot.
const NONE: u32 = u32::MAX;

/// A table of `T`.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
    slots: u32,
    slots_max: u32,
    free_first: u32,
    free_last: u32,
    used: u32,
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

impl<T> Slab<T> {
    /// An empty table that holds at most `slots_max` entries.
    pub(crate) const fn new(slots_max: u32) -> Self {
        Self { chunks: Vec::new(), slots: 0, slots_max, free_first: NONE, free_last: NONE, used: 0 }
    }

    /// Entries in use.
    pub(crate) const fn len(&self) -> u32 {
        self.used
    }

    /// One past the highest slot that was ever used.
    pub(crate) const fn slots(&self) -> u32 {
        self.slots
    }

    /// Puts an entry in; returns its slot and generation, or gives it back if the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<(u32, u32), T> {
        let slot = if self.free_first == NONE {
            if self.slots == self.slots_max {
                return Err(value);
            }
            if (self.slots as usize).is_multiple_of(CHUNK) {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            let chunk = self.chunks.last_mut().expect("a chunk was pushed when the last was full");
            chunk.push(Slot { generation: 0, entry: Entry::Free { next: NONE } });
            self.slots += 1;
            self.slots - 1
        } else {
            let slot = self.free_first;
            let Entry::Free { next } = self.slot(slot).entry else {
                unreachable!("the free list links free slots only")
            };
            self.free_first = next;
            if next == NONE {
                self.free_last = NONE;
            }
            slot
        };
        self.used += 1;
        let entry = self.slot_mut(slot);
        entry.generation += 1;
        entry.entry = Entry::Used(value);
        Ok((slot, entry.generation))
    }

    /// Takes an entry out. A slot whose generations are used up is never used again.
    pub(crate) fn remove(&mut self, slot: u32, generation: u32) -> Option<T> {
        self.get(slot, generation)?;
        let entry = std::mem::replace(&mut self.slot_mut(slot).entry, Entry::Free { next: NONE });
        self.used -= 1;
        if generation < u32::MAX {
            if self.free_last == NONE {
                self.free_first = slot;
            } else {
                let last = self.free_last;
                self.slot_mut(last).entry = Entry::Free { next: slot };
            }
            self.free_last = slot;
        }
        match entry {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// The entry, if this generation still lives.
    #[inline]
    pub(crate) fn get(&self, slot: u32, generation: u32) -> Option<&T> {
        let found = self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?;
        match &found.entry {
            Entry::Used(value) if found.generation == generation => Some(value),
            _ => None,
        }
    }

    /// The entry, if this generation still lives.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        let found = self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?;
        match &mut found.entry {
            Entry::Used(value) if found.generation == generation => Some(value),
            _ => None,
        }
    }

    /// The generation that lives in a slot, if one does.
    pub(crate) fn generation(&self, slot: u32) -> Option<u32> {
        let found = self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?;
        matches!(found.entry, Entry::Used(_)).then_some(found.generation)
    }

    fn slot(&self, slot: u32) -> &Slot<T> {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot<T> {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}

/// Bytes of one entry with its bookkeeping.
#[cfg(test)]
pub(crate) const fn slot_bytes<T>() -> usize {
    size_of::<Slot<T>>()
}

#[cfg(test)]
mod tests {
    use super::Slab;

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
}
