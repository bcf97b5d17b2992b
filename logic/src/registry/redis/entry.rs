//! How sessions are written down in Redis, and under which keys. No I/O.
//!
//! # Keys
//! Users are spread over [`BUCKETS`] buckets by their id. Everything that one act touches lies in one
//! bucket, and all keys of a bucket carry the same hash tag, so that in a Redis Cluster they share a
//! slot and one script can change them together:
//!
//! - `{PREFIX:N}:entries`: a sorted set, every score 0, of one entry for each session and logic process
//!   that serves it. Its order is that of the bytes, so that a user's entries are neighbours, and
//!   users can be listed by id
//! - `{PREFIX:N}:owners`: a hash: of each logic process the sequence of its last call; and `users`, how
//!   many there are
//! - `{PREFIX:N}:epoch:GATEWAY`: the newest epoch of a gateway that was seen in this bucket
//! - `{PREFIX:fleet}:owners`: a hash: the leases of the logic processes; one key for all
//!
//! Why buckets and not a tag for each user: a list of users and their number have to change with the
//! user's entries. Why 256: enough to spread evenly over the masters of a cluster, few enough to look
//! at each of them every second.

use std::{fmt, sync::Arc};

use millrace_logic_sdk::{GatewayKey, SessionAddress};

use crate::registry::{HomeId, SessionRecord};

/// Parts the users are spread over. To change it is to begin with an empty Redis.
pub(super) const BUCKETS: usize = 256;

/// Follows a user id in its entries. An id never contains it: see [`prefix_of`].
const END: [u8; 2] = [0, 0];

/// One life of one logic process: eight random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OwnerId(pub [u8; 8]);

impl OwnerId {
    pub(super) fn random() -> Self {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        // Six bits of a version 4 UUID are fixed, and lie in different places of the halves.
        Self((high ^ low.rotate_left(8)).to_be_bytes())
    }

    /// As the others name the process.
    pub(super) fn home(self) -> HomeId {
        HomeId(u64::from_be_bytes(self.0))
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.home())
    }
}

/// Which bucket a user is in: FNV-1a, the same in every process of every version.
pub(super) fn bucket_of(user_id: &str) -> usize {
    let hash = user_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The high bits are mixed better than the low ones.
    ((hash >> 32) ^ hash) as usize % BUCKETS
}

/// What a user's entries begin with: the id, each zero byte of it followed by 0xFF, and [`END`]. So the
/// order of prefixes is the order of ids, and none is the beginning of another.
pub(super) fn prefix_of(user_id: &str) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(user_id.len() + END.len());
    for byte in user_id.bytes() {
        prefix.push(byte);
        if byte == 0 {
            prefix.push(0xff);
        }
    }
    prefix.extend(END);
    prefix
}

/// The first byte string after all entries of a user.
pub(super) fn end_of(mut prefix: Vec<u8>) -> Vec<u8> {
    if let Some(last) = prefix.last_mut() {
        *last = 1;
    }
    prefix
}

/// The names of the keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn entries(&self, bucket: usize) -> String {
        format!("{{{}:{bucket}}}:entries", self.prefix)
    }

    pub(super) fn owners(&self, bucket: usize) -> String {
        format!("{{{}:{bucket}}}:owners", self.prefix)
    }

    pub(super) fn epoch(&self, bucket: usize, gateway_id: &str) -> String {
        format!("{{{}:{bucket}}}:epoch:{gateway_id}", self.prefix)
    }

    pub(super) fn fleet(&self) -> String {
        format!("{{{}:fleet}}:owners", self.prefix)
    }

    pub(super) fn sweep(&self) -> String {
        format!("{{{}:fleet}}:sweep", self.prefix)
    }
}

/// A session as one logic process states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub owner: OwnerId,
    pub user_id: Arc<str>,
    pub gateway_id: Arc<str>,
    pub gateway_epoch: u64,
    pub shard: u16,
    pub session_id: u64,
    pub logged_in_at_ms: i64,
    pub device_id: Arc<str>,
    pub platform: Arc<str>,
}

impl Entry {
    /// What this owner states of a session.
    pub(super) fn new(record: &SessionRecord, owner: OwnerId, gateway_epoch: u64) -> Self {
        Self {
            owner,
            user_id: Arc::clone(&record.user_id),
            gateway_id: Arc::clone(&record.gateway_id),
            gateway_epoch,
            shard: record.address.shard,
            session_id: record.address.session_id,
            logged_in_at_ms: record.logged_in_at_ms,
            device_id: Arc::clone(&record.device_id),
            platform: Arc::clone(&record.platform),
        }
    }

    /// Writes it down: the user's prefix, then owner (8 bytes), gateway epoch (8), session id (8), login
    /// time (8), shard (2), gateway id and device id with their lengths (4 each), platform. `put.lua`
    /// reads the first three of what has a length, so their places must not change.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut entry = prefix_of(&self.user_id);
        entry.extend(self.owner.0);
        entry.extend(self.gateway_epoch.to_be_bytes());
        entry.extend(self.session_id.to_be_bytes());
        entry.extend(self.logged_in_at_ms.to_be_bytes());
        entry.extend(self.shard.to_be_bytes());
        for text in [&self.gateway_id, &self.device_id] {
            entry.extend((text.len() as u32).to_be_bytes());
            entry.extend(text.as_bytes());
        }
        entry.extend(self.platform.as_bytes());
        entry
    }

    /// Whether it is about this session, whoever states it. Not by the login time: who decided about the
    /// login and who was told by the gateway have it from different clocks.
    pub(super) fn is_of(&self, record: &SessionRecord, gateway_epoch: u64) -> bool {
        self.gateway_id == record.gateway_id
            && self.gateway_epoch == gateway_epoch
            && self.shard == record.address.shard
            && self.session_id == record.address.session_id
    }

    /// The session, at a gateway that this process knows by this key.
    pub(super) fn record(self, gateway: GatewayKey) -> SessionRecord {
        SessionRecord {
            user_id: self.user_id,
            address: SessionAddress { gateway, shard: self.shard, session_id: self.session_id },
            gateway_id: self.gateway_id,
            device_id: self.device_id,
            platform: self.platform,
            logged_in_at_ms: self.logged_in_at_ms,
        }
    }
}

/// Whose an entry is, without reading the rest of it.
pub(super) fn owner_in(entry: &[u8]) -> Option<OwnerId> {
    OwnerId::read(split(entry)?.1.get(..8)?)
}

/// Splits an entry after its prefix.
fn split(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = entry.windows(2).position(|pair| pair == END)?;
    // The zero of an id is followed by 0xFF, so the first pair of zeros is the end.
    Some(entry.split_at(end + END.len()))
}

/// The prefix of an entry.
pub(super) fn prefix_in(entry: &[u8]) -> Option<&[u8]> {
    split(entry).map(|(prefix, _)| prefix)
}

/// Reads an entry; `None` if it is none.
pub(super) fn decode(entry: &[u8]) -> Option<Entry> {
    fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
        let (head, tail) = rest.split_first_chunk::<N>()?;
        *rest = tail;
        Some(*head)
    }
    fn text(rest: &mut &[u8]) -> Option<Arc<str>> {
        let length = u32::from_be_bytes(take(rest)?) as usize;
        let (head, tail) = rest.split_at_checked(length)?;
        *rest = tail;
        str::from_utf8(head).ok().map(Arc::from)
    }
    let (prefix, mut rest) = split(entry)?;
    let mut user_id = Vec::with_capacity(prefix.len());
    let mut bytes = prefix[..prefix.len() - END.len()].iter();
    while let Some(byte) = bytes.next() {
        user_id.push(*byte);
        if *byte == 0 {
            bytes.next();
        }
    }
    let rest = &mut rest;
    Some(Entry {
        user_id: String::from_utf8(user_id).ok()?.into(),
        owner: OwnerId(take(rest)?),
        gateway_epoch: u64::from_be_bytes(take(rest)?),
        session_id: u64::from_be_bytes(take(rest)?),
        logged_in_at_ms: i64::from_be_bytes(take(rest)?),
        shard: u16::from_be_bytes(take(rest)?),
        gateway_id: text(rest)?,
        device_id: text(rest)?,
        platform: str::from_utf8(rest).ok()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Entry, OwnerId, bucket_of, decode, end_of, owner_in, prefix_in, prefix_of};
    use crate::registry::conformance::record;

    #[test]
    fn an_entry_comes_back_as_it_was() {
        for user_id in ["", "a", "a\u{0}b", "\u{0}", "\u{0}\u{0}", "ä{}*:", "a\u{0}"] {
            let record = record(user_id, u64::MAX - 1, -5);
            let owner = OwnerId(*b"\0\0\0owner");
            let bytes = Entry::new(&record, owner, u64::MAX).encode();
            let entry = decode(&bytes).expect("it is one");
            assert_eq!((entry.encode(), owner_in(&bytes)), (bytes.clone(), Some(owner)));
            assert!(entry.is_of(&record, u64::MAX) && !entry.is_of(&record, 1));
            assert_eq!((&*entry.user_id, entry.owner), (user_id, owner));
            assert_eq!((entry.gateway_epoch, entry.session_id), (u64::MAX, u64::MAX - 1));
            assert_eq!((entry.shard, entry.logged_in_at_ms), (0, -5));
            let (gateway, device) = (&record.gateway_id, &record.device_id);
            assert_eq!((&entry.gateway_id, &entry.device_id), (gateway, device));
            assert_eq!(entry.platform, record.platform);
            assert_eq!(prefix_in(&bytes), Some(&*prefix_of(user_id)));
            for length in 0..bytes.len() - record.platform.len() {
                assert_eq!(decode(&bytes[..length]), None, "{length} bytes are none");
            }
        }
    }

    #[test]
    fn the_order_of_entries_is_the_order_of_users_and_no_user_is_within_another() {
        let mut users = ["b", "a", "", "a\u{0}", "a\u{0}b", "a\u{1}", "ab", "ä", "\u{0}", "A"];
        users.sort_unstable();
        for pair in users.windows(2) {
            let (first, second) = (prefix_of(pair[0]), prefix_of(pair[1]));
            assert!(end_of(first.clone()) <= second, "{pair:?}");
            assert!(!second.starts_with(&first), "{pair:?}");
        }
    }

    #[test]
    fn users_are_spread_evenly_and_always_the_same_way() {
        assert_eq!((bucket_of(""), bucket_of("alice")), (bucket_of(""), bucket_of("alice")));
        let mut buckets = vec![0_usize; super::BUCKETS];
        for number in 0..256_000 {
            buckets[bucket_of(&format!("user-{number}"))] += 1;
        }
        let (least, most) = (buckets.iter().min(), buckets.iter().max());
        assert!(least > Some(&800) && most < Some(&1_200), "{least:?} to {most:?} of 1,000");
    }
}
