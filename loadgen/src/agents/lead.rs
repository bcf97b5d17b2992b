//! The phases of a run on an agent: at each step it says that it is there, and waits for the
//! coordinator to name the moment of the next, by the agent's own clock.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use tokio::sync::mpsc::Sender;
use tonic::Status;

use super::{
    proto::{FromAgent, Go, Reached, Step, from_agent::What},
    wire::Anchors,
};
use crate::{
    clock::Clock,
    control::Control,
    crew::{Crew, Wait},
    engine::{Records, lead::Lead},
    exit::RunError,
};

/// The threads are told of the load this long before it begins.
const ANNOUNCED_NS: u64 = 100_000_000;
/// How often somebody who waits looks up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a session and the run in it share.
pub struct Shared {
    /// The run is to end; the engine looks at it.
    pub aborted: Arc<AtomicBool>,
    state: Mutex<State>,
}

struct State {
    /// Why the run is to end.
    why: Option<String>,
    control: Option<Arc<Control>>,
    anchors: Anchors,
    /// The last word is said.
    is_over: bool,
}

impl Shared {
    /// Of a run that has not begun.
    pub fn new() -> Self {
        let anchors = Anchors { ramp_start_ns: u64::MAX, load_start_ns: u64::MAX };
        let state = State { why: None, control: None, anchors, is_over: false };
        Self { aborted: Arc::default(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each field is whole whatever a thread was doing to it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the run, with its connections. The first reason counts.
    pub fn stop(&self, why: &str) {
        let mut state = self.state();
        state.why.get_or_insert_with(|| why.to_owned());
        self.aborted.store(true, Ordering::Release);
        if let Some(control) = &state.control {
            control.abandon();
        }
    }

    /// The last word is said.
    pub fn over(&self) {
        self.state().is_over = true;
    }

    /// Whether the session is about to end.
    pub fn is_ending(&self) -> bool {
        self.aborted.load(Ordering::Acquire) || self.state().is_over
    }

    /// Why the run was ended.
    pub fn why(&self) -> Option<String> {
        self.state().why.clone()
    }

    /// The threads, once they run, and where the run's parts begin.
    pub fn running(&self) -> Option<(Arc<Control>, Anchors)> {
        let state = self.state();
        Some((state.control.clone()?, state.anchors))
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// See the module.
pub struct AgentLead {
    /// The agent's clock.
    pub clock: Clock,
    /// What the coordinator says.
    pub orders: Receiver<Go>,
    /// What it is told.
    pub out: Sender<Result<FromAgent, Status>>,
    /// With the session.
    pub shared: Arc<Shared>,
}

impl AgentLead {
    fn interrupted(&self) -> RunError {
        RunError::aborted(self.shared.why().unwrap_or_else(|| "interrupted".to_owned()))
    }

    fn reached(&self, step: Step) -> Result<(), RunError> {
        let message = FromAgent { what: Some(What::Reached(Reached { step: step as i32 })) };
        self.out.blocking_send(Ok(message)).map_err(|_| self.interrupted())
    }

    /// The moment that the coordinator names after a step, if it has named one.
    fn look(&self, step: Step) -> Result<Option<u64>, RunError> {
        match self.orders.try_recv() {
            Ok(go) if go.after == step as i32 => Ok(Some(self.clock.at_unix_ns(go.at_unix_ns))),
            Ok(_) => Err(RunError::aborted("the coordinator took another step than this agent")),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.interrupted()),
        }
    }

    /// Says that it is there, and waits without threads to look after.
    ///
    /// # Errors
    /// The run was called off.
    pub fn step(&self, step: Step) -> Result<u64, RunError> {
        self.reached(step)?;
        loop {
            if self.shared.aborted.load(Ordering::Acquire) {
                return Err(self.interrupted());
            }
            if let Some(at_ns) = self.look(step)? {
                return Ok(at_ns);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The same while the threads run.
    fn step_with(&self, crew: &mut Crew<Records>, step: Step) -> Result<u64, RunError> {
        self.reached(step)?;
        let mut named = Ok(None);
        let waited = crew.watch(Duration::MAX, |_| {
            named = self.look(step);
            if matches!(named, Ok(None)) { Wait::More } else { Wait::Enough }
        });
        waited.map_err(|error| match self.shared.why() {
            Some(_) => self.interrupted(),
            None => error,
        })?;
        Ok(named?.unwrap_or(0))
    }

    /// A start must lie ahead: who starts late is not with the others.
    fn ahead(&self, what: &str, at_ns: u64) -> Result<u64, RunError> {
        let late_ns = self.clock.now_ns().saturating_sub(at_ns);
        if late_ns == 0 {
            return Ok(at_ns);
        }
        Err(RunError::aborted(format!(
            "the start of the {what} was heard of {:.0} ms after it: the way from the coordinator is \
             too slow, or this machine is",
            late_ns as f64 / 1e6
        )))
    }
}

impl Lead for AgentLead {
    fn clock(&self) -> Clock {
        self.clock
    }

    fn streams(&self) -> bool {
        true
    }

    /// No agent knows what the others measured.
    fn searches(&self) -> bool {
        false
    }

    fn ramp_start_ns(&mut self) -> Result<u64, RunError> {
        let at_ns = self.step(Step::Ready)?;
        self.shared.state().anchors.ramp_start_ns = at_ns;
        self.ahead("ramp", at_ns)
    }

    fn started(&mut self, control: &Arc<Control>) {
        let mut state = self.shared.state();
        state.control = Some(control.clone());
        if self.shared.aborted.load(Ordering::Acquire) {
            control.abandon();
        }
    }

    fn load_start_ns(&mut self, crew: &mut Crew<Records>, _: Duration) -> Result<u64, RunError> {
        // The coordinator's moment lies behind the time to hold.
        let at_ns = self.step_with(crew, Step::Up)?;
        let at_ns = self.ahead("load", at_ns)?;
        self.shared.state().anchors.load_start_ns = at_ns;
        let wait_ns = at_ns.saturating_sub(self.clock.now_ns() + ANNOUNCED_NS);
        crew.watch(Duration::from_nanos(wait_ns), |_| Wait::More)?;
        Ok(at_ns)
    }

    fn verified(&mut self, crew: &mut Crew<Records>) -> Result<(), RunError> {
        self.step_with(crew, Step::Verified).map(|_| ())
    }
}
