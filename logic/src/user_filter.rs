//! Who may have something (a notice that waits, a device that can be reached offline), from memory:
//! nearly nobody has, and must not cost a look at the disk. A table of bits by a hash of the user; it
//! forgets when nobody has anything.

use std::hash::{BuildHasher as _, RandomState};

/// 512 KiB: at 100,000 users with notices one of 40 others is looked up in vain.
const BITS: usize = 1 << 22;

/// See the module.
pub(crate) struct UserFilter {
    hasher: RandomState,
    /// Empty until the first notice.
    bits: Vec<u64>,
    /// Rows that wait, over all users.
    rows: u64,
}

impl UserFilter {
    pub(crate) fn new() -> Self {
        Self { hasher: RandomState::new(), bits: Vec::new(), rows: 0 }
    }

    fn place(&self, user_id: &str) -> (usize, u64) {
        let bit = self.hasher.hash_one(user_id) as usize % BITS;
        (bit / 64, 1 << (bit % 64))
    }

    /// One more row of a user.
    pub(crate) fn add(&mut self, user_id: &str) {
        if self.bits.is_empty() {
            self.bits = vec![0; BITS / 64];
        }
        let (word, mask) = self.place(user_id);
        self.bits[word] |= mask;
        self.rows += 1;
    }

    /// So many rows fewer.
    pub(crate) fn remove(&mut self, rows: u64) {
        self.rows = self.rows.saturating_sub(rows);
        if self.rows == 0 {
            self.bits = Vec::new();
        }
    }

    pub(crate) fn may_have(&self, user_id: &str) -> bool {
        let (word, mask) = self.place(user_id);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::UserFilter;

    #[test]
    fn who_has_something_is_never_passed_over_and_nothing_costs_nothing() {
        let mut filter = UserFilter::new();
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
