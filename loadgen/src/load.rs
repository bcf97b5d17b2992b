//! The schedules of one thread: which act is due, for which of its users, and when it was meant.
//!
//! Nothing is sent here, and no reply is looked at.

use std::ops::Range;

use crate::{
    pacer::{Pacer, Slope},
    scenario::plan::{Act, Plan, Stream},
};

/// Moments a second at which the thread looks whether it is on time, whatever else it has to do.
const TICKS_PER_SECOND: f64 = 100.0;

/// Something that is due.
#[derive(Clone, Debug)]
pub struct Moment {
    /// What.
    pub act: Act,
    /// For one of these users, by their place in the thread.
    pub users: Range<u32>,
    /// When it was meant.
    pub intended_ns: u64,
}

struct Schedule {
    act: Act,
    users: Range<u32>,
    pacer: Pacer,
}

/// See the module.
pub struct Load {
    schedules: Vec<Schedule>,
    ticks: Pacer,
    end_ns: u64,
    is_cut: bool,
}

/// Which of several processes that share a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from 0.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Place {
    /// The only one.
    pub const ALONE: Self = Self { number: 0, of: 1 };

    /// Where in an interval (0 to 1) a thread's schedules have their moments, so that the threads of all
    /// processes take turns as those of one would.
    pub fn phase(self, thread: u32, threads: u32) -> f64 {
        let within = f64::from(self.number) / f64::from(self.of);
        (f64::from(thread) + within) / f64::from(threads)
    }
}

/// The places in a thread of the users of a range. User u lives on thread u mod threads.
pub fn locals(users: &Range<u32>, thread: u32, threads: u32) -> Range<u32> {
    let place = |user: u32| user.saturating_sub(thread).div_ceil(threads);
    place(users.start)..place(users.end)
}

impl Load {
    /// The schedules of a thread (which, of how many) of a process for a load that begins at `start_ns`.
    pub fn new(plan: &Plan, (thread, threads): (u32, u32), place: Place, start_ns: u64) -> Self {
        let slopes = plan.slopes();
        let phase = place.phase(thread, threads);
        let schedule = |stream: &Stream| {
            let users = locals(&stream.users, thread, threads);
            let part = users.len() as f64 / stream.users.len().max(1) as f64;
            let per_second = stream.per_second * part;
            let pacer = match &stream.span_ns {
                None => Pacer::along(per_second, start_ns, &slopes, phase),
                Some(span) => {
                    let length_ns = span.end - span.start;
                    Pacer::new(per_second, start_ns + span.start, length_ns, phase)
                }
            };
            Schedule { act: stream.act, users, pacer }
        };
        let load_ns = plan.load_ns();
        let tick = [Slope::even(load_ns)];
        Self {
            schedules: plan.streams.iter().map(schedule).collect(),
            ticks: Pacer::along(TICKS_PER_SECOND, start_ns, &tick, phase),
            end_ns: start_ns + load_ns,
            is_cut: false,
        }
    }

    /// When the next moment is meant.
    pub fn next_ns(&self) -> u64 {
        let pacers = self.schedules.iter().map(|schedule| &schedule.pacer);
        pacers.filter_map(Pacer::next_ns).min().unwrap_or(u64::MAX)
    }

    /// When the load ends.
    pub fn end_ns(&self) -> u64 {
        self.end_ns
    }

    /// Ends the load before its time. Answers whether that is news.
    pub fn cut(&mut self, at_ns: u64) -> bool {
        if self.is_cut {
            return false;
        }
        self.is_cut = true;
        self.end_ns = self.end_ns.min(at_ns);
        self.schedules.iter_mut().for_each(|schedule| schedule.pacer.end_at(at_ns));
        self.ticks.end_at(at_ns);
        true
    }

    /// The next thing that is due, if any.
    pub fn take_due(&mut self, now_ns: u64) -> Option<Moment> {
        self.schedules.iter_mut().find_map(|schedule| {
            let intended_ns = schedule.pacer.take_due(now_ns)?;
            let Schedule { act, users, .. } = schedule;
            Some(Moment { act: *act, users: users.clone(), intended_ns })
        })
    }

    /// The next tick that is due.
    pub fn take_tick(&mut self, now_ns: u64) -> Option<u64> {
        self.ticks.take_due(now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, locals};

    #[test]
    fn the_threads_of_several_processes_take_turns_as_those_of_one_would() {
        let phases = |of: u32, threads: u32| {
            let each = (0..of).flat_map(|number| {
                (0..threads).map(move |thread| Place { number, of }.phase(thread, threads))
            });
            let mut phases: Vec<_> = each.map(|phase| (phase * 1e9).round() as u64).collect();
            phases.sort_unstable();
            phases
        };
        for (of, threads) in [(1, 6), (2, 3), (3, 2), (6, 1)] {
            assert_eq!(phases(of, threads), phases(1, 6), "{of} processes of {threads} threads");
        }
    }

    #[test]
    fn every_user_of_a_range_lives_on_one_thread_only() {
        for threads in 1..5 {
            for range in [0..0, 0..1, 3..17, 16..40, 39..40] {
                let mut all: Vec<u32> = (0..threads)
                    .flat_map(|thread| {
                        locals(&range, thread, threads).map(move |place| place * threads + thread)
                    })
                    .collect();
                all.sort_unstable();
                assert_eq!(all, range.clone().collect::<Vec<_>>(), "{threads} threads");
            }
        }
    }
}
