//! `put.lua` without its fences, for the planted fault `fencing` (`planted_faults.rs`): so that the
//! cluster test can show that its checker finds a registry that forgets them. Never in a release.
//!
//! The script is made from the one that is used, so that the two differ in nothing else.

use super::connection::PUT;

/// What makes a fence, and what stands there instead.
const CHANGES: [(&str, &str); 4] = [
    // A call that comes late is carried out. Its number is not stored, as a smaller number would be
    // taken for a loss and everything would be stated anew.
    (
        "if stored >= tonumber(sequence) then\n  return { stored }\nend\nredis.call('HSET', owners, owner, sequence)",
        "redis.call('HSET', owners, owner, string.format('%.0f', math.max(stored, tonumber(sequence))))",
    ),
    // What belongs to an earlier life of a gateway is as good as any other.
    ("return fence and newer(fence, epoch)", "return false"),
    // Where the device is in an entry: see entry.rs.
    (
        "local found_of_users, refused, users_change = {}, {}, 0",
        "local function device_of(entry, prefix)
  local at = #prefix + 35
  at = at + 4 + struct.unpack('>I4', string.sub(entry, at, at + 3))
  local length = struct.unpack('>I4', string.sub(entry, at, at + 3))
  return string.sub(entry, at + 4, at + 3 + length)
end

local found_of_users, refused, users_change = {}, {}, 0",
    ),
    // The end of a session takes away whatever is stated of its device.
    (
        "  for entry in pairs(mine) do
    redis.call('ZREM', entries, entry)
  end",
        "  for entry in pairs(mine) do
    redis.call('ZREM', entries, entry)
    for _, other in ipairs(others) do
      if device_of(other, prefix) == device_of(entry, prefix) then
        here = here - redis.call('ZREM', entries, other)
      end
    end
  end",
    ),
];

/// The script.
pub(super) fn put() -> String {
    let mut script = PUT.to_owned();
    for (fence, instead) in CHANGES {
        assert_eq!(
            script.matches(fence).count(),
            1,
            "put.lua has changed, and is to be unfenced anew"
        );
        script = script.replace(fence, instead);
    }
    script
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::super::{
        RedisRegistry,
        connection::{Scripts, call},
        entry::{Entry, OwnerId, bucket_of, prefix_of},
        tests::{at, sessions, started},
    };
    use crate::{
        registry::{Registry as _, SessionRecord, conformance::record},
        testing::services::redis::RedisServer,
    };

    /// States sessions of Alice as `put.lua` of these scripts does.
    async fn put(
        registry: &RedisRegistry,
        scripts: &Scripts,
        owner: OwnerId,
        sequence: u64,
        alice: &[(&SessionRecord, u64)],
    ) -> Value {
        let keys = &registry.shared.keys;
        let bucket = bucket_of("alice");
        let (entries, owners) = (keys.entries(bucket), keys.owners(bucket));
        let epoch = keys.epoch(bucket, "gateway-a");
        let mut command = call(&scripts.put, &[&entries, &owners, &epoch]);
        let newest = alice.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0);
        command.arg(&owner.0[..]).arg(sequence).arg(60_000).arg(1);
        command.arg("gateway-a").arg(&newest.to_be_bytes()[..]);
        command.arg(prefix_of("alice")).arg(alice.len());
        for (session, epoch) in alice {
            command.arg(Entry::new(session, owner, *epoch).encode());
        }
        let (_, connection) = registry.shared.connection().expect("connected");
        connection
            .run_each(vec![command], registry.shared.settings.timeout)
            .await
            .remove(0)
            .expect("it ran")
    }

    /// The processes that state something of Alice, and what is seen of her.
    async fn after_a_race(scripts: &Scripts) -> Vec<SessionRecord> {
        let server = RedisServer::start();
        let watching = started(&at(&server)).await;
        let (_, mut connection) = watching.shared.connection().expect("connected");
        connection.load(scripts).await.expect("loaded");
        let (here, there) = (OwnerId(*b"is here."), OwnerId(*b"is there"));
        let (old, mut new) = (record("alice", 1, 10), record("alice", 2, 20));
        new.device_id = old.device_id.clone();
        put(&watching, scripts, here, 1, &[(&old, 1)]).await;
        // The device comes in elsewhere before its first session is said to have ended.
        put(&watching, scripts, there, 1, &[(&new, 1)]).await;
        put(&watching, scripts, here, 2, &[]).await;
        sessions(&watching, "alice").await
    }

    #[tokio::test]
    async fn without_fences_a_late_end_takes_the_newer_session_away_and_with_them_it_does_not() {
        let mut newer = record("alice", 2, 20);
        newer.device_id = record("alice", 1, 10).device_id;
        assert_eq!(after_a_race(&Scripts::default()).await, [newer]);
        assert_eq!(after_a_race(&Scripts::with_put(&super::put())).await, []);
    }

    #[tokio::test]
    async fn without_fences_late_calls_and_earlier_lives_of_a_gateway_are_taken() {
        let server = RedisServer::start();
        let watching = started(&at(&server)).await;
        let scripts = Scripts::with_put(&super::put());
        let (_, mut connection) = watching.shared.connection().expect("connected");
        connection.load(&scripts).await.expect("loaded");
        let owner = OwnerId(*b"is here.");
        let session = record("alice", 1, 10);
        put(&watching, &scripts, owner, 7, &[(&session, 9)]).await;
        put(&watching, &scripts, owner, 8, &[]).await;
        assert_eq!(watching.count().await.map(|count| count.sessions), Ok(0));
        // Late, and of an earlier life.
        let reply = put(&watching, &scripts, owner, 6, &[(&session, 3)]).await;
        assert_eq!(watching.count().await.map(|count| count.sessions), Ok(1));
        let Value::Array(reply) = reply else { panic!("{reply:?}") };
        assert_eq!(reply[0], Value::Int(8), "nothing is taken for lost");
        assert_eq!(reply[2], Value::Array(vec![]), "and nothing refused");
    }
}
