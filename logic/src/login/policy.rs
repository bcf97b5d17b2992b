//! How many sessions a user may have, and who must go when there are too many. A pure function of
//! the user's sessions; it talks with nobody.

use millrace_logic_sdk::{Refused, SessionAddress};
use millrace_protocol::Code;

use crate::registry::SessionRecord;

/// What happens to a login that would be one session too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest session makes room.
    #[default]
    KickOldest,
    /// The login is refused.
    Refuse,
}

/// A bound of its own for some platforms, which share it: one phone, whatever its make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceClass {
    /// Its platforms, as clients name them at LOGIN. A platform is in one class at most.
    pub platforms: Vec<String>,
    /// Sessions of one user on all of them together. 0 counts as 1.
    pub sessions_max: usize,
    /// What happens at the bound.
    pub when_full: WhenFull,
}

/// The multi-device policy. A login from a device that is online already (the same, non-empty
/// `device_id`) always replaces that device's session, and does not count against the bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Sessions of one user. 0 counts as 1: whoever logs in is in. Default 16.
    pub sessions_per_user_max: usize,
    /// Sessions of one user on one platform that is in no class; an empty platform is one too.
    /// Default 5.
    pub sessions_per_platform_max: usize,
    /// What happens at either bound. Default: the oldest goes.
    pub when_full: WhenFull,
    /// Platforms with a bound of their own. Default: none.
    pub classes: Vec<DeviceClass>,
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self {
            sessions_per_user_max: 16,
            sessions_per_platform_max: 5,
            when_full: WhenFull::KickOldest,
            classes: Vec::new(),
        }
    }
}

/// A session that must go; the code is `replaced`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kick {
    /// Where it is.
    pub address: SessionAddress,
    /// What its user is told.
    pub reason: &'static str,
}

const SAME_DEVICE: &str = "This device has logged in again.";
const PLATFORM_FULL: &str = "Another device of this kind has logged in; the oldest had to go.";
const USER_FULL: &str = "Another device has logged in; the oldest had to go.";
const REFUSED: &str = "There are too many sessions already; end one and log in again.";

/// What binds the sessions of one platform.
struct Bound<'a> {
    class: Option<&'a DeviceClass>,
    sessions_max: usize,
    when_full: WhenFull,
}

impl SessionPolicy {
    fn bound(&self, platform: &str) -> Bound<'_> {
        let holds = |class: &&DeviceClass| class.platforms.iter().any(|name| name == platform);
        match self.classes.iter().find(holds) {
            Some(class) => Bound {
                class: Some(class),
                sessions_max: class.sessions_max,
                when_full: class.when_full,
            },
            None => Bound {
                class: None,
                sessions_max: self.sessions_per_platform_max,
                when_full: self.when_full,
            },
        }
    }

    /// Whether a login can be refused for want of room. If not, nobody need look before it.
    pub fn may_refuse(&self, platform: &str) -> bool {
        [self.when_full, self.bound(platform).when_full].contains(&WhenFull::Refuse)
    }

    /// Whom the `new` session makes go. `existing` are the user's sessions in any order; the new one
    /// may be among them and is left out.
    ///
    /// # Errors
    /// `over_capacity` if the new one must not come in; nobody goes then.
    pub fn decide(
        &self,
        existing: &[SessionRecord],
        new: &SessionRecord,
    ) -> Result<Vec<Kick>, Refused> {
        let others = existing.iter().filter(|session| session.address != new.address);
        let (replaced, mut staying): (Vec<_>, Vec<_>) = others
            .partition(|session| !new.device_id.is_empty() && session.device_id == new.device_id);
        staying.sort_by_key(|session| (session.logged_in_at_ms, session.address));
        let kick = |session: &SessionRecord, reason| Kick { address: session.address, reason };
        let mut kicks: Vec<_> = replaced.iter().map(|session| kick(session, SAME_DEVICE)).collect();

        let bound = self.bound(&new.platform);
        let is_rival = |session: &&SessionRecord| match bound.class {
            Some(class) => class.platforms.iter().any(|name| **name == *session.platform),
            None => session.platform == new.platform,
        };
        let rivals: Vec<_> = staying.iter().copied().filter(is_rival).collect();
        let above = |sessions: usize, max: usize| (sessions + 1).saturating_sub(max.max(1));
        let above_platform = above(rivals.len(), bound.sessions_max);
        if bound.when_full == WhenFull::Refuse && above_platform > 0 {
            return Err(Refused::new(Code::OverCapacity, REFUSED));
        }
        for session in &rivals[..above_platform] {
            kicks.push(kick(session, PLATFORM_FULL));
            staying.retain(|other| other.address != session.address);
        }
        let above_user = above(staying.len(), self.sessions_per_user_max);
        if self.when_full == WhenFull::Refuse && above_user > 0 {
            return Err(Refused::new(Code::OverCapacity, REFUSED));
        }
        kicks.extend(staying[..above_user].iter().map(|session| kick(session, USER_FULL)));
        Ok(kicks)
    }
}

#[cfg(test)]
mod tests {
    use millrace_logic_sdk::{GatewayKey, SessionAddress};
    use millrace_protocol::Code;

    use super::{DeviceClass, SAME_DEVICE, SessionPolicy, WhenFull};
    use crate::registry::SessionRecord;

    fn session(session_id: u64, device_id: &str, platform: &str) -> SessionRecord {
        SessionRecord {
            user_id: "a".into(),
            address: SessionAddress { gateway: GatewayKey(1), shard: 0, session_id },
            gateway_id: "g".into(),
            device_id: device_id.into(),
            platform: platform.into(),
            logged_in_at_ms: session_id as i64,
        }
    }

    fn kicked(policy: &SessionPolicy, existing: &[SessionRecord], new: &SessionRecord) -> Vec<u64> {
        let kicks = policy.decide(existing, new).expect("the login is not refused");
        kicks.into_iter().map(|kick| kick.address.session_id).collect()
    }

    fn policy(user: usize, platform: usize, when_full: WhenFull) -> SessionPolicy {
        SessionPolicy {
            sessions_per_user_max: user,
            sessions_per_platform_max: platform,
            when_full,
            classes: Vec::new(),
        }
    }

    fn class(platforms: &[&str], sessions_max: usize, when_full: WhenFull) -> DeviceClass {
        let platforms = platforms.iter().map(|name| (*name).to_owned()).collect();
        DeviceClass { platforms, sessions_max, when_full }
    }

    #[test]
    fn nobody_goes_while_there_is_room() {
        let existing = [session(1, "x", "ios"), session(2, "y", "web")];
        let policy = policy(3, 2, WhenFull::Refuse);
        assert!(kicked(&policy, &existing, &session(3, "z", "ios")).is_empty());
    }

    #[test]
    fn the_same_device_is_replaced_even_where_full_refuses() {
        let existing = [session(1, "x", "ios"), session(2, "y", "web")];
        let policy = policy(2, 2, WhenFull::Refuse);
        let kicks = policy.decide(&existing, &session(3, "x", "ios")).expect("it takes a place");
        assert_eq!((kicks.len(), kicks[0].address.session_id), (1, 1));
        assert_eq!(kicks[0].reason, SAME_DEVICE);
    }

    #[test]
    fn devices_without_an_id_never_replace_each_other() {
        let existing = [session(1, "", "web")];
        assert!(kicked(&SessionPolicy::default(), &existing, &session(2, "", "web")).is_empty());
    }

    #[test]
    fn the_oldest_go_first_on_the_platform_and_then_over_all() {
        let existing = [
            session(4, "d", "ios"),
            session(1, "a", "ios"),
            session(2, "b", "web"),
            session(3, "c", "web"),
        ];
        let new = session(9, "n", "ios");
        assert_eq!(kicked(&policy(9, 2, WhenFull::KickOldest), &existing, &new), [1]);
        assert_eq!(kicked(&policy(9, 1, WhenFull::KickOldest), &existing, &new), [1, 4]);
        assert_eq!(kicked(&policy(3, 9, WhenFull::KickOldest), &existing, &new), [1, 2]);
        assert_eq!(kicked(&policy(2, 1, WhenFull::KickOldest), &existing, &new), [1, 4, 2]);
        assert_eq!(kicked(&policy(0, 0, WhenFull::KickOldest), &existing, &new), [1, 4, 2, 3]);
    }

    #[test]
    fn a_full_policy_that_refuses_kicks_nobody() {
        let existing = [session(1, "x", "ios"), session(2, "y", "web")];
        for policy in [policy(2, 9, WhenFull::Refuse), policy(9, 1, WhenFull::Refuse)] {
            let refused = policy.decide(&existing, &session(3, "z", "ios")).expect_err("full");
            assert_eq!(refused.code, Code::OverCapacity);
        }
    }

    #[test]
    fn the_platforms_of_a_class_share_its_bound_and_its_rule() {
        let phones = class(&["ios", "android"], 1, WhenFull::KickOldest);
        let web = class(&["web"], 2, WhenFull::Refuse);
        let policy = SessionPolicy { classes: vec![phones, web], ..SessionPolicy::default() };
        let existing = [
            session(1, "a", "ios"),
            session(2, "b", "web"),
            session(3, "c", "web"),
            session(4, "d", "desktop"),
        ];
        assert_eq!(kicked(&policy, &existing, &session(9, "n", "android")), [1]);
        assert_eq!(kicked(&policy, &existing, &session(9, "n", "desktop")), [0; 0]);
        let refused = policy.decide(&existing, &session(9, "n", "web")).expect_err("two already");
        assert_eq!(refused.code, Code::OverCapacity);
        assert_eq!(kicked(&policy, &existing, &session(9, "c", "web")), [3]);
        assert!(policy.may_refuse("web") && !policy.may_refuse("ios"));
    }

    #[test]
    fn a_class_makes_its_room_before_the_bound_of_the_user_is_looked_at() {
        let classes = vec![class(&["ios"], 1, WhenFull::KickOldest)];
        let policy = SessionPolicy { classes, ..policy(2, 9, WhenFull::Refuse) };
        let existing = [session(1, "a", "ios"), session(2, "b", "web")];
        assert_eq!(kicked(&policy, &existing, &session(9, "n", "ios")), [1]);
        let refused = policy.decide(&existing, &session(9, "n", "desktop")).expect_err("full");
        assert_eq!(refused.code, Code::OverCapacity);
    }

    #[test]
    fn the_new_session_itself_is_never_counted() {
        let new = session(3, "z", "ios");
        let existing = [session(1, "x", "ios"), new.clone()];
        assert!(kicked(&policy(2, 2, WhenFull::Refuse), &existing, &new).is_empty());
    }
}
