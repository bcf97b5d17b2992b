//! One suite that every [`Store`] must pass, named after the promises of [`storage`](super).
//!
//! An implementation writes a [`Bed`] and calls [`conformance_tests!`] in its tests. What only one
//! kind of store has (directories, locks, kill -9 of a process) is tested beside it.

use std::{future::Future, sync::Arc};

use millrace_protocol::{Code, chat};
use uuid::Uuid;

use super::{Outcome, Page, Store, StoreError, Target, Write, conversation_id, limits::*};

mod edits;
mod groups;
mod membership;
mod messages;
mod model;
mod model_groups;
pub mod revocations;

pub use edits::*;
pub use groups::*;
pub use membership::*;
pub use messages::*;
pub use model::{USERS, random_write, random_writes_agree_with_the_model};

/// Where stores of one kind come from: an empty one first, afterwards the same data again.
pub trait Bed: Send + Sync {
    /// The implementation under test.
    type Store: Store;

    /// Opens it. The store opened before has been closed.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
}

/// Makes one test of every property, each on a bed of its own.
macro_rules! conformance_tests {
    ($bed:expr) => {
        $crate::storage::conformance::conformance_tests! { $bed;
            sequences_are_gapless_and_messages_complete,
            a_message_says_what_it_follows,
            a_retry_is_stored_once_in_a_commit_across_commits_and_after_reopening,
            a_refused_write_changes_nothing_and_hinders_no_other,
            limits_are_answered_not_truncated,
            pages_are_right_from_both_ends,
            pages_tell_strangers_from_nothing,
            single_chats_are_one_for_both_and_a_note_to_oneself_works,
            late_members_start_at_the_newest_sequence,
            who_quits_keeps_what_was_there,
            who_comes_back_starts_anew,
            cursors_move_forward_only_and_never_beyond_the_newest,
            unread_counts_what_others_sent_since_reading_or_sending,
            do_not_disturb_is_a_setting_of_one_member,
            undelivered_is_the_newest_of_each_conversation_up_to_as_of,
            conversation_rows_are_paged_by_version_without_losing_one,
            groups_are_created_read_changed_and_removed,
            members_are_never_outdated,
            concurrent_commits_lose_and_double_nothing,
            everything_is_there_after_reopening,
            revoked_content_is_gone_for_everybody_and_its_place_stays,
            a_revocation_is_for_those_who_were_there_when_the_message_came,
            what_was_revoked_moves_no_group_that_was_quit,
            who_may_revoke_and_until_when,
            owners_and_administrators_revoke_what_those_below_them_said,
            deleted_messages_are_hidden_from_one_user_alone,
            deletions_have_a_bound_that_runs_do_not_reach,
            forwarded_messages_are_stored_together_and_once,
            what_is_quoted_must_be_there_for_the_sender,
            a_row_shows_the_newest_unread_mention,
            expired_content_is_found_and_erased_once,
            changes_are_paged_by_version_without_losing_one,
            random_writes_agree_with_the_model,
            acts_need_their_roles_and_are_told_to_the_members,
            who_may_come_into_a_group_is_its_rule,
            who_is_muted_is_refused_until_the_time_is_over,
            who_goes_hears_why_and_nothing_more,
            a_dissolved_group_is_gone_but_not_its_history,
            pages_of_members_and_receipts_are_bounded_and_whole,
            a_hidden_conversation_comes_back_with_the_next_message,
        }
    };
    ($bed:expr; $($property:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                $crate::storage::conformance::$property(&$bed).await;
            }
        )+
    };
}
pub(crate) use conformance_tests;

// --- small words ---------------------------------------------------------------------------------

/// A counting text message to a user.
pub fn to_user(sender: &str, user: &str, id: &str) -> Write {
    message(sender, Target::User(user.into()), id)
}

/// A counting text message to a group.
pub fn to_group(sender: &str, group: &str, id: &str) -> Write {
    message(sender, Target::Group(group.into()), id)
}

/// When all messages here were sent.
pub const SENT_AT_MS: i64 = 1_700_000_000_000;

fn message(sender: &str, target: Target, id: &str) -> Write {
    Write::Append {
        message_id: Uuid::now_v7(),
        sender_id: sender.into(),
        client_message_id: id.into(),
        target,
        kind: 1,
        body: format!("{sender} says {id}"),
        attachment: None,
        does_not_count: false,
        sent_at_ms: SENT_AT_MS,
        extras: None,
    }
}

fn silent(mut write: Write) -> Write {
    if let Write::Append { does_not_count, .. } = &mut write {
        *does_not_count = true;
    }
    write
}

fn create(group: &str, members: &[&str], members_max: u32) -> Write {
    Write::CreateGroup {
        group_id: group.into(),
        name: format!("name of {group}"),
        avatar: "https://example.org/a.png".into(),
        members: owned(members),
        members_max,
        created_at_ms: 5,
    }
}

fn add(group: &str, users: &[&str]) -> Write {
    Write::AddMembers { group_id: group.into(), user_ids: owned(users) }
}

fn remove(group: &str, users: &[&str]) -> Write {
    Write::RemoveMembers { group_id: group.into(), user_ids: owned(users) }
}

fn cursor(user: &str, conversation: &str, delivered: u64, read: u64) -> Write {
    let (user_id, conversation_id) = (user.into(), conversation.into());
    Write::MoveCursor { user_id, conversation_id, delivered, read }
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn one<S: Store>(store: &S, write: Write) -> Outcome {
    let mut outcomes = store.commit(vec![write]).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

async fn stored<S: Store>(store: &S, write: Write) -> chat::Message {
    match one(store, write).await {
        Outcome::Appended { message, duplicate: false, .. } => message,
        other => panic!("not stored: {other:?}"),
    }
}

async fn refused<S: Store>(store: &S, write: Write) -> Code {
    let before = store.version();
    match one(store, write.clone()).await {
        Outcome::Refused { code, reason } => {
            assert!(!reason.is_empty());
            assert_eq!(store.version(), before, "{write:?}");
            code
        }
        other => panic!("{write:?} was not refused: {other:?}"),
    }
}

fn sequences(messages: &[chat::Message]) -> Vec<u64> {
    messages.iter().map(|message| message.sequence).collect()
}

async fn page<S: Store>(store: &S, user: &str, conversation: &str, from: u64, to: u64) -> Page {
    store.page(user, conversation, from, to, 100, false).await.unwrap()
}

async fn row<S: Store>(store: &S, user: &str, conversation: &str) -> chat::Conversation {
    let rows = store.conversations(user, 0, 100).await.unwrap().conversations;
    rows.into_iter().find(|row| row.conversation_id == conversation).expect("the row is there")
}

async fn pending<S: Store>(store: &S, user: &str) -> Vec<u64> {
    let all = store.undelivered(user, store.version(), 20, 100).await.unwrap();
    sequences(&all)
}
