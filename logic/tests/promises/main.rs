//! What PROTOCOL.md promises, under everything that can happen at once: random interleavings of
//! sends, acknowledgements, reads, revocations, joins, departures and devices that come and go, with
//! links that break and logic that dies at every stage of the chain.
//!
//! The logic is the real one, from the link contract (without its sockets) to the embedded store,
//! under both rules by which groups are fanned out; so that a run takes milliseconds and is the same
//! every time, it lives on one thread that runs only turn by turn. `program` is what happens,
//! `world` makes it happen, `device` is a client that does what PROTOCOL.md says, `history` says
//! what must come of it, `probe` sits between logic and the store.
//!
//! ```text
//! cargo test -p millrace-logic --test promises                     some hundred seeds
//! MILLRACE_SEEDS=10000 MILLRACE_THREADS=2 cargo test --release -p millrace-logic --test promises -- --nocapture
//! MILLRACE_SEED=7 cargo test -p millrace-logic --test promises     one of them, again
//! ```
//! A broken promise is told with its seed and the shortest program that still breaks one.
//! `planted_faults.py` beside this file plants faults in the logic and shows that each is found.

mod bed;
mod device;
mod history;
mod probe;
mod program;
mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use bed::Bed;
use program::Program;
use world::Found;

/// Seeds of a run in CI.
const SEEDS: u64 = 250;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The two rules of fan-out, side by side.
struct Beds {
    pointers: Bed,
    cursors: Bed,
}

impl Beds {
    fn new() -> Self {
        Self { pointers: Bed::new(usize::MAX), cursors: Bed::new(0) }
    }

    /// Runs a program under both rules.
    ///
    /// # Errors
    /// Which promise was broken.
    fn run(&mut self, program: &Program) -> Result<(Found, bool), String> {
        let pointers = run(&mut self.pointers, program)?;
        let cursors = run(&mut self.cursors, program)?;
        // The same was done under both rules, unless a race inside of the runtime went the other
        // way; then a client must not be able to tell which rule it was.
        let is_same = pointers.log == cursors.log;
        if is_same && pointers.views != cursors.views {
            let differ = pointers.views.iter().zip(&cursors.views).find(|(a, b)| a != b);
            return Err(format!("the two rules of fan-out can be told apart: {differ:?}"));
        }
        if is_same && pointers.pushes != cursors.pushes {
            let differ = pointers.pushes.iter().zip(&cursors.pushes).find(|(a, b)| a != b);
            return Err(format!("the two rules of fan-out push differently: {differ:?}"));
        }
        Ok((pointers, is_same))
    }
}

fn run(bed: &mut Bed, program: &Program) -> Result<Found, String> {
    match catch_unwind(AssertUnwindSafe(|| world::run(bed, program))) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("a panic: {}", text.unwrap_or("without words")))
        }
    }
}

/// A broken promise, with the shortest program that breaks one.
fn told(beds: &mut Beds, program: &Program, wrong: &str) -> String {
    let shortest = program.shortened(|part| beds.run(part).err());
    let why = beds.run(&shortest).err().unwrap_or_default();
    let steps: Vec<String> = shortest.steps.iter().map(|step| format!("    {step:?}")).collect();
    format!(
        "MILLRACE_SEED={} breaks a promise: {wrong}\nThe shortest program found ({} of {} steps, \
         {:?}):\n{}\nbreaks one too: {why}\n",
        program.seed,
        steps.len(),
        program.steps.len(),
        shortest.bounds,
        steps.join("\n"),
    )
}

/// What many runs came to.
#[derive(Default)]
struct Sum {
    seeds: usize,
    /// Seeds that went exactly the same way under both rules of fan-out.
    same: usize,
    writes: usize,
    pushes: usize,
    deaths: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Sum {
    fn add(&mut self, found: &Found, is_same: bool) {
        self.seeds += 1;
        self.same += usize::from(is_same);
        self.writes += found.log.len();
        self.pushes += found.pushes.iter().map(Vec::len).sum::<usize>();
        for (cause, count) in &found.deaths {
            *self.deaths.entry(cause.clone()).or_default() += count;
        }
    }
}

#[test]
fn every_promise_holds_whatever_happens_and_whatever_dies() {
    let began = Instant::now();
    let seeds: Vec<u64> = match number("MILLRACE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("MILLRACE_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    // More than the first are for whoever is mending.
    let failures_max = number("MILLRACE_FAILURES").unwrap_or(1) as usize;
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Sum::default()));
    let may_go_on = || sum.lock().expect("no thread fails").failures.len() < failures_max;
    let work = || {
        let mut beds = Beds::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed))
            && may_go_on()
        {
            let program = Program::from_seed(*seed);
            let ran = beds.run(&program).map_err(|wrong| {
                println!("MILLRACE_SEED={seed}: {wrong}");
                told(&mut beds, &program, &wrong)
            });
            let mut sum = sum.lock().expect("no thread fails");
            match ran {
                Ok((found, is_same)) => sum.add(&found, is_same),
                Err(told) => sum.failures.push(told),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..number("MILLRACE_THREADS").unwrap_or(1) {
            scope.spawn(work);
        }
    });
    let Sum { seeds, same, writes, pushes, deaths, failures } =
        sum.into_inner().expect("no thread fails");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!(
        "{seeds} seeds in {:.1} s: {writes} durable writes, {pushes} messages pushed; logic died {} times: \
         {deaths:?}; {same} seeds went exactly the same way under both rules of fan-out",
        began.elapsed().as_secs_f64(),
        deaths.values().sum::<usize>(),
    );
    // Otherwise the comparison of the two rules would say little.
    assert!(same * 2 >= seeds, "only {same} seeds were the same under both rules");
}
