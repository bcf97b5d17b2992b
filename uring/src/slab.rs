//! A vector with a free list, for state that only few sockets have at a time.
//!
//! Indices are reused; whoever keeps one is responsible for it (here: the socket table).

/// Values at stable indices.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    values: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }

    /// Stores a value and returns its index.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.values[index as usize] = Some(value);
            return index;
        }
        let index = u32::try_from(self.values.len()).expect("bounded by the socket table");
        self.values.push(Some(value));
        index
    }

    /// The value at an index that was inserted and not yet removed.
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut T {
        self.values[index as usize].as_mut().expect("an index is used only while its value is in")
    }

    /// Takes the value out; the index is free afterwards.
    pub(crate) fn remove(&mut self, index: u32) -> T {
        let value =
            self.values[index as usize].take().expect("an index is removed only while occupied");
        self.free.push(index);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_stable_until_removed_and_then_reused() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), 'a');
        assert_eq!(*slab.get_mut(b), 'b');
        assert_eq!(slab.insert('c'), a);
        assert_eq!(*slab.get_mut(a), 'c');
    }
}
