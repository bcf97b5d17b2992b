//! The search for the breakpoint: after each step of the load its thresholds are looked at, and the
//! first step that misses one ends the load.

use std::time::Duration;

use super::Records;
use crate::{
    control::Slot,
    crew::{Crew, Wait},
    exit::RunError,
    record::Metric,
    report::{Breakpoint, judge::Measured},
    scenario::{
        Protocol,
        plan::{Plan, PlannedStage},
    },
    windows::{Part, Window},
};

/// A step is judged at least this long after its end, and twice the longest latency that its
/// thresholds allow, so that its last messages had time to arrive.
const GRACE_NS_MIN: u64 = 1_000_000_000;
/// Of the messages meant in a step so many must have been acknowledged when it is judged: those that
/// are still on their way are in no histogram.
const ACKED_MIN: f64 = 0.99;
/// A thread answers within 100 ms, unless it is starved.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// See the module.
pub struct Search {
    load_start_ns: u64,
    protocol: Protocol,
    /// The steps that are not judged yet, in order.
    steps: Vec<PlannedStage>,
    held: Option<PlannedStage>,
    broke: Option<(PlannedStage, String)>,
}

impl Search {
    /// `None`: the plan has no steps.
    pub fn new(plan: &Plan, load_start_ns: u64) -> Option<Self> {
        let mut steps: Vec<_> = plan.stages.iter().filter(|stage| stage.is_step).cloned().collect();
        steps.reverse();
        let protocol = plan.protocol;
        let search = Self { load_start_ns, protocol, steps, held: None, broke: None };
        (!search.steps.is_empty()).then_some(search)
    }

    /// When the next step is judged.
    pub fn look_ns(&self) -> u64 {
        self.steps.last().map_or(self.load_start_ns, |step| {
            let limits = step.thresholds.iter().filter_map(|one| one.latency_limit_ns());
            let grace_ns = limits.map(|limit_ns| 2 * limit_ns).max().unwrap_or(0);
            let end_ns = self.load_start_ns + step.offset_ns + step.slope.duration_ns;
            end_ns + grace_ns.max(GRACE_NS_MIN)
        })
    }

    /// When the step began that is judged next.
    pub fn start_ns(&self) -> Option<u64> {
        self.steps.last().map(|step| self.load_start_ns + step.offset_ns)
    }

    /// Judges the next step by what was measured in it. Answers whether the search is over.
    pub fn decide(&mut self, part: &Part) -> bool {
        let Some(step) = self.steps.pop() else { return true };
        match reason(&step, part, self.protocol) {
            None => self.held = Some(step),
            Some(why) => self.broke = Some((step, why)),
        }
        self.has_broken() || self.steps.is_empty()
    }

    /// Whether a step broke: then the load is to end.
    pub fn has_broken(&self) -> bool {
        self.broke.is_some()
    }

    /// Judges the next step. Answers whether the search is over; if a step broke, the load is cut.
    ///
    /// # Errors
    /// The run was aborted, or a thread failed.
    pub fn judge(&mut self, crew: &mut Crew<Records>) -> Result<bool, RunError> {
        let Some(start_ns) = self.start_ns() else { return Ok(true) };
        let is_over = self.decide(&part(crew, start_ns)?);
        if self.has_broken() {
            crew.control.cut_load(crew.clock.now_ns());
        }
        Ok(is_over)
    }

    /// What was found.
    pub fn finish(self, plan: &Plan) -> Breakpoint {
        let load = |step: &PlannedStage| step.slope.to;
        let held_load = self.held.as_ref().map(load);
        let broke_load = self.broke.as_ref().map(|(step, _)| load(step));
        Breakpoint {
            held_load: held_load.unwrap_or(0.0),
            held_per_second: held_load.unwrap_or(0.0) * plan.per_second(),
            broke_load,
            broke_per_second: broke_load.map(|load| load * plan.per_second()),
            why: self.broke.map(|(_, why)| why),
        }
    }
}

/// What all threads measured in the part of the run that began then.
fn part(crew: &mut Crew<Records>, start_ns: u64) -> Result<Part, RunError> {
    let control = crew.control.clone();
    control.slots.iter().for_each(|slot| slot.want_part(start_ns));
    let mut sum = Window::default();
    let mut missing: Vec<&Slot> = control.slots.iter().collect();
    let all = crew.watch(ANSWER_MAX, |_| {
        missing.retain(|slot| match slot.take_part() {
            Some(part) => {
                part.windows.iter().for_each(|window| sum.merge(window));
                false
            }
            None => true,
        });
        if missing.is_empty() { Wait::Enough } else { Wait::More }
    })?;
    if all {
        Ok(Part { start_ns, windows: vec![sum] })
    } else {
        Err(RunError::aborted("a generator thread is stuck"))
    }
}

/// Why a step did not hold.
fn reason(step: &PlannedStage, part: &Part, protocol: Protocol) -> Option<String> {
    let measured = Measured::of_part(part);
    let missed = step.thresholds.iter().find_map(|threshold| {
        let result = measured.compare(threshold);
        let observed = result.observed.map_or("nothing".to_owned(), |value| value.to_string());
        (!result.passed).then(|| format!("{} missed: {observed}", result.condition))
    });
    let total = part.total();
    let intended = total.meant;
    let histograms = part.histograms();
    let (arrivals, what): (&[Metric], _) = match protocol {
        Protocol::Millrace => (&[Metric::AckSingle, Metric::AckGroup], "acknowledged"),
        // Not every one of them is acknowledged, and each has one recipient.
        Protocol::WebsocketEcho | Protocol::Mqtt => {
            (&[Metric::DeliverySingle, Metric::DeliverySlow], "delivered")
        }
    };
    let arrived: u64 = arrivals.iter().map(|one| histograms[*one as usize].len()).sum();
    let is_behind = (arrived as f64) < ACKED_MIN * intended as f64;
    missed.or(is_behind.then(|| format!("{arrived} of {intended} messages were {what} in time")))
}
