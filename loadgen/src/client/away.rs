//! Users who go by themselves, in the ways in which people do, and come back or wait to be called.

use millrace_protocol::{command, frame::Flags};

use super::{Client, Context, NS_PER_MS, Stage, Standing, Wish, wire};
use crate::population::Transport;

/// How a user goes for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// LOGOUT, and the server closes.
    LogOut,
    /// A WebSocket close frame without LOGOUT, as when a page is left; on TCP the same as `Abrupt`.
    CloseFrame,
    /// The connection is closed without a word.
    Abrupt,
}

impl Manner {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::LogOut, Self::CloseFrame, Self::Abrupt];
}

impl Client {
    /// Wants a connection for another visit, timed as if it were the first one.
    pub fn call(&mut self, now_ns: u64, intended_ns: u64, cx: &Context) {
        debug_assert_eq!(self.standing(), Standing::Absent, "who is there is not called");
        self.was_ready = false;
        self.away = false;
        self.failures = 0;
        self.mark_ns = intended_ns;
        self.connect(now_ns, cx);
    }

    /// Whether the user may go for a while: nothing of its own is on its way, so that its absence
    /// is in nobody's latency.
    pub fn may_step_away(&self, cx: &Context) -> bool {
        let is_publisher = cx.population.is_publisher(self.user);
        let is_idle = self.busy.as_ref().is_none_or(|busy| {
            busy.outbox.len() == 0 && busy.pending.is_empty() && busy.leave.is_none()
        });
        self.is_ready() && is_idle && !is_publisher
    }

    /// Ends the session by itself, in one of the ways in which people do, and comes back later.
    pub fn step_away(&mut self, now_ns: u64, cx: &mut Context, manner: Manner) {
        self.away = true;
        let farewell = match manner {
            Manner::LogOut => {
                self.write(cx, command::LOGOUT, Flags::NONE, &[]);
                self.enter(Stage::LoggingOut, now_ns);
                self.leave_room(cx);
                return;
            }
            // 1001: the page is left.
            Manner::CloseFrame if self.transport == Transport::WebSocket => {
                wire::close_frame(&mut cx.random, 1001)
            }
            Manner::CloseFrame | Manner::Abrupt => Vec::new(),
        };
        self.busy().wish = Some(Wish::Close { farewell });
        self.forget_connection(cx);
        self.stay_away(now_ns, cx);
    }

    /// The connection breaks without a word, whatever is on its way, and the user comes back after
    /// `back_ns`: one of many in a storm.
    pub fn break_off(&mut self, now_ns: u64, cx: &mut Context, back_ns: u64) {
        self.away = true;
        self.busy().wish = Some(Wish::Close { farewell: Vec::new() });
        self.forget_connection(cx);
        self.connect_later(now_ns, back_ns.max(NS_PER_MS));
    }

    pub(super) fn stay_away(&mut self, now_ns: u64, cx: &mut Context) {
        if cx.population.part(self.user).visits {
            // Until it is called again.
            self.enter(Stage::Waiting, now_ns);
            return;
        }
        let (min, max) = cx.settings.away_ns;
        let wait_ns = cx.random.u64(min..=max.max(min));
        // A moment at least, so that the old connection is let go of first.
        self.connect_later(now_ns, wait_ns.max(NS_PER_MS));
    }
}
