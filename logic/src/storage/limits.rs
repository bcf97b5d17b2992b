//! The bounds of what is stored. Whoever writes above them is answered `bad_request` or
//! `over_capacity`, never truncated.

use millrace_protocol::limits::BODY_BYTES_MAX_CEILING;

/// Longest user id, in bytes.
pub const USER_ID_BYTES_MAX: usize = 128;

/// Longest group id, in bytes.
pub const GROUP_ID_BYTES_MAX: usize = 128;

/// Longest client message id, in bytes; the shortest is one.
pub const CLIENT_MESSAGE_ID_BYTES_MAX: usize = 128;

/// Longest message body, in bytes. The gateway's own limit is lower (64 KiB unless configured);
/// this is the wire's ceiling.
pub const BODY_BYTES_MAX: usize = BODY_BYTES_MAX_CEILING as usize;

/// Longest of each text of an attachment, of a group's name and of its avatar, in bytes.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// Users that one message may mention by name.
pub const MENTIONED_USERS_MAX: usize = 100;

/// Messages forwarded at once.
pub const FORWARDED_MESSAGES_MAX: usize = 100;

/// Messages deleted at once.
pub const DELETED_MESSAGES_MAX: usize = 100;

/// Runs of deleted messages that a user may have in one conversation. At the bound a further
/// message is refused (`over_capacity`) unless it touches a run. One row of at most 20 bytes a run.
pub const DELETED_RANGES_MAX: usize = 1_000;

/// Members a group may have when its creator states no limit.
pub const GROUP_MEMBERS_MAX_DEFAULT: u32 = 500;

/// Members a group may have at the very most.
pub const GROUP_MEMBERS_MAX_CEILING: u32 = 100_000;

/// Administrators of a group; one more is refused with `over_capacity`.
pub const GROUP_ADMINISTRATORS_MAX: usize = 100;

/// Requests to join that wait in one group; one more is refused with `over_capacity`.
pub const GROUP_JOIN_REQUESTS_MAX: usize = 1_000;

/// Longest announcement of a group, in bytes.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 16 * 1024;

/// Longest text with a request to join, in bytes.
pub const JOIN_MESSAGE_BYTES_MAX: usize = 1024;

/// Members that [`Store::group`](super::Store::group) names; all of them come in pages.
pub const GROUP_MEMBERS_SHOWN_MAX: usize = 500;

/// Users that the notice of one act on a group names; it counts all of them.
pub const GROUP_EVENT_USERS_MAX: usize = 100;

const _: () = assert!(GROUP_MEMBERS_MAX_DEFAULT <= GROUP_MEMBERS_MAX_CEILING);
// Row keys carry these lengths in one byte.
const _: () = assert!(USER_ID_BYTES_MAX <= 255 && GROUP_ID_BYTES_MAX <= 255);
