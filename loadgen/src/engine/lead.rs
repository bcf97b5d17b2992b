//! Who says when the phases of a run begin: this process alone, or a coordinator of several.

use std::{sync::Arc, time::Duration};

use super::Records;
use crate::{
    clock::Clock,
    control::Control,
    crew::{Crew, Wait},
    exit::RunError,
};

/// The load begins this long after it was announced to the threads.
const LOAD_LEAD_NS: u64 = 100_000_000;

/// See the module. Each is asked once, in this order.
pub trait Lead {
    /// The clock of the run.
    fn clock(&self) -> Clock;

    /// Whether somebody takes what was measured while the run goes on.
    fn streams(&self) -> bool {
        false
    }

    /// Whether this process looks for the breakpoint itself, if the scenario wants one.
    fn searches(&self) -> bool {
        true
    }

    /// Everything is there that the run needs. Answers when the ramp begins.
    ///
    /// # Errors
    /// The run was called off.
    fn ramp_start_ns(&mut self) -> Result<u64, RunError>;

    /// The threads run.
    fn started(&mut self, _control: &Arc<Control>) {}

    /// Everybody is there. Waits for `hold`, and answers when the load begins.
    ///
    /// # Errors
    /// The run was aborted, or a thread failed.
    fn load_start_ns(&mut self, crew: &mut Crew<Records>, hold: Duration) -> Result<u64, RunError>;

    /// Every message is verified. Waits until the sessions may end.
    ///
    /// # Errors
    /// The run was aborted, or a thread failed.
    fn verified(&mut self, crew: &mut Crew<Records>) -> Result<(), RunError>;
}

/// Nobody else has a part in the run.
pub struct Alone(Clock);

impl Alone {
    /// A run that starts now.
    pub fn start() -> Self {
        Self(Clock::start())
    }
}

impl Lead for Alone {
    fn clock(&self) -> Clock {
        self.0
    }

    fn ramp_start_ns(&mut self) -> Result<u64, RunError> {
        Ok(self.0.now_ns())
    }

    fn load_start_ns(&mut self, crew: &mut Crew<Records>, hold: Duration) -> Result<u64, RunError> {
        crew.watch(hold, |_| Wait::More)?;
        Ok(self.0.now_ns() + LOAD_LEAD_NS)
    }

    fn verified(&mut self, _: &mut Crew<Records>) -> Result<(), RunError> {
        Ok(())
    }
}
