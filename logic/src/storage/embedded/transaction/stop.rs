//! Why a write is not applied, and what every write is checked for.

use millrace_protocol::Code;

use crate::storage::{StoreError, limits::*};

/// Why a write was refused; becomes [`Outcome::Refused`](crate::storage::Outcome::Refused).
pub(super) struct Refusal(pub(super) Code, pub(super) &'static str);

/// A refusal is an outcome, a failure of the store is not.
pub(super) enum Stop {
    Refused(Refusal),
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

pub(super) fn refuse<T>(code: Code, reason: &'static str) -> Result<T, Stop> {
    Err(Stop::Refused(Refusal(code, reason)))
}

pub(super) fn check_sender(sender_id: &str, client_message_id: &str) -> Result<(), Stop> {
    check_id(sender_id, USER_ID_BYTES_MAX, "The sender's user id is empty or too long.")?;
    let reason = "client_message_id is empty or too long";
    check_id(client_message_id, CLIENT_MESSAGE_ID_BYTES_MAX, reason)
}

pub(super) fn check_id(id: &str, bytes_max: usize, reason: &'static str) -> Result<(), Stop> {
    if (1..=bytes_max).contains(&id.len()) { Ok(()) } else { refuse(Code::BadRequest, reason) }
}

pub(super) fn check_ids(user_ids: &[String]) -> Result<(), Stop> {
    let reason = "A user id is empty or too long.";
    user_ids.iter().try_for_each(|user_id| check_id(user_id, USER_ID_BYTES_MAX, reason))
}
