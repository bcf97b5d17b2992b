//! How a shard leaves: GOAWAY to one connection after the other over a spread, then the close of
//! whoever is still there after its window.
//!
//! Two cursors walk over the slots in step with the time, so that draining needs no memory per
//! connection.

use millrace_protocol::{Code, command, session};

use super::{Engine, closing::Farewell};
use crate::{Drain, Now, connection::Facts};

/// What a client gets on top of its window before it is closed.
const GRACE_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Draining {
    drain: Drain,
    started_at_ms: u64,
    /// Slots at the start; nobody is accepted later.
    slots: u32,
    /// The next slot to be told.
    told: u32,
    /// The next slot to be closed.
    closed: u32,
}

impl Draining {
    /// How many slots are due, if the first is due `delay_ms` after the start.
    fn due(&self, now: Now, delay_ms: u64) -> u32 {
        let Some(elapsed) = now.monotonic_ms.checked_sub(self.started_at_ms + delay_ms) else {
            return 0;
        };
        let spread = u64::from(self.drain.spread_ms);
        if elapsed >= spread {
            return self.slots;
        }
        // Below `slots`, because elapsed is below the spread.
        (u64::from(self.slots) * elapsed / spread) as u32
    }

    /// When the next slot is due.
    fn next_ms(&self, cursor: u32, delay_ms: u64) -> Option<u64> {
        if cursor >= self.slots {
            return None;
        }
        let share = u64::from(self.drain.spread_ms) * (u64::from(cursor) + 1);
        Some(self.started_at_ms + delay_ms + share.div_ceil(u64::from(self.slots)))
    }

    fn close_delay_ms(&self) -> u64 {
        u64::from(self.drain.reconnect_after_ms_max) + GRACE_MS
    }
}

impl Engine {
    /// Begins to leave: new connections and logins are refused with `draining`, everybody is sent
    /// GOAWAY over the spread and closed after the window. A second call changes nothing.
    pub fn drain(&mut self, now: Now, drain: Drain) {
        self.now = now;
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Draining {
            drain,
            started_at_ms: now.monotonic_ms,
            slots: self.connections.slots(),
            told: 0,
            closed: 0,
        });
        self.drain_on();
    }

    /// Does what is due.
    pub(super) fn drain_on(&mut self) {
        let now = self.now;
        while let Some(draining) = &mut self.draining
            && draining.told < draining.due(now, 0)
        {
            let slot = draining.told;
            draining.told += 1;
            self.send_away(slot);
        }
        while let Some(draining) = &mut self.draining
            && draining.closed < draining.due(now, draining.close_delay_ms())
        {
            let slot = draining.closed;
            draining.closed += 1;
            if let Some(id) = self.id_in_slot(slot) {
                let code = Code::Draining;
                self.close(id, code.number(), Farewell::error(0, code.sentence()));
            }
        }
    }

    /// When [`Self::drain_on`] is due.
    pub(super) fn next_drain_ms(&self) -> Option<u64> {
        let draining = self.draining.as_ref()?;
        let tell = draining.next_ms(draining.told, 0);
        let close = draining.next_ms(draining.closed, draining.close_delay_ms());
        [tell, close].into_iter().flatten().min()
    }

    fn send_away(&mut self, slot: u32) {
        let Some(draining) = &self.draining else { return };
        let goaway = session::GoAway {
            code: Code::Draining.number(),
            reason: Code::Draining.sentence().to_owned(),
            reconnect_after_ms_min: draining.drain.reconnect_after_ms_min,
            reconnect_after_ms_max: draining.drain.reconnect_after_ms_max,
            reconnect_to: draining.drain.reconnect_to.clone(),
        };
        let Some(id) = self.id_in_slot(slot) else { return };
        let Some(connection) = self.get(id) else { return };
        if !connection.is_open() {
            return;
        }
        if connection.has(Facts::UPGRADING) {
            // Nothing can be said on it but that the upgrade is refused.
            let code = Code::Draining;
            self.close(id, code.number(), Farewell::error(0, code.sentence()));
        } else {
            self.push_message(id, command::GOAWAY, 0, &goaway);
        }
    }
}
