//! `[sessions]`: how many sessions a user may have, and who leaves when there are too many.

use std::collections::{BTreeMap, HashSet};

use millrace_service::Invalid;
use serde::{Deserialize, Serialize};

use crate::login::{DeviceClass, SessionPolicy, WhenFull};

/// `[sessions]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Sessions of one user.
    pub per_user_max: usize,
    /// Sessions of one user on one platform.
    pub per_platform_max: usize,
    /// What happens at either bound.
    pub when_full: SessionsFull,
    /// Platforms with a bound of their own, by a name that is for people only.
    pub classes: BTreeMap<String, SessionClass>,
}

/// `[sessions.classes.…]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionClass {
    /// Its platforms, as clients name them.
    pub platforms: Vec<String>,
    /// Sessions of one user on all of them together.
    pub sessions_max: usize,
    /// What happens at the bound.
    #[serde(default)]
    pub when_full: SessionsFull,
}

/// `sessions.when_full`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionsFull {
    /// The oldest session is kicked.
    #[default]
    KickOldest,
    /// The new login is refused.
    Refuse,
}

impl Default for Sessions {
    fn default() -> Self {
        let policy = SessionPolicy::default();
        Self {
            per_user_max: policy.sessions_per_user_max,
            per_platform_max: policy.sessions_per_platform_max,
            when_full: match policy.when_full {
                WhenFull::KickOldest => SessionsFull::KickOldest,
                WhenFull::Refuse => SessionsFull::Refuse,
            },
            classes: BTreeMap::new(),
        }
    }
}

impl From<SessionsFull> for WhenFull {
    fn from(when_full: SessionsFull) -> Self {
        match when_full {
            SessionsFull::KickOldest => Self::KickOldest,
            SessionsFull::Refuse => Self::Refuse,
        }
    }
}

impl Sessions {
    /// Whether the values make sense together.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let at_least_one = |key: &str, value: usize| match value {
            0 => Err(Invalid::new(key, "must be at least 1")),
            _ => Ok(()),
        };
        at_least_one("sessions.per_user_max", self.per_user_max)?;
        at_least_one("sessions.per_platform_max", self.per_platform_max)?;
        let mut taken = HashSet::new();
        for (name, class) in &self.classes {
            at_least_one(&format!("sessions.classes.{name}.sessions_max"), class.sessions_max)?;
            for platform in &class.platforms {
                if !taken.insert(platform) {
                    return Err(Invalid::new(
                        format!("sessions.classes.{name}.platforms"),
                        format!("{platform:?} is in a class already"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The policy that it describes.
    pub(super) fn policy(&self) -> SessionPolicy {
        let class = |class: &SessionClass| DeviceClass {
            platforms: class.platforms.clone(),
            sessions_max: class.sessions_max,
            when_full: class.when_full.into(),
        };
        SessionPolicy {
            sessions_per_user_max: self.per_user_max,
            sessions_per_platform_max: self.per_platform_max,
            when_full: self.when_full.into(),
            classes: self.classes.values().map(class).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_service::config::parse;

    use crate::{config::Config, login::WhenFull};

    fn config(text: &str) -> Config {
        parse(text, "logic.toml").expect("TOML")
    }

    #[test]
    fn classes_of_platforms_become_the_policys() {
        let config = config(
            "[sessions.classes.phone]\nplatforms = [\"ios\", \"android\"]\nsessions_max = 1\n\
             [sessions.classes.web]\nplatforms = [\"web\"]\nsessions_max = 2\nwhen_full = \"refuse\"\n",
        );
        config.check().expect("it makes sense");
        let classes = config.chat_settings().sessions.classes;
        assert_eq!((&*classes[0].platforms[1], classes[0].sessions_max), ("android", 1));
        assert_eq!(classes[0].when_full, WhenFull::KickOldest);
        assert_eq!(classes[1].when_full, WhenFull::Refuse);
    }

    #[test]
    fn a_class_without_room_and_a_platform_in_two_classes_are_refused() {
        let none = config("[sessions.classes.a]\nplatforms = [\"ios\"]\nsessions_max = 0\n");
        assert_eq!(none.check().expect_err("no room").key, "sessions.classes.a.sessions_max");
        let twice = config(
            "[sessions.classes.a]\nplatforms = [\"ios\"]\nsessions_max = 1\n\
             [sessions.classes.b]\nplatforms = [\"ios\"]\nsessions_max = 2\n",
        );
        assert_eq!(twice.check().expect_err("twice").key, "sessions.classes.b.platforms");
    }
}
