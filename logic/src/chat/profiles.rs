//! What people call each other: names and avatars for the rows of single chats.
//!
//! The chat domain knows the trait [`Profiles`]; users implement it. A row shows the name of the
//! moment it is read: a profile that changes later does not change the row's version.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_protocol::chat::Conversation;

use super::Core;
use crate::storage::conversation_id::CONVERSATION_TYPE_SINGLE;

/// How a user is shown to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Empty: the user has none.
    pub name: String,
    /// Empty: the user has none.
    pub avatar: String,
}

/// How users are shown to others.
#[async_trait]
pub trait Profiles: Send + Sync + 'static {
    /// False if certainly nobody has a profile. Does not wait.
    fn any(&self) -> bool;

    /// The profiles of these users, in their order; empty ones of those who have none, or who
    /// cannot be looked up at the moment.
    async fn profiles(&self, user_ids: Vec<String>) -> Vec<Arc<Profile>>;
}

/// Nobody has a profile.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProfiles;

#[async_trait]
impl Profiles for NoProfiles {
    fn any(&self) -> bool {
        false
    }

    async fn profiles(&self, user_ids: Vec<String>) -> Vec<Arc<Profile>> {
        vec![Arc::default(); user_ids.len()]
    }
}

/// Puts names and avatars into a user's rows of single chats. A row of somebody without a profile
/// stays as it is.
pub(crate) async fn show(core: &Core, rows: &mut [Conversation]) {
    if !core.profiles.any() {
        return;
    }
    let singles: Vec<_> =
        rows.iter_mut().filter(|row| row.r#type == CONVERSATION_TYPE_SINGLE).collect();
    let peers = singles.iter().map(|row| row.user_id.clone()).collect();
    let profiles = core.profiles.profiles(peers).await;
    for (row, profile) in singles.into_iter().zip(profiles) {
        if !profile.name.is_empty() {
            row.name.clone_from(&profile.name);
        }
        if !profile.avatar.is_empty() {
            row.avatar.clone_from(&profile.avatar);
        }
    }
}
