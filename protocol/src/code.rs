//! The one table of codes: every refusal and every end of a connection, with its number on the
//! wire, its metric label, its WebSocket close code and the sentence a person reads.
//!
//! Every door of the product (frames, link, HTTP, logs, metrics) takes its words from here. It
//! does not decide when a code applies.

/// Builds [`Code`] and its accessors from the rows of the table.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $label:literal, $after:ident, $sentence:literal;)+) => {
        /// Why something was refused or a connection ended. The number is the one in
        /// `LoginReply.code`, `Error.code` and every other `code` field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Code { $($(#[$doc])* $variant = $number,)+ }

        impl Code {
            /// Every row, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable lower-case name: metric label, log field, JSON documentation.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What a person reads when no better sentence is at hand.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }

            /// Whether a client that lost its connection with this code should come back.
            pub const fn after(self) -> After {
                match self { $(Self::$variant => After::$after,)+ }
            }

            /// The code with this number, if the table has it.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

/// What a client does after a connection ended with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Connect again, with jitter (WebSocket close codes 3000 to 3499).
    Reconnect,
    /// Do not connect again without a change: a new token, another version, a person's decision
    /// (WebSocket close codes 3500 to 3999).
    Stay,
}

codes! {
    /// Success, or a connection that ended in good order.
    Ok = 0, "ok", Stay, "Success.";
    /// A frame, WebSocket frame or envelope that breaks the protocol.
    BadFrame = 1, "bad_frame", Stay, "The bytes do not form a valid frame.";
    /// The header's version is not 1.
    UnsupportedVersion = 2, "unsupported_version", Stay, "This server speaks protocol version 1 only.";
    /// A body above the negotiated limit.
    TooLarge = 3, "too_large", Stay, "The frame is larger than this connection allows.";
    /// A command before a successful login.
    NotLoggedIn = 4, "not_logged_in", Stay, "Log in first.";
    /// The token was refused.
    BadToken = 5, "bad_token", Stay, "The token is not valid.";
    /// The token was good once.
    TokenExpired = 6, "token_expired", Stay, "The token has expired; log in with a new one.";
    /// A second LOGIN on the same connection.
    AlreadyLoggedIn = 7, "already_logged_in", Stay, "This connection is already logged in.";
    /// Nobody serves this command.
    UnknownCommand = 8, "unknown_command", Stay, "The command is unknown.";
    /// Too many in a short time.
    RateLimited = 9, "rate_limited", Reconnect, "Too many requests; slow down.";
    /// No logic process is reachable.
    LogicUnavailable = 10, "logic_unavailable", Reconnect, "The service behind the gateway is away; try again.";
    /// No successful login within the deadline.
    LoginTimeout = 11, "login_timeout", Reconnect, "No login within the deadline.";
    /// No complete frame within the idle timeout.
    IdleTimeout = 12, "idle_timeout", Reconnect, "Nothing was received within the idle timeout.";
    /// The peer does not read what it is sent.
    SlowConsumer = 13, "slow_consumer", Reconnect, "The connection reads more slowly than it is sent to.";
    /// An administrator, the system or the multi-device policy ended the session.
    Kicked = 14, "kicked", Stay, "The session was ended by the server.";
    /// The server is going away.
    Draining = 15, "draining", Reconnect, "The server is going away; connect again.";
    /// No such thing.
    NotFound = 16, "not_found", Stay, "There is no such object.";
    /// The user may not do this.
    NotPermitted = 17, "not_permitted", Stay, "This is not permitted.";
    /// The request does not make sense.
    BadRequest = 18, "bad_request", Stay, "The request is not valid.";
    /// A table is full.
    OverCapacity = 19, "over_capacity", Reconnect, "The server is at its capacity; try again later.";
    /// The server failed; the fault is ours.
    Internal = 20, "internal", Reconnect, "The server failed to handle this; try again.";
    /// The peer's connection ended without a word: FIN, reset, or a lost network.
    PeerGone = 21, "peer_gone", Reconnect, "The peer's connection ended.";
    /// The object exists already.
    AlreadyExists = 22, "already_exists", Stay, "The object exists already.";
    /// A message to somebody who is no friend, where only friends may write.
    NotFriends = 23, "not_friends", Stay, "Only friends of this user may do this.";
    /// The other user has blocked the sender.
    Blocked = 24, "blocked", Stay, "This user does not take messages from you.";
    /// The sender may not speak in this group at the moment, or nobody may.
    Muted = 25, "muted", Stay, "You may not speak here at the moment.";
    /// A member without the role that the act needs.
    RoleTooLow = 26, "role_too_low", Stay, "Your role in this group does not allow this.";
    /// The time in which this was allowed is over.
    TooLate = 27, "too_late", Stay, "The time in which this was allowed is over.";
    /// A word of the message is on the list of words that are not let through.
    WordBlocked = 28, "word_blocked", Stay, "The message holds a word that is not allowed here.";
    /// The timestamp is outside the window, or the nonce was used before.
    Replayed = 29, "replayed", Stay, "This request was seen before, or its time is outside the window.";
    /// The multi-device policy gave this session's place to another device.
    Replaced = 30, "replaced", Stay, "Another device took the place of this session.";
    /// Wrong name or password.
    BadCredentials = 31, "bad_credentials", Stay, "The name or the password is wrong.";
}

impl Code {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The WebSocket close code (RFC 6455 section 7.4.2, private use): 3000 + number when the
    /// client should reconnect, 3500 + number when it should not, 1000 for [`Code::Ok`].
    pub const fn websocket_close_code(self) -> u16 {
        match (self, self.after()) {
            (Self::Ok, _) => 1000,
            (_, After::Reconnect) => 3000 + self as u16,
            (_, After::Stay) => 3500 + self as u16,
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn numbers_are_dense_and_round_trip() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index);
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        assert_eq!(Code::from_number(Code::ALL.len() as u32), None);
    }

    #[test]
    fn close_codes_say_whether_to_reconnect() {
        assert_eq!(Code::Ok.websocket_close_code(), 1000);
        assert_eq!(Code::IdleTimeout.websocket_close_code(), 3012);
        assert_eq!(Code::BadToken.websocket_close_code(), 3505);
    }
}
