//! Endpoints that names stand for: each name is asked again and again, so that logic processes come and
//! go without a restart of the gateway.
//!
//! An address that appears gets a place and with it a link on every shard. One that is named no more is
//! given up when its link ends: a link that works is never ended for an answer. A name that cannot be
//! asked, or has no address, keeps those that it had.
//!
//! The system's resolver is asked (`getaddrinfo`, with `/etc/hosts`, `/etc/resolv.conf` and what else the
//! machine is set up with), on a thread of its own for as long as it takes; one question of a name is
//! under way at a time. Neither a shard nor a link waits for it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};

use super::{
    client::{LinkSettings, LinkStatus},
    places::Places,
    target::{Name, Target},
};

/// How soon a name is asked again that has never had an address.
const FIRST_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// The links of one place, one for each shard: what they are told, and what they are at.
#[derive(Debug, Default)]
pub(crate) struct PlaceOfShards {
    pub targets: Vec<watch::Sender<Option<Target>>>,
    pub statuses: Vec<Arc<LinkStatus>>,
}

impl PlaceOfShards {
    fn is_held(&self) -> bool {
        self.statuses.iter().any(|status| status.holds_its_place())
    }
}

/// What the administrative side knows of all names. Written by the resolver, read by anyone.
#[derive(Debug, Default)]
pub(crate) struct NamesStatus {
    /// Each name, in order of the configuration.
    pub names: Vec<NameStatus>,
    /// Endpoints that are configured themselves.
    pub endpoints_fixed: usize,
    /// Addresses that are named now and have a place.
    pub endpoints_named: AtomicUsize,
    /// Addresses that are named no more, and whose links live.
    pub endpoints_kept: AtomicUsize,
    /// Addresses that have no place.
    pub endpoints_without_place: AtomicUsize,
}

/// What is known of one name.
#[derive(Debug)]
pub(crate) struct NameStatus {
    /// As configured.
    pub name: Name,
    /// Answers with addresses.
    pub answered: AtomicU64,
    /// Questions that failed, and answers without an address.
    pub failed: AtomicU64,
    /// Milliseconds from `since` to the last answer with addresses; 0 until there is one.
    answered_at_ms: AtomicU64,
    since: Instant,
}

impl NamesStatus {
    /// Nothing was asked yet.
    pub fn new(endpoints_fixed: usize, names: impl IntoIterator<Item = Name>) -> Self {
        let since = Instant::now();
        let status = |name| NameStatus {
            name,
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            answered_at_ms: AtomicU64::new(0),
            since,
        };
        let names = names.into_iter().map(status).collect();
        Self { names, endpoints_fixed, ..Self::default() }
    }
}

impl NameStatus {
    /// How old the last answer with addresses is; without one, how long it has been waited for.
    pub fn age(&self) -> Duration {
        let at = Duration::from_millis(self.answered_at_ms.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(at)
    }

    fn answers(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let at_ms = self.since.elapsed().as_millis().min(u64::MAX.into()) as u64;
        self.answered_at_ms.store(at_ms, Ordering::Relaxed);
    }
}

/// Asks for names and fills places.
#[derive(Debug)]
pub(crate) struct Resolver {
    interval: Duration,
    keeper: Keeper,
}

/// The addresses of all names, and their places.
#[derive(Debug)]
struct Keeper {
    /// What each name had at its last answer with addresses.
    answers: Vec<Answer>,
    /// Addresses that are configured themselves.
    fixed: BTreeSet<SocketAddr>,
    settings: LinkSettings,
    places: Places,
    shards: Vec<PlaceOfShards>,
    status: Arc<NamesStatus>,
}

#[derive(Clone, Debug, Default)]
struct Answer {
    addresses: BTreeSet<SocketAddr>,
    /// That it failed was said.
    is_failing: bool,
}

impl Resolver {
    /// Asks for the names of `status`. Addresses of `fixed` have links already.
    pub fn new(
        status: Arc<NamesStatus>,
        interval: Duration,
        fixed: BTreeSet<SocketAddr>,
        settings: LinkSettings,
        shards: Vec<PlaceOfShards>,
    ) -> Self {
        let answers = vec![Answer::default(); status.names.len()];
        let places = Places::new(shards.len());
        Self { interval, keeper: Keeper { answers, fixed, settings, places, shards, status } }
    }

    /// Asks until it is dropped. To be run by a thread that may wait for nothing else.
    pub async fn run(self) {
        let Self { interval, keeper } = self;
        let names: Vec<Name> = keeper.status.names.iter().map(|known| known.name.clone()).collect();
        let keeper = Rc::new(RefCell::new(keeper));
        let mut asking = JoinSet::new();
        for (at, name) in names.into_iter().enumerate() {
            let keeper = keeper.clone();
            asking.spawn_local(async move {
                loop {
                    let answer = ask(&name).await;
                    let is_known = keeper.borrow_mut().take(at, answer);
                    let soon = FIRST_INTERVAL_MAX.min(interval);
                    tokio::time::sleep(if is_known { interval } else { soon }).await;
                }
            });
        }
        while let Some(Err(error)) = asking.join_next().await {
            tracing::error!(%error, "the task that asks for a name failed");
        }
    }
}

/// The addresses of a name.
///
/// # Errors
/// Why there are none, for people.
pub(crate) async fn ask(name: &Name) -> Result<BTreeSet<SocketAddr>, String> {
    let addresses = tokio::net::lookup_host((&*name.host, name.port)).await;
    let addresses: BTreeSet<_> = addresses.map_err(|error| error.to_string())?.collect();
    if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
}

/// Of addresses of both families those of one: a process on a machine with both would be there twice,
/// and logic takes the second stream of a shard for the successor of the first.
pub(crate) fn one_family(addresses: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    if !addresses.iter().any(SocketAddr::is_ipv4) {
        return addresses;
    }
    addresses.into_iter().filter(SocketAddr::is_ipv4).collect()
}

impl Keeper {
    /// Takes note of what was answered for a name. Returns whether an address of it is known.
    fn take(&mut self, at: usize, answer: Result<BTreeSet<SocketAddr>, String>) -> bool {
        let known = &mut self.answers[at];
        let status = &self.status.names[at];
        let name = &status.name;
        let was_ipv4 = known.addresses.iter().any(SocketAddr::is_ipv4);
        let answer = answer.map(one_family).and_then(|addresses| {
            let is_half = was_ipv4 && !addresses.iter().any(SocketAddr::is_ipv4);
            if is_half {
                Err("it has no address of IPv4 any more".to_owned())
            } else {
                Ok(addresses)
            }
        });
        match answer {
            Ok(addresses) => {
                status.answers();
                if std::mem::take(&mut known.is_failing) {
                    tracing::info!(%name, addresses = addresses.len(), "the name is known again");
                }
                known.addresses = addresses;
            }
            Err(reason) => {
                status.failed.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut known.is_failing, true) {
                    let kept = known.addresses.len();
                    tracing::warn!(
                        %name, %reason, kept,
                        "the name of logic endpoints cannot be looked up; what it had is kept. Is it \
                         spelt as your name server knows it, and does that answer?"
                    );
                }
            }
        }
        let is_known = !known.addresses.is_empty();
        self.fill_places();
        is_known
    }

    fn fill_places(&mut self) {
        // Of several names with the same address, the first one's.
        let mut names: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for (at, answer) in self.answers.iter().enumerate() {
            for address in answer.addresses.difference(&self.fixed) {
                names.entry(*address).or_insert(at);
            }
        }
        let named: BTreeSet<SocketAddr> = names.keys().copied().collect();
        // In this order: a link that is told to leave its place either says first that it holds it,
        // or hears of this.
        for at in self.places.leave(&named) {
            self.tell(at, None);
        }
        let shards = &self.shards;
        let is_held = |at: usize| shards[at].is_held();
        let given = self.places.give(&named, is_held);
        for (at, address) in given.to {
            let name = &self.status.names[names[&address]].name;
            match Target::of_name(name, address, &self.settings) {
                Ok(target) => {
                    tracing::info!(%name, endpoint = %target.uri, "a logic endpoint");
                    self.tell(at, Some(&target));
                }
                Err(reason) => tracing::warn!(%name, %reason, "an endpoint that cannot be used"),
            }
        }
        let without = self.status.endpoints_without_place.swap(given.without, Ordering::Relaxed);
        if given.without > 0 && without == 0 {
            tracing::warn!(
                without_link = given.without,
                with_link = self.places.named(),
                "names have more addresses than logic.endpoints_max leaves room for; raise it"
            );
        }
        self.status.endpoints_named.store(self.places.named(), Ordering::Relaxed);
        let kept = self.places.kept(|at| self.shards[at].is_held());
        self.status.endpoints_kept.store(kept, Ordering::Relaxed);
    }

    /// Tells the links of a place where it leads to.
    fn tell(&self, at: usize, target: Option<&Target>) {
        for targets in &self.shards[at].targets {
            targets.send_replace(target.cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::SocketAddr,
        sync::{Arc, atomic::Ordering},
        time::Duration,
    };

    use tokio::sync::watch;

    use super::{Keeper, LinkStatus, Name, NamesStatus, PlaceOfShards, Resolver, Target};
    use crate::link::target::tests::settings;

    const SHARDS: u8 = 2;

    fn addresses(texts: &[&str]) -> BTreeSet<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    /// A keeper of these names, and what the links of each place and shard are told.
    struct World {
        keeper: Keeper,
        targets: Vec<Vec<watch::Receiver<Option<Target>>>>,
    }

    impl World {
        fn new(hosts: &[&str], places: usize, fixed: &[&str]) -> Self {
            let name = |host: &&str| Name { host: (*host).to_owned(), port: 9700 };
            let mut shards = Vec::new();
            let mut targets = Vec::new();
            for place in 0..places {
                let channels = (0..SHARDS).map(|_| watch::channel(None));
                let (senders, receivers) = channels.unzip();
                let statuses =
                    (0..SHARDS).map(|shard| Arc::new(LinkStatus::new(shard, place as u8)));
                shards.push(PlaceOfShards { targets: senders, statuses: statuses.collect() });
                targets.push(receivers);
            }
            let status = Arc::new(NamesStatus::new(fixed.len(), hosts.iter().map(name)));
            let interval = Duration::from_secs(5);
            let resolver = Resolver::new(status, interval, addresses(fixed), settings(), shards);
            Self { keeper: resolver.keeper, targets }
        }

        fn answered(&mut self, at: usize, texts: &[&str]) {
            self.keeper.take(at, Ok(addresses(texts)));
        }

        /// Where each place leads to, the same on every shard.
        fn told(&self) -> Vec<String> {
            let uri = |targets: &watch::Receiver<Option<Target>>| {
                targets.borrow().as_ref().map_or_else(String::new, |target| target.uri.to_string())
            };
            let place = |shards: &Vec<watch::Receiver<Option<Target>>>| {
                assert!(shards.iter().all(|shard| uri(shard) == uri(&shards[0])));
                uri(&shards[0]).trim_start_matches("http://").to_owned()
            };
            self.targets.iter().map(place).collect()
        }

        fn holds(&self, place: usize, shard: usize, holds: bool) {
            let status = &self.keeper.shards[place].statuses[shard];
            if holds { status.hold_place() } else { drop(status.let_go_of_place()) }
        }

        /// Named, kept, and without a place.
        fn counted(&self) -> (usize, usize, usize) {
            let status = &self.keeper.status;
            let read = |value: &std::sync::atomic::AtomicUsize| value.load(Ordering::Relaxed);
            (
                read(&status.endpoints_named),
                read(&status.endpoints_kept),
                read(&status.endpoints_without_place),
            )
        }
    }

    #[test]
    fn a_name_that_fails_or_is_empty_keeps_what_it_had() {
        let mut world = World::new(&["logic"], 3, &[]);
        assert!(!world.keeper.take(0, Err("no answer".to_owned())), "nothing is known yet");
        world.answered(0, &["10.0.0.1:9700", "10.0.0.2:9700"]);
        let told = world.told();
        assert_eq!(told, ["10.0.0.1:9700", "10.0.0.2:9700", ""]);
        for _ in 0..3 {
            assert!(world.keeper.take(0, Err("it has no address".to_owned())));
            assert_eq!(world.told(), told);
        }
        let name = &world.keeper.status.names[0];
        assert_eq!(name.failed.load(Ordering::Relaxed), 4);
        assert_eq!(name.answered.load(Ordering::Relaxed), 1);
        assert_eq!(world.counted(), (2, 0, 0));
    }

    #[test]
    fn an_address_that_is_named_no_more_is_kept_until_the_last_shard_has_let_go() {
        let mut world = World::new(&["logic"], 2, &[]);
        world.answered(0, &["10.0.0.1:9700", "10.0.0.2:9700"]);
        (0..2).for_each(|shard| world.holds(0, shard, true));
        world.answered(0, &["10.0.0.2:9700", "10.0.0.3:9700"]);
        assert_eq!(world.told(), ["", "10.0.0.2:9700"], "its links connect no more when they end");
        assert_eq!(world.counted(), (1, 1, 1));
        world.holds(0, 0, false);
        world.answered(0, &["10.0.0.2:9700", "10.0.0.3:9700"]);
        assert_eq!(world.told(), ["", "10.0.0.2:9700"]);
        world.holds(0, 1, false);
        world.answered(0, &["10.0.0.2:9700", "10.0.0.3:9700"]);
        assert_eq!(world.told(), ["10.0.0.3:9700", "10.0.0.2:9700"]);
        assert_eq!(world.counted(), (2, 0, 0));
    }

    #[test]
    fn names_that_share_addresses_and_addresses_that_are_configured_have_one_link_each() {
        let mut world = World::new(&["one", "other"], 4, &["10.0.0.9:9700"]);
        world.answered(0, &["10.0.0.1:9700", "10.0.0.9:9700"]);
        world.answered(1, &["10.0.0.1:9700", "10.0.0.2:9700"]);
        assert_eq!(world.told(), ["10.0.0.1:9700", "10.0.0.2:9700", "", ""]);
        // One of two names that had it has it still.
        world.answered(0, &["10.0.0.9:9700"]);
        assert_eq!(world.told(), ["10.0.0.1:9700", "10.0.0.2:9700", "", ""]);
    }

    #[test]
    fn of_both_families_one_is_used_and_half_an_answer_changes_nothing() {
        let mut world = World::new(&["logic"], 3, &[]);
        world.answered(0, &["10.0.0.1:9700", "[fd00::1]:9700"]);
        assert_eq!(world.told(), ["10.0.0.1:9700", "", ""]);
        world.answered(0, &["[fd00::1]:9700"]);
        assert_eq!(world.told(), ["10.0.0.1:9700", "", ""]);
        let mut world = World::new(&["logic"], 3, &[]);
        world.answered(0, &["[fd00::1]:9700", "[fd00::2]:9700"]);
        assert_eq!(world.told(), ["[fd00::1]:9700", "[fd00::2]:9700", ""]);
    }

    #[test]
    fn names_of_this_machine_are_known_and_nonsense_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let name = |host: &str| Name { host: host.to_owned(), port: 9700 };
        runtime.expect("a runtime").block_on(async {
            let local = super::ask(&name("localhost")).await.expect("every machine has it");
            assert!(
                local.iter().all(|address| address.ip().is_loopback() && address.port() == 9700)
            );
            // No name server is asked for a name that cannot be one.
            assert!(super::ask(&name("-..-")).await.is_err());
        });
    }
}
