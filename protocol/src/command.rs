//! The one table of commands: number and name. The text form writes the name, the binary form the
//! number; a command the table does not know travels by its number.

/// Set on a command that answers a request.
pub const REPLY_BIT: u16 = 0x8000;

/// Session commands, 0x0000 to 0x00FF: the gateway answers these itself.
pub const SESSION_COMMAND_MAX: u16 = 0x00FF;

macro_rules! commands {
    ($($(#[$doc:meta])* $constant:ident = $number:literal, $name:literal;)+) => {
        $($(#[$doc])* pub const $constant: u16 = $number;)+

        /// Every row: number and name.
        pub const ALL: &[(u16, &str)] = &[$(($number, $name),)+];

        /// The name of a request command (without [`REPLY_BIT`]).
        pub const fn name(command: u16) -> Option<&'static str> {
            match command { $($number => Some($name),)+ _ => None }
        }

        /// The number behind a name.
        pub fn from_name(name: &str) -> Option<u16> {
            match name { $($name => Some($number),)+ _ => None }
        }
    };
}

commands! {
    /// Keeps the connection alive; answered at the edge.
    HEARTBEAT = 0x0001, "heartbeat";
    /// The first frame of a connection.
    LOGIN = 0x0002, "login";
    /// Ends the session in good order.
    LOGOUT = 0x0003, "logout";
    /// Server to client: the session was ended.
    KICK = 0x0004, "kick";
    /// Server to client: leave within a window.
    GOAWAY = 0x0005, "goaway";
    /// Server to client: a frame was refused.
    ERROR = 0x0006, "error";
    /// A newer token for the live session.
    REFRESH = 0x0007, "refresh";
    /// A functional message.
    NOTICE = 0x0100, "notice";
    /// Looks a group up.
    GROUP_BY_ID = 0x0102, "group_by_id";
    /// A notice has arrived.
    NOTICE_ACK = 0x0103, "notice_ack";
    /// Makes a group.
    CREATE_GROUP = 0x0110, "create_group";
    /// Changes a group's name, avatar, rules.
    UPDATE_GROUP = 0x0111, "update_group";
    /// Sets a group's announcement.
    ANNOUNCE_TO_GROUP = 0x0112, "announce_to_group";
    /// Becomes a member, or asks to.
    JOIN_GROUP = 0x0113, "join_group";
    /// Lets somebody in who asked, or not.
    ANSWER_JOIN_REQUEST = 0x0114, "answer_join_request";
    /// Brings others into a group.
    INVITE_TO_GROUP = 0x0115, "invite_to_group";
    /// Ends the own membership.
    LEAVE_GROUP = 0x0116, "leave_group";
    /// Ends others' membership.
    REMOVE_FROM_GROUP = 0x0117, "remove_from_group";
    /// Makes an administrator, or a member again.
    SET_GROUP_ROLE = 0x0118, "set_group_role";
    /// Hands a group to another owner.
    TRANSFER_GROUP = 0x0119, "transfer_group";
    /// Silences members for a time.
    MUTE_MEMBERS = 0x011A, "mute_members";
    /// Silences a whole group.
    MUTE_GROUP = 0x011B, "mute_group";
    /// Ends a group.
    DISSOLVE_GROUP = 0x011C, "dissolve_group";
    /// Pages of a group's members.
    GROUP_MEMBERS = 0x011D, "group_members";
    /// Pages of who wants to come in.
    GROUP_JOIN_REQUESTS = 0x011E, "group_join_requests";
    /// Stores and delivers a message.
    SEND_MESSAGE = 0x0201, "send_message";
    /// Server to client: messages.
    DELIVER = 0x0202, "deliver";
    /// Messages have arrived.
    DELIVER_ACK = 0x0203, "deliver_ack";
    /// Messages were read.
    READ = 0x0204, "read";
    /// Server to client: somebody's cursors.
    RECEIPT = 0x0205, "receipt";
    /// Takes a message back.
    REVOKE = 0x0206, "revoke";
    /// Hides messages from oneself.
    DELETE = 0x0207, "delete";
    /// Sends messages on.
    FORWARD = 0x0208, "forward";
    /// Pages of a conversation.
    PULL_MESSAGES = 0x0209, "pull_messages";
    /// Conversations that changed.
    PULL_CONVERSATIONS = 0x020A, "pull_conversations";
    /// Settings of a conversation.
    UPDATE_CONVERSATION = 0x020B, "update_conversation";
    /// Somebody is typing.
    TYPING = 0x020C, "typing";
    /// Finds messages of the past.
    SEARCH_MESSAGES = 0x020D, "search_messages";
    /// Who has read a message.
    PULL_RECEIPTS = 0x020E, "pull_receipts";
    /// Enters a live room.
    JOIN_ROOM = 0x0210, "join_room";
    /// Leaves a live room.
    LEAVE_ROOM = 0x0211, "leave_room";
    /// A live message to a room.
    ROOM_MESSAGE = 0x0212, "room_message";
    /// Ends every session of the user.
    LOGOUT_EVERYWHERE = 0x0220, "logout_everywhere";
    /// Who of these is online.
    QUERY_PRESENCE = 0x0221, "query_presence";
    /// The same, and who comes and goes from now on.
    SUBSCRIBE_PRESENCE = 0x0222, "subscribe_presence";
    /// No more of that.
    UNSUBSCRIBE_PRESENCE = 0x0223, "unsubscribe_presence";
    /// Server to client: who came or went.
    PRESENCE = 0x0224, "presence";
    /// Data for a business service.
    REPORT = 0x0301, "report";
    /// Where this device can be reached while it is offline.
    REGISTER_PUSH = 0x0310, "register_push";
    /// This device wants to be told nothing while it is offline.
    UNREGISTER_PUSH = 0x0311, "unregister_push";
}

/// The command that answers `command`.
pub const fn reply(command: u16) -> u16 {
    command | REPLY_BIT
}

/// Whether this is an answer.
pub const fn is_reply(command: u16) -> bool {
    command & REPLY_BIT != 0
}

/// Whether the gateway itself serves the command (0x0000 to 0x00FF).
pub const fn is_session_command(command: u16) -> bool {
    command <= SESSION_COMMAND_MAX
}

#[cfg(test)]
mod tests {
    use super::{ALL, REPLY_BIT, from_name, name};

    #[test]
    fn names_and_numbers_are_unique_and_round_trip() {
        for (index, (number, label)) in ALL.iter().enumerate() {
            assert_eq!(number & REPLY_BIT, 0);
            assert_eq!(name(*number), Some(*label));
            assert_eq!(from_name(label), Some(*number));
            assert!(ALL[index + 1..].iter().all(|(other, _)| other != number));
        }
    }
}
