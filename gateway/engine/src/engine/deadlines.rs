//! What happens because time passes: login deadline, idle timeout, token expiry, linger, and what
//! has waited for credit too long.

use millrace_protocol::Code;

use super::{Engine, closing::Farewell};
use crate::{
    Now,
    connection::{Facts, Phase},
    effect::ConnectionId,
    identity::{Identity, Times},
};

impl Engine {
    /// A turn of the loop: time has passed, and fan-outs go on. To be called once a turn, and at the
    /// latest at [`Self::next_deadline_ms`]; earlier or later is not wrong.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        while let Some(slot) = self.timers.pop(now.monotonic_ms) {
            if let Some(id) = self.id_in_slot(slot) {
                self.deadline(id);
            }
        }
        self.refuse_held();
        self.balance();
        self.drain_on();
        self.fan_out_on();
    }

    /// The moment of [`Now::monotonic_ms`] at which [`Self::tick`] and
    /// [`Self::take_link_batch`] are due.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let heartbeat = self.links.iter().map(|link| link.heartbeat_at_ms).min();
        let fan_out = (!self.fan_outs.is_empty()).then_some(self.now.monotonic_ms);
        let hold = self.next_hold_ms();
        let moves = self.next_moves_ms();
        [self.timers.next_deadline_ms(), heartbeat, self.next_drain_ms(), fan_out, hold, moves]
            .into_iter()
            .flatten()
            .min()
    }

    /// A connection's timer has fired.
    fn deadline(&mut self, id: ConnectionId) {
        let now = self.now;
        let grace_ms = self.settings.token_grace_ms;
        let Some(connection) = self.get_mut(id) else { return };
        match connection.phase {
            Phase::AwaitingLogin | Phase::LoginPending => {
                self.end_for(id, Code::LoginTimeout);
            }
            Phase::Active => {
                connection.refusals = 0;
                if connection.has(Facts::PAUSED) {
                    // We do not listen, so silence proves nothing.
                    connection.note_received(now);
                }
                let silence_ms = connection.silence_ms(now);
                let identity = connection.identity;
                let times = Identity::times(self.identities.get(identity));
                let times = times.expect("who is logged in has claims");
                if ends_at_ms(times, grace_ms).is_some_and(|end| end <= now.unix_ms) {
                    // The session is ended by the server, as by an administrator.
                    let code = Code::TokenExpired;
                    self.close(id, code.number(), Farewell::Kick { reason: code.sentence() });
                } else if silence_ms >= times.idle_timeout_ms {
                    self.end_for(id, Code::IdleTimeout);
                } else {
                    let deadline_ms = next_deadline_ms(now, times, grace_ms, silence_ms);
                    self.timers.arm(id.slot(), deadline_ms);
                }
            }
            Phase::Closing => self.emit_close(id),
            Phase::Closed => {}
        }
    }

    fn end_for(&mut self, id: ConnectionId, code: Code) {
        self.close(id, code.number(), Farewell::error(0, code.sentence()));
    }

    /// Arms the timer of a logged-in connection for the next moment at which it can be idle or
    /// expired.
    pub(super) fn arm_active(&mut self, id: ConnectionId) {
        let now = self.now;
        let Some(connection) = self.get(id) else { return };
        let Some(times) = Identity::times(self.identities.get(connection.identity)) else { return };
        let grace_ms = self.settings.token_grace_ms;
        let deadline_ms = next_deadline_ms(now, times, grace_ms, connection.silence_ms(now));
        self.timers.arm(id.slot(), deadline_ms);
    }
}

/// When the token of a session ends it; `None`: never. It needs no timer of its own: the one of the
/// connection is armed for this moment or for idleness, whichever is nearer.
fn ends_at_ms(times: Times, grace_ms: u32) -> Option<i64> {
    (times.expires_at_ms != 0).then(|| times.expires_at_ms.saturating_add(i64::from(grace_ms)))
}

fn next_deadline_ms(now: Now, times: Times, grace_ms: u32, silence_ms: u32) -> u64 {
    let mut due_in = u64::from(times.idle_timeout_ms.saturating_sub(silence_ms));
    if let Some(end) = ends_at_ms(times, grace_ms) {
        let expires_in = end.saturating_sub(now.unix_ms);
        due_in = due_in.min(u64::try_from(expires_in).unwrap_or(0));
    }
    now.monotonic_ms + due_in
}
