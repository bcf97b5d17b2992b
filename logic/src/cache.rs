//! A bounded cache in two generations: what was used lately survives, the rest goes at once.
//!
//! Not exact least-recently-used: when the young generation has half of the bound, it becomes the
//! old one and the former old one is dropped. Each operation is a hash look-up or two.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, mem};

/// Holds at most `weight_max` of weight.
pub struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    young_weight: usize,
    weight_max: usize,
    weigh: fn(&V) -> usize,
}

impl<K: Eq + Hash + Clone, V> Cache<K, V> {
    /// An empty cache; `weigh` says what an entry counts as.
    pub fn new(weight_max: usize, weigh: fn(&V) -> usize) -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        Self { young, old, young_weight: 0, weight_max, weigh }
    }

    /// Puts an entry in place of an earlier one of its key. One heavier than half of the bound is
    /// not kept.
    pub fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        let weight = (self.weigh)(&value);
        if weight > self.weight_max / 2 {
            return;
        }
        if self.young_weight + weight > self.weight_max / 2 {
            self.old = mem::take(&mut self.young);
            self.young_weight = 0;
        }
        self.young_weight += weight;
        self.young.insert(key, value);
    }

    /// Finds an entry and counts it as used.
    pub fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get(key)
    }

    /// Forgets an entry.
    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.old.remove(key);
        if let Some(value) = self.young.remove(key) {
            self.young_weight -= (self.weigh)(&value);
        }
    }
}

#[cfg(test)]
impl<K: Eq + Hash + Clone, V> Cache<K, V> {
    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let mut cache: Cache<u32, u32> = Cache::new(100, |_| 1);
        for key in 0..10_000 {
            cache.insert(key, key);
            assert_eq!(cache.get(&0), Some(&0), "after {key}");
            assert!(cache.young.len() + cache.old.len() <= 100);
        }
        assert_eq!(cache.get(&9_999), Some(&9_999));
        assert_eq!(cache.get(&5_000), None);
    }

    #[test]
    fn an_entry_is_replaced_in_either_generation() {
        let mut cache: Cache<u32, usize> = Cache::new(10, |weight| *weight);
        cache.insert(1, 4);
        cache.insert(2, 4);
        assert!(cache.old.contains_key(&1));
        cache.insert(1, 1);
        assert_eq!(cache.get(&1), Some(&1));
        cache.insert(1, 6);
        assert_eq!(cache.get(&1), None, "too heavy to keep, and the earlier one is gone");
        cache.remove(&2);
        assert_eq!(cache.get(&2), None);
        assert_eq!(cache.young_weight, 0);
    }
}
