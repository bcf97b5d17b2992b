//! What the run consists of: who the users are, by which transport each comes, who talks to
//! whom, and which groups exist.
//!
//! Everything here is a function of the connection's index, so that no thread needs a table and
//! the verifier can work out who should have received a message. Nothing is sent here.

use std::ops::Range;

/// By which door a connection comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Frames on a TCP stream.
    Tcp,
    /// Frames in binary messages, subprotocol `millrace.v1`.
    WebSocket,
}

/// Where a message goes: a user or a group. Four bytes, since every message of a run keeps one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target(u32);

impl Target {
    const GROUP: u32 = 1 << 31;

    /// Single chat with the user of this index.
    pub const fn user(index: u32) -> Self {
        assert!(index & Self::GROUP == 0, "user indices are below 2^31");
        Self(index)
    }

    /// The group of this index.
    pub const fn group(index: u32) -> Self {
        Self(index | Self::GROUP)
    }

    /// Whether it is a group.
    pub const fn is_group(self) -> bool {
        self.0 & Self::GROUP != 0
    }

    /// The index of the user or of the group.
    pub const fn index(self) -> u32 {
        self.0 & !Self::GROUP
    }
}

/// Users of one kind: a block of indices.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is called in a scenario.
    pub name: String,
    /// Which users.
    pub users: Range<u32>,
    /// Share of them that come by WebSocket, 0 to 1. Pairs of users alternate in this share.
    pub websocket_share: f64,
    /// Platforms named at LOGIN, with their shares; they alternate as well.
    pub devices: Vec<(String, f64)>,
    /// They send heartbeats. Without them the server is expected to end the connection.
    pub heartbeats: bool,
    /// They come back after a lost connection.
    pub reconnects: bool,
    /// They are not there from the start but come when a schedule calls them, and go again.
    pub visits: bool,
    /// In every ten seconds they do not read for so long; 0: they always read.
    pub slow_reader_pause_ms: u32,
}

impl Part {
    /// Users who do what users usually do.
    pub fn new(name: &str, users: Range<u32>, websocket_share: f64) -> Self {
        Self {
            name: name.to_owned(),
            users,
            websocket_share,
            devices: Vec::new(),
            heartbeats: true,
            reconnects: true,
            visits: false,
            slow_reader_pause_ms: 0,
        }
    }
}

/// The users and groups of a run.
///
/// Group g has the members first + g·size to first + g·size + size − 1, so a user is in one group at
/// most. A user talks to two others: the neighbour of the same transport and the one of the other
/// transport next to it. With threads taking the users in turn, both pairs and groups cross threads,
/// transports and (at the server) shards.
#[derive(Clone, Debug)]
pub struct Population {
    /// How many users, each with one connection.
    pub users: u32,
    /// They in their kinds: blocks that follow each other and cover all of them.
    pub parts: Vec<Part>,
    /// User ids are this, a hyphen and the index.
    pub user_prefix: String,
    /// How many groups exist.
    pub groups: u32,
    /// Members of each group.
    pub group_size: u32,
    /// The first user who is in a group.
    pub group_first: u32,
    /// Members of the live room; 0: there is no room.
    pub room_size: u32,
    /// The first of them, who publishes and never goes away.
    pub room_first: u32,
    /// Tells this run's messages and groups from those of earlier runs on the same store.
    pub run: u32,
}

impl Population {
    /// Users of one kind, without groups and without a room.
    pub fn uniform(users: u32, websocket_share: f64, user_prefix: &str, run: u32) -> Self {
        Self {
            users,
            parts: vec![Part::new("users", 0..users, websocket_share)],
            user_prefix: user_prefix.to_owned(),
            groups: 0,
            group_size: 0,
            group_first: 0,
            room_size: 0,
            room_first: 0,
            run,
        }
    }

    /// The kind that a user is of.
    pub fn part(&self, user: u32) -> &Part {
        let after = self.parts.partition_point(|part| part.users.end <= user);
        &self.parts[after.min(self.parts.len() - 1)]
    }

    /// How the user's connection comes in. Pairs of users alternate in the share of their kind.
    pub fn transport(&self, user: u32) -> Transport {
        let part = self.part(user);
        let step = |index: u32| (f64::from(index) * part.websocket_share + 1e-9).floor();
        let pair = (user - part.users.start) / 2;
        if step(pair + 1) > step(pair) { Transport::WebSocket } else { Transport::Tcp }
    }

    /// The platform that the user names at LOGIN.
    pub fn platform(&self, user: u32) -> &str {
        let part = self.part(user);
        let sum: f64 = part.devices.iter().map(|(_, share)| share).sum();
        // Multiples of the golden ratio spread evenly, in any stretch of users.
        let mut at = (f64::from(user - part.users.start) * 0.618_033_988_75).fract() * sum;
        for (name, share) in &part.devices {
            if at < *share {
                return name;
            }
            at -= share;
        }
        part.devices.last().map_or("loadgen", |(name, _)| name)
    }

    /// How many users come by WebSocket.
    pub fn websockets(&self) -> u32 {
        (0..self.users).filter(|user| self.transport(*user) == Transport::WebSocket).count() as u32
    }

    /// How many users come only when they are called.
    pub fn visitors(&self) -> u32 {
        self.parts.iter().filter(|part| part.visits).map(|part| part.users.len() as u32).sum()
    }

    /// The user id on the wire.
    pub fn user_id(&self, user: u32) -> String {
        format!("{}-{user}", self.user_prefix)
    }

    /// The group id on the wire; other in every run.
    pub fn group_id(&self, group: u32) -> String {
        format!("{}-{:08x}-g{group}", self.user_prefix, self.run)
    }

    /// Whether a user is a member of the room.
    pub fn is_room_member(&self, user: u32) -> bool {
        user.checked_sub(self.room_first).is_some_and(|seat| seat < self.room_size)
    }

    /// The room's id on the wire; other in every run.
    pub fn room_id(&self) -> String {
        format!("{}-{:08x}-room", self.user_prefix, self.run)
    }

    /// Whether an id is the room's, without making it.
    pub fn is_room(&self, room_id: &str) -> bool {
        let rest = room_id.strip_prefix(self.user_prefix.as_str());
        let run = rest.and_then(|rest| rest.strip_prefix('-')?.strip_suffix("-room"));
        run.is_some_and(|run| run.len() == 8 && u32::from_str_radix(run, 16) == Ok(self.run))
    }

    /// The user who publishes in the room.
    pub fn is_publisher(&self, user: u32) -> bool {
        self.room_size > 0 && user == self.room_first
    }

    /// The members of a group.
    pub fn members(&self, group: u32) -> Range<u32> {
        let first = self.group_first + group * self.group_size;
        first..first + self.group_size
    }

    /// Everybody who is in a group.
    pub fn grouped(&self) -> Range<u32> {
        self.group_first..self.group_first + self.groups * self.group_size
    }

    /// The user's group, if any.
    pub fn group_of(&self, user: u32) -> Option<u32> {
        let group = user.checked_sub(self.group_first)?.checked_div(self.group_size)?;
        (group < self.groups).then_some(group)
    }

    /// The user's contact number `choice` (any number).
    pub fn contact(&self, user: u32, choice: u32) -> u32 {
        let stays = |other: u32| other < self.users && !self.part(other).visits;
        let across = user ^ 2;
        if choice % 2 == 1 && stays(across) {
            return across;
        }
        let beside = user ^ 1;
        if stays(beside) {
            beside
        } else if user > 0 && stays(user - 1) {
            user - 1
        } else {
            user + 1
        }
    }

    /// How many users receive a message of `sender` to `target`.
    pub fn recipients_count(&self, target: Target) -> u64 {
        if target.is_group() { u64::from(self.group_size) - 1 } else { 1 }
    }

    /// Whether `user` receives a message of `sender` to `target`.
    pub fn is_recipient(&self, sender: u32, target: Target, user: u32) -> bool {
        if target.is_group() {
            user != sender && self.members(target.index()).contains(&user)
        } else {
            user == target.index()
        }
    }

    /// Who receives a message of `sender` to `target`, in order of index.
    pub fn recipients(&self, sender: u32, target: Target) -> impl Iterator<Item = u32> {
        let range = if target.is_group() {
            self.members(target.index())
        } else {
            target.index()..target.index() + 1
        };
        range.filter(move |user| *user != sender)
    }

    /// Reads the index out of a user id of this population.
    pub fn user_index(&self, user_id: &str) -> Option<u32> {
        let digits = user_id.strip_prefix(self.user_prefix.as_str())?.strip_prefix('-')?;
        digits.parse().ok().filter(|user| *user < self.users)
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, Population, Target, Transport};

    fn population(users: u32, websocket_share: f64) -> Population {
        let groups = users / 20;
        Population {
            groups,
            group_size: 20,
            ..Population::uniform(users, websocket_share, "load", 7)
        }
    }

    #[test]
    fn the_share_of_websockets_is_kept() {
        for (share, expected) in [(0.0, 0), (0.25, 250), (0.5, 500), (0.9, 900), (1.0, 1000)] {
            assert_eq!(population(1000, share).websockets(), expected, "share {share}");
        }
    }

    #[test]
    fn kinds_of_users_keep_their_transport_and_their_mix_of_devices() {
        let mut population = population(1000, 1.0);
        let mut phones = Part::new("phones", 0..600, 0.0);
        phones.devices = vec![("ios".into(), 0.25), ("android".into(), 0.75)];
        population.parts = vec![phones, Part::new("browsers", 600..1000, 1.0)];
        assert_eq!(population.websockets(), 400);
        assert_eq!(population.part(599).name, "phones");
        assert_eq!(population.part(600).name, "browsers");
        let count = |from: u32, name: &str| {
            (from..from + 100).filter(|user| population.platform(*user) == name).count()
        };
        for from in [0, 77, 500] {
            assert!((23..=27).contains(&count(from, "ios")), "{}", count(from, "ios"));
        }
        assert_eq!(count(600, "loadgen"), 100);
    }

    #[test]
    fn nobody_talks_to_themselves_and_pairs_cross_transports() {
        for users in [2, 3, 5, 100, 101] {
            let population = population(users, 0.5);
            for user in 0..users {
                for choice in 0..4 {
                    let contact = population.contact(user, choice);
                    assert_ne!(contact, user, "{users} users");
                    assert!(contact < users);
                }
            }
        }
        let population = population(100, 0.5);
        assert_ne!(population.transport(8), population.transport(population.contact(8, 1)));
        assert_eq!(population.transport(8), population.transport(population.contact(8, 0)));
        assert!((0..20).any(|user| population.transport(user) == Transport::Tcp));
    }

    #[test]
    fn a_group_message_goes_to_all_members_but_the_sender() {
        let population = population(100, 0.5);
        let group = population.group_of(25).expect("in a group");
        let recipients: Vec<u32> = population.recipients(25, Target::group(group)).collect();
        assert_eq!(recipients.len() as u64, population.recipients_count(Target::group(group)));
        assert!(!recipients.contains(&25));
        assert!(recipients.contains(&20) && recipients.contains(&39));
        assert_eq!(population.group_of(99), Some(4));
        assert_eq!(population.user_index(&population.user_id(42)), Some(42));
        assert_eq!(population.user_index("load-100"), None);
        assert!(population.is_room(&population.room_id()));
        assert!(!population.is_room("load-00000008-room") && !population.is_room("load-room"));
    }
}
