//! What questions and changes see of side tables, whatever these lie on: rows of bytes in the order of
//! their keys.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeInclusive},
};

use crate::storage::StoreError;

/// Changed rows of one table: what is written, or `None` for what is removed.
pub(in crate::storage) type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Takes a key and a row; says whether it wants more.
pub(in crate::storage) type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, StoreError> + 'a;

/// Rows of some tables, which are named by their place in the list they were opened with.
pub(in crate::storage) trait RowSource {
    /// One row.
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// The rows from a key on and before another, in order, as long as `each` wants more.
    fn range(
        &self,
        table: usize,
        start: &[u8],
        end: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError>;

    /// These rows, and all that begin with these prefixes, will be asked for: a source that is far
    /// away fetches them together.
    fn prefetch(&self, keys: &[Place], prefixes: &[Place]) -> Result<(), StoreError> {
        let _ = (keys, prefixes);
        Ok(())
    }
}

/// A table's place and a key in it, or what keys begin with.
pub type Place = (usize, Vec<u8>);

/// The first key behind all that begin with a prefix; `None` if there is none.
pub(in crate::storage) fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn prefixed(
    rows: &dyn RowSource,
    table: usize,
    prefix: &[u8],
    from: &[u8],
    each: &mut Each<'_>,
) -> Result<(), StoreError> {
    let start = if from > prefix { from } else { prefix };
    let end = behind(prefix);
    if end.as_deref().is_some_and(|end| start >= end) {
        return Ok(());
    }
    rows.range(table, start, end.as_deref(), each)
}

/// Rows with changes over them that are not stored yet.
pub(in crate::storage) struct Overlaid<'a> {
    pub base: &'a dyn RowSource,
    /// By table; what comes later in the list of lists lies on top.
    pub written: &'a [Rows],
}

impl RowSource for Overlaid<'_> {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.written[table].get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(table, key),
        }
    }

    fn range(
        &self,
        table: usize,
        start: &[u8],
        end: Option<&[u8]>,
        each: &mut Each<'_>,
    ) -> Result<(), StoreError> {
        let end_bound = end.map_or(Bound::Unbounded, Bound::Excluded);
        let written = self.written[table].range::<[u8], _>((Bound::Included(start), end_bound));
        let mut changed = written.peekable();
        let mut wants_more = true;
        self.base.range(table, start, end, &mut |key, value| {
            // What was changed and comes first.
            while let Some((earlier, row)) = changed.next_if(|(changed, _)| changed[..] < key[..]) {
                if let Some(row) = row
                    && !each(earlier, row)?
                {
                    wants_more = false;
                    return Ok(false);
                }
            }
            wants_more = match changed.next_if(|(changed, _)| changed[..] == key[..]) {
                Some((_, None)) => true,
                Some((_, Some(row))) => each(key, row)?,
                None => each(key, value)?,
            };
            Ok(wants_more)
        })?;
        if !wants_more {
            return Ok(());
        }
        for (key, row) in changed {
            if let Some(row) = row
                && !each(key, row)?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn prefetch(&self, keys: &[Place], prefixes: &[Place]) -> Result<(), StoreError> {
        self.base.prefetch(keys, prefixes)
    }
}

/// The rows of a side table at one moment.
pub struct SideRows<'a> {
    source: &'a dyn RowSource,
}

impl<'a> SideRows<'a> {
    pub(in crate::storage) fn new(source: &'a dyn RowSource) -> Self {
        Self { source }
    }

    /// One row.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.source.get(0, key)
    }

    /// Many rows, in the order of the keys, fetched together where rows are far away.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn get_all(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let keys: Vec<Place> = keys.into_iter().map(|key| (0, key)).collect();
        self.source.prefetch(&keys, &[])?;
        keys.iter().map(|(_, key)| self.get(key)).collect()
    }

    /// The rows of a range of keys, in order, as long as `each` wants more.
    ///
    /// # Errors
    /// What `each` or the engine refuses.
    pub fn range(
        &self,
        range: RangeInclusive<Vec<u8>>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let (start, mut end) = range.into_inner();
        // The next key after one is the same with a zero byte.
        end.push(0);
        if start >= end {
            return Ok(());
        }
        self.source.range(0, &start, Some(&end), &mut each)
    }

    /// The rows whose keys begin with a prefix, in order, as long as `each` wants more.
    ///
    /// # Errors
    /// What `each` or the engine refuses.
    pub fn prefix(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        prefixed(self.source, 0, prefix, b"", &mut each)
    }
}

/// A transaction: what it has changed shows in [`SideWrites::get`], not in ranges.
pub struct SideWrites<'a> {
    rows: SideRows<'a>,
    changes: Rows,
}

impl<'a> SideWrites<'a> {
    pub(in crate::storage) fn new(source: &'a dyn RowSource) -> Self {
        Self { rows: SideRows::new(source), changes: Rows::new() }
    }

    pub(in crate::storage) fn into_changes(self) -> Rows {
        self.changes
    }

    /// The rows as they were before this transaction.
    pub fn before(&self) -> &SideRows<'a> {
        &self.rows
    }

    /// One row, with the changes of this transaction.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.rows.get(key),
        }
    }

    /// Puts a row in place of an earlier one.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    /// Removes a row, if it is there.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }
}

/// What a change of a group of tables sees: everything that is durable, what was changed before it in
/// the same commit, and what it has written itself. Tables are named by their place in the list they
/// were opened with.
pub struct GroupWrites<'a> {
    base: &'a dyn RowSource,
    written: &'a [Rows],
    own: Vec<Rows>,
}

impl<'a> GroupWrites<'a> {
    pub(in crate::storage) fn new(
        base: &'a dyn RowSource,
        written: &'a [Rows],
        tables: usize,
    ) -> Self {
        Self { base, written, own: (0..tables).map(|_| Rows::new()).collect() }
    }

    pub(in crate::storage) fn into_changes(self) -> Vec<Rows> {
        self.own
    }

    /// A row.
    ///
    /// # Errors
    /// The store's own failures.
    pub fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let before = Overlaid { base: self.base, written: self.written };
        Overlaid { base: &before, written: &self.own }.get(table, key)
    }

    /// These rows, and those that begin with these prefixes, will be asked for; where rows are far
    /// away they are fetched together.
    ///
    /// # Errors
    /// The store's own failures.
    pub fn prefetch(&self, keys: &[Place], prefixes: &[Place]) -> Result<(), StoreError> {
        self.base.prefetch(keys, prefixes)
    }

    /// Writes a row.
    pub fn put(&mut self, table: usize, key: Vec<u8>, value: Vec<u8>) {
        self.own[table].insert(key, Some(value));
    }

    /// Removes a row.
    pub fn remove(&mut self, table: usize, key: Vec<u8>) {
        self.own[table].insert(key, None);
    }

    /// The rows whose keys begin with a prefix, in order, from `from` on (which begins with the
    /// prefix, or is empty), as long as `each` wants more.
    ///
    /// # Errors
    /// The store's own failures, and those of `each`.
    pub fn scan(
        &self,
        table: usize,
        prefix: &[u8],
        from: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let before = Overlaid { base: self.base, written: self.written };
        let now = Overlaid { base: &before, written: &self.own };
        prefixed(&now, table, prefix, from, &mut each)
    }
}

/// A consistent view of what is durable in a group of tables.
pub struct GroupRows<'a> {
    source: &'a dyn RowSource,
}

impl<'a> GroupRows<'a> {
    pub(in crate::storage) fn new(source: &'a dyn RowSource) -> Self {
        Self { source }
    }

    /// A row.
    ///
    /// # Errors
    /// The store's own failures.
    pub fn get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.source.get(table, key)
    }

    /// As [`GroupWrites::prefetch`].
    ///
    /// # Errors
    /// The store's own failures.
    pub fn prefetch(&self, keys: &[Place], prefixes: &[Place]) -> Result<(), StoreError> {
        self.source.prefetch(keys, prefixes)
    }

    /// As [`GroupWrites::scan`].
    ///
    /// # Errors
    /// The store's own failures, and those of `each`.
    pub fn scan(
        &self,
        table: usize,
        prefix: &[u8],
        from: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        prefixed(self.source, table, prefix, from, &mut each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Rows);

    impl RowSource for Fixed {
        fn get(&self, _: usize, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.0.get(key).cloned().flatten())
        }

        fn range(
            &self,
            _: usize,
            start: &[u8],
            end: Option<&[u8]>,
            each: &mut Each<'_>,
        ) -> Result<(), StoreError> {
            let end = end.map_or(Bound::Unbounded, Bound::Excluded);
            for (key, value) in self.0.range::<[u8], _>((Bound::Included(start), end)) {
                if let Some(value) = value
                    && !each(key, value)?
                {
                    break;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn changes_over_rows_show_as_if_they_were_stored() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let mut stored = Rows::new();
            let mut layers = [Rows::new(), Rows::new()];
            for (at, layer) in [&mut stored].into_iter().chain(&mut layers).enumerate() {
                for _ in 0..random.usize(..8) {
                    let key = vec![random.u8(..4), random.u8(..3)];
                    let value = (at == 0 || random.bool()).then(|| vec![at as u8]);
                    layer.insert(key, value);
                }
            }
            let mut all = stored.clone();
            layers.iter().for_each(|layer| all.extend(layer.clone()));
            let (base, expected) = (Fixed(stored), Fixed(all));
            let (one, two) = (&layers[..1], &layers[1..]);
            let below = Overlaid { base: &base, written: one };
            let now = Overlaid { base: &below, written: two };
            let (prefix, most) = (random.u8(..4), random.usize(1..9));
            let seen = |rows: &dyn RowSource| {
                let mut found = vec![];
                prefixed(rows, 0, &[prefix], &[prefix, 1], &mut |key, value| {
                    found.push((key.to_vec(), value.to_vec()));
                    Ok(found.len() < most)
                })
                .expect("nothing fails here");
                found
            };
            assert_eq!(seen(&now), seen(&expected));
            let key = [random.u8(..4), random.u8(..3)];
            assert_eq!(now.get(0, &key).expect("read"), expected.get(0, &key).expect("read"));
        }
    }

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(behind(b"a"), Some(b"b".to_vec()));
        assert_eq!(behind(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(behind(&[0xff]), None);
        assert_eq!(behind(b""), None);
    }
}
