//! Leads a run: starts the generator threads, watches them, moves them from phase to phase,
//! collects their records. What a phase means is the scenarios' business.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    clock::Clock,
    control::{Control, Phase, Snapshot},
    exit::RunError,
    live::{View, Watcher},
    log::Log,
};

const LOOK_EVERY: Duration = Duration::from_millis(50);
const SECOND_NS: u64 = 1_000_000_000;
/// A thread that does not hand its records over for this long is stuck.
const COLLECT_NS_MAX: u64 = 10 * SECOND_NS;
/// Threads that are abandoned end within this time, or are left behind.
const ABANDON_MAX: Duration = Duration::from_secs(5);

/// The generator threads of a run, each of which ends with a `T`.
pub struct Crew<T> {
    /// The run's clock.
    pub clock: Clock,
    /// The talk with the threads.
    pub control: Arc<Control>,
    threads: Vec<JoinHandle<Result<T, RunError>>>,
    aborted: Arc<AtomicBool>,
    watcher: Option<Watcher>,
}

/// Whether to go on waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Look again.
    More,
    /// It has happened.
    Enough,
}

impl<T: Send + 'static> Crew<T> {
    /// Starts `threads` threads, each with the work that `work` makes for its number.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start<W>(
        clock: Clock,
        control: Arc<Control>,
        aborted: Arc<AtomicBool>,
        view: View,
        mut work: impl FnMut(u32) -> W,
    ) -> Result<Self, RunError>
    where
        W: FnOnce() -> Result<T, RunError> + Send + 'static,
    {
        let mut threads = Vec::new();
        for number in 0..control.slots.len() as u32 {
            let thread = std::thread::Builder::new()
                .name(format!("generator-{number}"))
                .spawn(work(number))
                .map_err(|error| RunError::preflight(format!("a thread: {error}")))?;
            threads.push(thread);
        }
        let watcher = Watcher::new(view, clock.now_ns(), &aborted);
        Ok(Self { clock, control, threads, aborted, watcher })
    }

    /// Looks at the threads until `look` has had enough, or for `at_most`. Answers whether it
    /// had enough.
    ///
    /// # Errors
    /// The run was aborted, or a thread failed.
    pub fn watch(
        &mut self,
        at_most: Duration,
        mut look: impl FnMut(&Snapshot) -> Wait,
    ) -> Result<bool, RunError> {
        let at_most_ns = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = self.clock.now_ns().saturating_add(at_most_ns);
        loop {
            if self.aborted.load(Ordering::Relaxed) {
                return Err(RunError::aborted("interrupted"));
            }
            let leaving = self.control.phase() == Phase::Leave;
            if !leaving && self.threads.iter().any(JoinHandle::is_finished) {
                return Err(self.failure());
            }
            let snapshot = self.control.snapshot();
            let now_ns = self.clock.now_ns();
            if let Some(watcher) = &mut self.watcher {
                watcher.look(now_ns, &self.control, &snapshot);
            }
            if look(&snapshot) == Wait::Enough {
                return Ok(true);
            }
            if now_ns >= until_ns {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY.min(Duration::from_nanos(until_ns - now_ns)));
        }
    }

    /// Why a thread ended before its time.
    fn failure(&mut self) -> RunError {
        let ended = self.threads.iter().position(JoinHandle::is_finished);
        let result = ended.map(|index| self.threads.swap_remove(index).join());
        match result {
            Some(Ok(Err(error))) => error,
            Some(Err(_)) => RunError::aborted("a generator thread panicked"),
            Some(Ok(Ok(_))) | None => RunError::aborted("a generator thread ended early"),
        }
    }

    /// Has every thread hand its records over.
    ///
    /// # Errors
    /// The run was aborted, or a thread failed or is stuck.
    pub fn collect(&mut self) -> Result<Log, RunError> {
        let control = self.control.clone();
        control.slots.iter().for_each(|slot| slot.want_log());
        let mut log = Log::default();
        let mut missing: Vec<_> = (0..control.slots.len()).collect();
        let all = self.watch(Duration::from_nanos(COLLECT_NS_MAX), |_| {
            missing.retain(|index| match control.slots[*index].take_log() {
                Some(part) => {
                    log.merge(part);
                    false
                }
                None => true,
            });
            if missing.is_empty() { Wait::Enough } else { Wait::More }
        })?;
        if all { Ok(log) } else { Err(RunError::aborted("a generator thread is stuck")) }
    }

    /// Ends all sessions and the threads.
    ///
    /// # Errors
    /// A thread failed.
    pub fn leave(mut self, at_most: Duration) -> Result<Vec<T>, RunError> {
        self.control.enter(Phase::Leave);
        self.watcher = None;
        let until_ns = self.clock.now_ns() + at_most.as_nanos() as u64;
        let mut results = Vec::new();
        for thread in std::mem::take(&mut self.threads) {
            while !thread.is_finished() {
                if self.clock.now_ns() > until_ns {
                    return Err(RunError::aborted("sessions did not end in time"));
                }
                std::thread::sleep(LOOK_EVERY);
            }
            let result = thread.join();
            results.push(
                result.unwrap_or_else(|_| Err(RunError::aborted("a generator thread panicked")))?,
            );
        }
        Ok(results)
    }
}

/// A run that ends before its time, for whatever reason, leaves no connection and no thread behind.
impl<T> Drop for Crew<T> {
    fn drop(&mut self) {
        self.control.abandon();
        let until = std::time::Instant::now() + ABANDON_MAX;
        while self.threads.iter().any(|thread| !thread.is_finished())
            && std::time::Instant::now() < until
        {
            std::thread::sleep(LOOK_EVERY / 10);
        }
    }
}
