//! Which address of a name has which place among a shard's links, while addresses come and go.
//!
//! The engine knows a link by its place. An address keeps its place for as long as its name gives it, and
//! gets it back if it comes again before another one needed it: so an answer that misses one for a moment
//! changes nothing. Nothing here touches a link: a link whose address is named no more looks at its
//! place when its stream has ended, and *holds* the place until then.
//!
//! No input or output, no clock: whoever asks the name server tells what it said.

use std::{collections::BTreeSet, net::SocketAddr};

/// Addresses in their places.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Who has it, or had it last.
    address: Option<SocketAddr>,
    /// Whether a name gave this address last time.
    is_named: bool,
}

/// What [`Places::give`] has come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// Places with the address that they lead to from now on.
    pub to: Vec<(usize, SocketAddr)>,
    /// Addresses for which there was no place.
    pub without: usize,
}

impl Places {
    /// So many, all free.
    pub fn new(places: usize) -> Self {
        Self { places: vec![Place::default(); places] }
    }

    /// Takes note of what is named now, and returns the places of addresses that are named no more. They
    /// can be given to others once nobody holds them.
    pub fn leave(&mut self, named: &BTreeSet<SocketAddr>) -> Vec<usize> {
        let mut left = Vec::new();
        for (at, place) in self.places.iter_mut().enumerate() {
            if place.is_named && place.address.is_some_and(|address| !named.contains(&address)) {
                place.is_named = false;
                left.push(at);
            }
        }
        left
    }

    /// Gives places to addresses that have none. `is_held`: a link still uses this place for the address
    /// that had it. To be asked after the links were told what [`Self::leave`] returned.
    pub fn give(&mut self, named: &BTreeSet<SocketAddr>, is_held: impl Fn(usize) -> bool) -> Given {
        let mut given = Given::default();
        for address in named {
            let own = self.places.iter().position(|place| place.address == Some(*address));
            let found = own.or_else(|| {
                // One that nobody had before one that might be wanted again.
                let free = |at: &usize| !self.places[*at].is_named && !is_held(*at);
                let all = 0..self.places.len();
                all.filter(free).min_by_key(|at| self.places[*at].address.is_some())
            });
            let Some(at) = found else {
                given.without += 1;
                continue;
            };
            if !self.places[at].is_named {
                self.places[at] = Place { address: Some(*address), is_named: true };
                given.to.push((at, *address));
            }
        }
        given
    }

    /// Addresses that are named and have a place.
    pub fn named(&self) -> usize {
        self.places.iter().filter(|place| place.is_named).count()
    }

    /// Addresses that are named no more and whose place is held by a link.
    pub fn kept(&self, is_held: impl Fn(usize) -> bool) -> usize {
        let places = self.places.iter().enumerate();
        places.filter(|(at, place)| !place.is_named && is_held(*at)).count()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use super::Places;

    fn address(number: u8) -> SocketAddr {
        ([10, 0, 0, number], 9700).into()
    }

    /// One answer: the places that are left, those that are given, and how many addresses have none.
    fn answer(
        places: &mut Places,
        numbers: &[u8],
        held: &[usize],
    ) -> (Vec<usize>, Vec<(usize, u8)>, usize) {
        let named: BTreeSet<_> = numbers.iter().copied().map(address).collect();
        let left = places.leave(&named);
        let given = places.give(&named, |at| held.contains(&at));
        let number = |address: SocketAddr| match address {
            SocketAddr::V4(address) => address.ip().octets()[3],
            SocketAddr::V6(_) => unreachable!("none of these tests has one"),
        };
        let to = given.to.into_iter().map(|(at, address)| (at, number(address))).collect();
        (left, to, given.without)
    }

    const NOTHING: (Vec<usize>, Vec<(usize, u8)>, usize) = (vec![], vec![], 0);

    #[test]
    fn addresses_keep_their_places_whatever_their_order() {
        let mut places = Places::new(3);
        assert_eq!(answer(&mut places, &[2, 1], &[]), (vec![], vec![(0, 1), (1, 2)], 0));
        assert_eq!(answer(&mut places, &[1, 2], &[0, 1]), NOTHING);
        assert_eq!(answer(&mut places, &[0, 2, 1], &[0, 1]), (vec![], vec![(2, 0)], 0));
        assert_eq!(places.named(), 3);
    }

    #[test]
    fn an_answer_that_misses_one_for_a_moment_changes_nothing_of_a_link_that_is_held() {
        let mut places = Places::new(2);
        answer(&mut places, &[1, 2], &[]);
        assert_eq!(answer(&mut places, &[2], &[0, 1]), (vec![0], vec![], 0));
        assert_eq!((places.named(), places.kept(|at| at == 0)), (1, 1));
        assert_eq!(answer(&mut places, &[1, 2], &[0, 1]), (vec![], vec![(0, 1)], 0));
        assert_eq!((places.named(), places.kept(|_| true)), (2, 0));
    }

    #[test]
    fn a_place_that_a_link_holds_is_given_to_nobody_else() {
        let mut places = Places::new(2);
        answer(&mut places, &[1, 2], &[]);
        assert_eq!(answer(&mut places, &[2, 3], &[0, 1]), (vec![0], vec![], 1));
        assert_eq!(answer(&mut places, &[2, 3], &[1]), (vec![], vec![(0, 3)], 0));
        assert_eq!(answer(&mut places, &[2, 3], &[0, 1]), NOTHING, "nobody has two places");
        // The one that had it before has none now, and waits for another.
        assert_eq!(answer(&mut places, &[1, 2, 3], &[0, 1]), (vec![], vec![], 1));
    }

    #[test]
    fn a_place_that_nobody_had_is_given_before_one_that_was_left() {
        let mut places = Places::new(3);
        answer(&mut places, &[1, 2], &[]);
        assert_eq!(answer(&mut places, &[2, 3], &[]), (vec![0], vec![(2, 3)], 0));
        assert_eq!(
            answer(&mut places, &[1, 2, 3], &[]),
            (vec![], vec![(0, 1)], 0),
            "it comes back"
        );
    }

    /// Years of answers in a moment, with links that let go when they please.
    #[test]
    fn whatever_is_answered_no_address_has_two_places_and_no_held_place_changes_hands() {
        let seed: u64 = std::env::var("MILLRACE_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| fastrand::u64(..));
        println!("MILLRACE_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let count = random.usize(1..6);
            let mut places = Places::new(count);
            // What each link was told, and what it uses: as the links' tasks do.
            let mut told: Vec<Option<u8>> = vec![None; count];
            let mut used: Vec<Option<u8>> = vec![None; count];
            for _ in 0..200 {
                let numbers: Vec<u8> = (0..8).filter(|_| random.u8(..3) == 0).collect();
                let named: BTreeSet<_> = numbers.iter().copied().map(address).collect();
                for at in places.leave(&named) {
                    told[at] = None;
                }
                let held: Vec<usize> = (0..count).filter(|at| used[*at].is_some()).collect();
                let given = places.give(&named, |at| held.contains(&at));
                for (at, to) in &given.to {
                    let number = numbers.iter().copied().find(|n| address(*n) == *to);
                    assert!(
                        used[*at].is_none() || used[*at] == number,
                        "a held place changed hands"
                    );
                    told[*at] = number;
                }
                let mut served: Vec<u8> = told.iter().flatten().copied().collect();
                served.sort_unstable();
                let unique: BTreeSet<u8> = served.iter().copied().collect();
                assert_eq!(served.len(), unique.len(), "one has two places: {told:?}");
                assert!(unique.iter().all(|number| numbers.contains(number)), "{told:?}");
                assert_eq!(
                    unique.len() + given.without,
                    numbers.len(),
                    "each is served or counted"
                );
                if given.without > 0 {
                    let is_free = |at: usize| told[at].is_none() && used[at].is_none();
                    assert!(!(0..count).any(is_free), "a free place is left while one waits");
                }
                assert_eq!(places.named(), served.len());
                // Some links end or begin.
                for at in 0..count {
                    if random.bool() {
                        used[at] = told[at];
                    }
                }
            }
        }
    }
}
