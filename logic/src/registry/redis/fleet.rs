//! Which logic processes live, as the last beat said. No I/O.
//!
//! A lease that has ended says that a process and Redis have not met for a while, not that it is dead:
//! it may be cut off from Redis alone while its users are connected as ever. So what it stated is *in
//! doubt* for a further grace and still counts. Meanwhile the truth mostly shows: gateways list the
//! sessions of a process that is dead to another within seconds, and who serves a session says so.
//!
//! An owner that no beat has named is either younger than the beat, or long gone, or Redis has just lost
//! everything. It is in doubt as well, for a lease and a grace.
//!
//! Time is counted in beats that came through, so that nobody ages while Redis is away.

use std::{collections::HashMap, time::Duration};

use super::entry::OwnerId;

/// Owners never named that are in doubt at the same time. Above it all of them begin anew.
const DOUBTED_MAX: usize = 1_024;

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its lease holds.
    Live,
    /// Its lease has ended, or it was never heard of.
    InDoubt,
    /// It was in doubt for all of the grace.
    Gone,
}

/// What a beat says of a process's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// It holds.
    Holds,
    /// It ended so long ago.
    Ended(Duration),
}

#[derive(Debug)]
pub(super) struct Fleet {
    lease: Duration,
    grace: Duration,
    /// The owners that the last beat named.
    owners: HashMap<OwnerId, Lease>,
    /// How long beats have come through, all in all.
    clock: Duration,
    /// Owners that were met in entries and not named, and since when.
    doubted: HashMap<OwnerId, Duration>,
}

impl Fleet {
    pub(super) fn new(lease: Duration, grace: Duration) -> Self {
        let (owners, doubted) = (HashMap::new(), HashMap::new());
        Self { lease, grace, owners, clock: Duration::ZERO, doubted }
    }

    /// What a beat has said, so long after the one before it.
    pub(super) fn update(&mut self, owners: HashMap<OwnerId, Lease>, passed: Duration) {
        self.clock += passed;
        self.doubted.retain(|owner, _| !owners.contains_key(owner));
        self.owners = owners;
    }

    /// How long beats have come through, all in all.
    pub(super) fn clock(&self) -> Duration {
        self.clock
    }

    /// What is known of this owner.
    pub(super) fn standing(&mut self, owner: OwnerId) -> Standing {
        match self.owners.get(&owner) {
            Some(Lease::Holds) => return Standing::Live,
            Some(Lease::Ended(ago)) if *ago < self.grace => return Standing::InDoubt,
            Some(Lease::Ended(_)) => return Standing::Gone,
            None => {}
        }
        if self.doubted.len() >= DOUBTED_MAX && !self.doubted.contains_key(&owner) {
            self.doubted.clear();
        }
        let since = *self.doubted.entry(owner).or_insert(self.clock);
        match self.is_over(since) {
            true => Standing::Gone,
            false => Standing::InDoubt,
        }
    }

    fn is_over(&self, since: Duration) -> bool {
        self.clock.saturating_sub(since) >= self.lease + self.grace
    }

    /// The owners that are known to be gone.
    pub(super) fn gone(&self) -> Vec<OwnerId> {
        let is_gone = |lease: &Lease| matches!(lease, Lease::Ended(ago) if *ago >= self.grace);
        let named = self.owners.iter().filter(|(_, lease)| is_gone(lease)).map(|(owner, _)| *owner);
        let missed =
            self.doubted.iter().filter(|(_, since)| self.is_over(**since)).map(|(owner, _)| *owner);
        named.chain(missed).collect()
    }

    /// What belongs to these is removed; they need not be remembered.
    pub(super) fn forget(&mut self, owners: &[OwnerId]) {
        for owner in owners {
            self.doubted.remove(owner);
        }
    }

    /// How many live.
    pub(super) fn live(&self) -> usize {
        self.owners.values().filter(|lease| **lease == Lease::Holds).count()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::{Fleet, Lease, OwnerId, Standing};

    const LEASE: Duration = Duration::from_secs(10);
    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn an_owner_that_nobody_has_named_is_in_doubt_for_a_lease_and_a_grace_of_beats() {
        let mut fleet = Fleet::new(LEASE, GRACE);
        let owner = OwnerId(*b"somebody");
        assert_eq!(fleet.standing(owner), Standing::InDoubt);
        fleet.update(HashMap::new(), GRACE);
        assert_eq!(fleet.standing(owner), Standing::InDoubt);
        assert!(fleet.gone().is_empty());
        fleet.update(HashMap::new(), LEASE);
        assert_eq!(fleet.standing(owner), Standing::Gone);
        assert_eq!(fleet.gone(), [owner]);
        fleet.update(HashMap::from([(owner, Lease::Holds)]), LEASE);
        assert_eq!(fleet.standing(owner), Standing::Live, "it was named after all");
        assert!(fleet.gone().is_empty());
    }

    #[test]
    fn an_owner_whose_lease_has_ended_is_in_doubt_for_the_grace_and_then_gone() {
        let mut fleet = Fleet::new(LEASE, GRACE);
        let owner = OwnerId(*b"somebody");
        let mut after = |ago| {
            fleet.update(HashMap::from([(owner, ago)]), Duration::from_secs(1));
            (fleet.standing(owner), fleet.gone().len(), fleet.live())
        };
        assert_eq!(after(Lease::Holds), (Standing::Live, 0, 1));
        assert_eq!(after(Lease::Ended(Duration::ZERO)), (Standing::InDoubt, 0, 0));
        assert_eq!(after(Lease::Ended(GRACE / 2)), (Standing::InDoubt, 0, 0));
        assert_eq!(after(Lease::Ended(GRACE)), (Standing::Gone, 1, 0));
    }

    #[test]
    fn doubts_are_bounded() {
        let mut fleet = Fleet::new(LEASE, GRACE);
        for number in 0..10_000_u64 {
            fleet.standing(OwnerId(number.to_be_bytes()));
        }
        assert!(fleet.doubted.len() <= super::DOUBTED_MAX);
    }
}
