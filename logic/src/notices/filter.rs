//! Who may have a notice waiting, from memory: nearly everybody who logs in has none, and must not
//! cost a look at the disk. A table of bits by a hash of the user; it forgets when nothing waits for
//! anybody.

use std::hash::{BuildHasher as _, RandomState};

/// 512 KiB: at 100,000 users with notices one of 40 others is looked up in vain.
const BITS: usize = 1 << 22;

/// See the module.
pub(super) struct Filter {
    hasher: RandomState,
    /// Empty until the first notice.
    bits: Vec<u64>,
    /// Rows that wait, over all users.
    rows: u64,
}

impl Filter {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), bits: Vec::new(), rows: 0 }
    }

    fn place(&self, user_id: &str) -> (usize, u64) {
        let bit = self.hasher.hash_one(user_id) as usize % BITS;
        (bit / 64, 1 << (bit % 64))
    }

    /// One more row of a user.
    pub(super) fn add(&mut self, user_id: &str) {
        if self.bits.is_empty() {
            self.bits = vec![0; BITS / 64];
        }
        let (word, mask) = self.place(user_id);
        self.bits[word] |= mask;
        self.rows += 1;
    }

    /// So many rows fewer.
    pub(super) fn remove(&mut self, rows: u64) {
        self.rows = self.rows.saturating_sub(rows);
        if self.rows == 0 {
            self.bits = Vec::new();
        }
    }

    pub(super) fn may_have(&self, user_id: &str) -> bool {
        let (word, mask) = self.place(user_id);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn who_has_something_is_never_passed_over_and_nothing_costs_nothing() {
        let mut filter = Filter::new();
        assert!(!filter.may_have("user0") && filter.bits.is_empty());
        for n in 0..1_000 {
            filter.add(&format!("user{n}"));
        }
        assert!((0..1_000).all(|n| filter.may_have(&format!("user{n}"))));
        let in_vain = (0..10_000).filter(|n| filter.may_have(&format!("other{n}"))).count();
        assert!(in_vain < 100, "{in_vain}");
        filter.remove(999);
        assert!(filter.may_have("user7"));
        filter.remove(1);
        assert!(!filter.may_have("user7") && filter.bits.is_empty());
    }
}
