//! Runs a scenario: ramp, hold, stages, settle, verification, repair, leave.
//!
//! `setup` makes the clients' settings and starts the threads, `search` looks for the breakpoint,
//! `conclude` makes the report. What the users do in a phase is the fleet's business.

pub(crate) mod conclude;
pub mod lead;
pub(crate) mod search;
pub mod setup;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::lead::{Alone, Lead};
use crate::{
    adapter::streams::{self, Streams},
    client::Endings,
    clock::Clock,
    control::{Phase, Snapshot},
    crew::{Crew, Wait},
    exit::{Exit, RunError},
    groups,
    health::Meter,
    live::View,
    load::Place,
    log::{Log, Names},
    population::Population,
    record::{Counter, Recorder},
    report::{AgentReport, Breakpoint, PhaseReport, Recovery, Report},
    room::Board,
    scenario::{Protocol, Scenario, plan::Plan},
    target::Target,
    verify::{Verdict, Verifier},
};

/// What a thread comes back with.
pub type Records = (Recorder, Endings, Vec<String>);

/// A ramp may be slower than asked for, but somebody must come within this time.
const RAMP_PATIENCE_NS: u64 = 45_000_000_000;
/// Ending the sessions may take this much longer than the ramp's rate says.
const LEAVE_SLACK: Duration = Duration::from_secs(60);
/// The verifier's pulls may take so long, all rounds together.
const REPAIR_MAX: Duration = Duration::from_secs(60);
/// One round of them may take so long; then whoever has come back meanwhile is asked.
const REPAIR_ROUND_MAX: Duration = Duration::from_secs(20);
/// Between two rounds, so that who was away has a chance to come back.
const REPAIR_PAUSE: Duration = Duration::from_millis(500);
/// Everything has arrived when nothing is missing at so many looks in a row; a look is 50 ms and
/// a thread publishes every 100 ms.
const QUIET_LOOKS: u32 = 8;

/// What to run, and how to call it.
pub struct Job<'a> {
    /// The subcommand.
    pub command: &'static str,
    /// What happens.
    pub scenario: &'a Scenario,
    /// Where the scenario came from: `preset`, `file` or `arguments`.
    pub source: &'static str,
    /// Where the system under test is.
    pub target: &'a Target,
    /// How it is shown meanwhile.
    pub view: View,
    /// Set by a signal.
    pub aborted: &'a Arc<AtomicBool>,
    /// Which process this is of those that share the load.
    pub place: Place,
    /// What the scenario's `login.key_file` holds, where that file is on another machine.
    pub login_key: Option<Vec<u8>>,
}

/// Why a run is no whole one, although it has something to report.
#[derive(Clone, Debug)]
pub struct Broken {
    /// How it ends.
    pub exit: Exit,
    /// What happened, in a sentence.
    pub why: String,
}

/// What is known of a run when it is over.
pub(crate) struct Course {
    pub clock: Clock,
    pub plan: Arc<Plan>,
    pub ramp_seconds: f64,
    pub load_start_ns: u64,
    pub load_end_ns: u64,
    pub meter: Meter,
    pub phases: Vec<PhaseReport>,
    pub breakpoint: Option<Breakpoint>,
    pub recoveries: Vec<Recovery>,
    pub verdict: Verdict,
    /// It did not come to its end.
    pub broken: Option<Broken>,
    /// The processes that shared the load, if there were several.
    pub agents: Vec<AgentReport>,
}

/// Names the phases as they come.
pub(crate) struct Phases {
    start_ns: u64,
    all: Vec<PhaseReport>,
}

impl Phases {
    /// For a run whose ramp begins then.
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, all: Vec::new() }
    }

    /// The phases, of which the last ends now.
    pub fn finish(mut self, now_ns: u64) -> Vec<PhaseReport> {
        self.end(now_ns);
        self.all
    }

    pub fn begin(&mut self, phase: Phase, now_ns: u64) {
        let start_seconds = now_ns.saturating_sub(self.start_ns) as f64 / 1e9;
        self.end(now_ns);
        let name = phase.label().to_owned();
        self.all.push(PhaseReport { name, start_seconds, seconds: 0.0 });
    }

    fn end(&mut self, now_ns: u64) {
        if let Some(last) = self.all.last_mut() {
            let now = now_ns.saturating_sub(self.start_ns) as f64 / 1e9;
            last.seconds = now - last.start_seconds;
        }
    }
}

/// Runs a scenario.
///
/// # Errors
/// The run gave no result: bad arguments, preflight, aborted.
pub fn run(job: &Job<'_>) -> Result<Report, RunError> {
    let (course, records) = conduct(job, run_number(), &mut Alone::start())?;
    let generator = conclude::generator(job.scenario, &course, &records.0);
    Ok(conclude::report(job, &course, &records, generator))
}

/// Runs a scenario, as `lead` says, up to the point where there is something to be judged.
///
/// # Errors
/// As [`run`].
pub(crate) fn conduct(
    job: &Job<'_>,
    run: u32,
    lead: &mut dyn Lead,
) -> Result<(Course, Records), RunError> {
    let scenario = job.scenario;
    scenario.check().map_err(|invalid| RunError::bad_arguments(invalid.to_string()))?;
    let plan =
        scenario.plan(run).map_err(|invalid| RunError::bad_arguments(invalid.to_string()))?;
    let plan = Arc::new(plan);
    let population = Arc::new(plan.population.clone());
    let settings = setup::settings(job, &plan)?;
    if population.groups > 0 {
        groups::create(&job.target.http_base()?, job.target.api_token()?, &population)?;
    }

    let clock = lead.clock();
    let (names, board) = (Names::default(), Arc::new(Board::default()));
    let ramp_start_ns = lead.ramp_start_ns()?;
    let mut phases = Phases::new(ramp_start_ns);
    phases.begin(Phase::Ramp, ramp_start_ns);
    let to_oneself = plan.protocol == Protocol::WebsocketEcho;
    let is_millrace = plan.protocol == Protocol::Millrace;
    let streams = Streams::new(if is_millrace { 0 } else { population.users }, to_oneself);
    let shared =
        setup::Shared { names: names.clone(), board: board.clone(), streams: Arc::new(streams) };
    let is_followed = lead.streams();
    let mut crew = setup::start(job, clock, settings, &plan, &shared, ramp_start_ns, is_followed)?;
    lead.started(&crew.control);
    let is_silent = population.parts.iter().all(|part| !part.heartbeats);
    let expected = population.users - population.visitors();
    let ramp_seconds = if is_silent {
        ramp_silent(&mut crew, expected, scenario.connect.per_second, ramp_start_ns)?
    } else {
        ramp(&mut crew, expected, population.room_size, ramp_start_ns)?
    }
    .as_secs_f64();

    if scenario.connect.hold.as_millis() > 0 {
        phases.begin(Phase::Hold, clock.now_ns());
    }
    crew.control.enter(Phase::Hold);
    let load_start_ns = lead.load_start_ns(&mut crew, scenario.connect.hold.into())?;

    let mut meter = Meter::new(scenario.generator.window.as_millis() * 1_000_000);
    phases.begin(Phase::Load, load_start_ns);
    crew.control.start_load(load_start_ns);
    let search = search::Search::new(&plan, load_start_ns).filter(|_| lead.searches());
    let load = load(&mut crew, job, &plan, (load_start_ns, search), &mut meter)?;
    let load_end_ns = clock.now_ns();
    meter.finish(load_end_ns);

    phases.begin(Phase::Settle, load_end_ns);
    crew.control.enter(Phase::Settle);
    wait_until_quiet(&mut crew, settle_max(scenario), |snapshot| has_settled(snapshot, &plan))?;

    phases.begin(Phase::Verify, clock.now_ns());
    crew.control.enter(Phase::Verify);
    let mut log = crew.collect()?;
    repair(&mut crew, &population, &names, &board, &mut log)?;
    let mut verdict = Verifier::new(&population, &names, &board, &log).verdict();
    if !is_millrace {
        let counters = crew.control.snapshot().counters;
        streams::judge(&shared.streams, &log, &counters, &mut verdict);
    }

    lead.verified(&mut crew)?;
    phases.begin(Phase::Leave, clock.now_ns());
    let leave_seconds = f64::from(population.users) / scenario.connect.per_second;
    let records = crew.leave(Duration::from_secs_f64(leave_seconds) + LEAVE_SLACK)?;
    let phases = phases.finish(clock.now_ns());
    let course = Course {
        clock,
        plan,
        ramp_seconds,
        load_start_ns,
        load_end_ns,
        meter,
        phases,
        breakpoint: load.breakpoint,
        recoveries: load.recoveries,
        verdict,
        broken: None,
        agents: Vec::new(),
    };
    Ok((course, merge(&records)))
}

fn settle_max(scenario: &Scenario) -> Duration {
    let verdict = &scenario.verdict;
    match verdict.settle.as_millis() {
        0 => Duration::from_secs(if verdict.expect_faults { 60 } else { 15 }),
        given_ms => Duration::from_millis(given_ms),
    }
}

/// Everybody is back, or gave up, or waits to be called; and everything has arrived.
fn has_settled(snapshot: &Snapshot, plan: &Plan) -> bool {
    let counters = &snapshot.counters;
    let users = u64::from(plan.population.users);
    let is_everybody = snapshot.ready + snapshot.done + snapshot.absent >= users;
    let is_quiet = snapshot.outstanding == 0 && snapshot.pulls == 0 && snapshot.owed == 0;
    // Servers of others keep nothing for who is away, so there it is known as what is owed only.
    let has_arrived = plan.protocol != Protocol::Millrace
        || counters.get(Counter::Received) >= counters.get(Counter::Expected);
    is_everybody && is_quiet && has_arrived
}

/// What the load was like, beyond what the threads recorded.
#[derive(Default)]
struct Loaded {
    breakpoint: Option<Breakpoint>,
    recoveries: Vec<Recovery>,
}

/// Watches the stages go by.
fn load(
    crew: &mut Crew<Records>,
    job: &Job<'_>,
    plan: &Plan,
    (start_ns, mut search): (u64, Option<search::Search>),
    meter: &mut Meter,
) -> Result<Loaded, RunError> {
    let (clock, control) = (crew.clock, crew.control.clone());
    let records_max = job.scenario.generator.records_max;
    let (mut too_many, mut all_gone) = (false, false);
    let users = u64::from(plan.population.users);
    let mut recovery = RecoveryWatch::new(job.scenario, start_ns);
    let end_ns = start_ns + plan.load_ns();
    loop {
        let until_ns = search.as_ref().map_or(end_ns, search::Search::look_ns);
        let wait = Duration::from_nanos(until_ns.saturating_sub(clock.now_ns()));
        crew.watch(wait, |snapshot| {
            let now_ns = clock.now_ns();
            meter.look(now_ns);
            recovery.look(now_ns, snapshot);
            too_many = snapshot.records > records_max;
            all_gone = snapshot.done >= users;
            let is_cut = control.load_cut_ns().is_some_and(|cut_ns| cut_ns <= now_ns);
            if too_many || all_gone || is_cut { Wait::Enough } else { Wait::More }
        })?;
        if too_many {
            return Err(RunError::aborted(format!(
                "more than {records_max} records; give a shorter --duration or a larger \
                 --records-max (generator.records_max)"
            )));
        }
        let is_over = match &mut search {
            Some(search) if !all_gone => search.judge(crew)?,
            _ => true,
        };
        if is_over {
            break;
        }
    }
    let breakpoint = search.map(|search| search.finish(plan));
    Ok(Loaded { breakpoint, recoveries: recovery.into_iter().collect() })
}

/// Sees how long it takes until as many sessions are up as before a storm.
struct RecoveryWatch {
    /// When the storm begins and when its last connection ends; `None`: there is no storm.
    storm: Option<(u64, u64)>,
    load_start_ns: u64,
    before: u64,
    lowest: u64,
    recovered_ns: Option<u64>,
}

impl RecoveryWatch {
    fn new(scenario: &Scenario, load_start_ns: u64) -> Self {
        let storm = scenario.reconnect_storm.as_ref().map(|storm| {
            let at_ns = load_start_ns + storm.at.as_millis() * 1_000_000;
            (at_ns, at_ns + storm.within.as_millis() * 1_000_000)
        });
        Self { storm, load_start_ns, before: 0, lowest: u64::MAX, recovered_ns: None }
    }

    fn look(&mut self, now_ns: u64, snapshot: &Snapshot) {
        let Some((start_ns, end_ns)) = self.storm else { return };
        if now_ns < start_ns {
            self.before = snapshot.ready;
            return;
        }
        self.lowest = self.lowest.min(snapshot.ready);
        // A thread publishes its state every 100 ms: what it says now may be that old.
        let is_over = now_ns > end_ns + 200_000_000;
        if is_over && snapshot.ready >= self.before && self.recovered_ns.is_none() {
            self.recovered_ns = Some(now_ns);
        }
    }

    fn into_iter(self) -> impl Iterator<Item = Recovery> {
        let sessions = self.before.saturating_sub(self.lowest);
        self.storm.into_iter().map(move |(start_ns, _)| Recovery {
            event: "reconnect_storm".to_owned(),
            start_seconds: (start_ns - self.load_start_ns) as f64 / 1e9,
            sessions,
            recovered_seconds: self
                .recovered_ns
                .map(|recovered_ns| (recovered_ns - start_ns) as f64 / 1e9),
        })
    }
}

/// Another number in every run, so that its messages and groups are told from those of earlier
/// runs on the same store. It does not come from the seed, which makes runs alike.
pub fn run_number() -> u32 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mixed = (unix.as_nanos() as u64 ^ u64::from(std::process::id()) << 40)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 32) as u32
}

/// Waits until every user is logged in and every member is in the room. Answers how long after
/// `start_ns` that was.
///
/// # Errors
/// Users gave up, or nobody came for [`RAMP_PATIENCE_NS`].
pub fn ramp(
    crew: &mut Crew<Records>,
    users: u32,
    seats: u32,
    start_ns: u64,
) -> Result<Duration, RunError> {
    let clock = crew.clock;
    let mut last = Snapshot::default();
    let mut progress_ns = start_ns;
    crew.watch(Duration::MAX, |snapshot| {
        let now_ns = clock.now_ns();
        if (snapshot.ready, snapshot.seats) != (last.ready, last.seats) {
            progress_ns = now_ns;
        }
        last = snapshot.clone();
        let settled = last.ready + last.done >= u64::from(users) && last.seats >= u64::from(seats);
        let is_stuck = now_ns.saturating_sub(progress_ns) > RAMP_PATIENCE_NS;
        if settled || is_stuck { Wait::Enough } else { Wait::More }
    })?;
    if last.ready >= u64::from(users) && last.seats >= u64::from(seats) {
        return Ok(Duration::from_nanos(clock.now_ns().saturating_sub(start_ns)));
    }
    let refusals: Vec<String> =
        last.counters.codes().map(|(label, count)| format!("{label} {count}")).collect();
    let room = if seats > 0 {
        format!(", {} of {seats} members are in the room", last.seats)
    } else {
        String::new()
    };
    Err(RunError::aborted(format!(
        "only {} of {users} users are logged in{room}; {} connects and {} upgrades failed; \
         refusals: [{}]; errors: [{}]",
        last.ready,
        last.counters.get(Counter::ConnectFailed),
        last.counters.get(Counter::UpgradeFailed),
        refusals.join(", "),
        last.errors.join("; ")
    )))
}

/// Silent users may be ended while others still arrive, so logins are counted and not sessions.
fn ramp_silent(
    crew: &mut Crew<Records>,
    users: u32,
    ramp_rate: f64,
    start_ns: u64,
) -> Result<Duration, RunError> {
    let at_most = Duration::from_secs_f64(f64::from(users) / ramp_rate + 45.0);
    let mut logins = 0;
    let all = crew.watch(at_most, |snapshot| {
        logins = snapshot.counters.get(Counter::Logins);
        if logins >= u64::from(users) { Wait::Enough } else { Wait::More }
    })?;
    if all {
        Ok(Duration::from_nanos(crew.clock.now_ns().saturating_sub(start_ns)))
    } else {
        Err(RunError::aborted(format!("only {logins} of {users} users logged in")))
    }
}

fn wait_until_quiet(
    crew: &mut Crew<Records>,
    at_most: Duration,
    is_quiet: impl Fn(&Snapshot) -> bool,
) -> Result<bool, RunError> {
    let mut quiet_looks = 0;
    crew.watch(at_most, |snapshot| {
        quiet_looks = if is_quiet(snapshot) { quiet_looks + 1 } else { 0 };
        if quiet_looks >= QUIET_LOOKS { Wait::Enough } else { Wait::More }
    })
}

/// Has the clients pull what the records miss, and adds what comes to the records. Answers that
/// were late may name messages that nobody was asked for yet, and users come back; so it asks
/// again until nothing is open, for [`REPAIR_MAX`].
fn repair(
    crew: &mut Crew<Records>,
    population: &Population,
    names: &Names,
    board: &Board,
    log: &mut Log,
) -> Result<(), RunError> {
    let until_ns = crew.clock.now_ns() + REPAIR_MAX.as_nanos() as u64;
    loop {
        let repairs = Verifier::new(population, names, board, log).repairs();
        let left_ns = until_ns.saturating_sub(crew.clock.now_ns());
        if repairs.is_empty() || left_ns == 0 {
            return Ok(());
        }
        let threads = crew.control.slots.len();
        for (thread, slot) in crew.control.slots.iter().enumerate() {
            let mine = repairs.iter().filter(|repair| repair.user as usize % threads == thread);
            slot.repair(mine.copied());
        }
        let at_most = REPAIR_ROUND_MAX.min(Duration::from_nanos(left_ns));
        wait_until_quiet(crew, at_most, |snapshot| snapshot.pulls == 0)?;
        crew.control.slots.iter().for_each(crate::control::Slot::forget_repairs);
        let answered_before = log.answered.len();
        collect_more(crew, log)?;
        if log.answered.len() == answered_before {
            crew.watch(REPAIR_PAUSE, |_| Wait::More)?;
        }
    }
}

/// Adds what the threads have noted since the last time.
fn collect_more(crew: &mut Crew<Records>, log: &mut Log) -> Result<(), RunError> {
    let more = crew.collect()?;
    // Who still waits for room messages is said anew each time.
    log.room_owed.clear();
    log.merge(more);
    Ok(())
}

/// The threads' records in one.
pub fn merge(records: &[Records]) -> Records {
    let mut sum = (Recorder::default(), Endings::default(), Vec::new());
    for (record, endings, errors) in records {
        sum.0.windows.window_ns = record.windows.window_ns;
        sum.0.merge(record);
        sum.1.merge(endings);
        for error in errors {
            if !sum.2.contains(error) {
                sum.2.push(error.clone());
            }
        }
    }
    sum
}
