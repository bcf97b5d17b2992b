//! The scenario `chat`: ramp, hold, load, settle, verification, repair, leave.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    cli::{ChatArguments, CrowdArguments},
    client::{Context, Endings, Settings},
    clock::Clock,
    control::{Control, Phase, Snapshot},
    coordinator::{Crew, Wait},
    cpu, driver,
    exit::RunError,
    fleet::{ChatFleet, Share},
    groups,
    log::{Log, Names},
    preflight,
    record::{Counter, Recorder},
    report::{Findings, Report, Times},
    room::Board,
    scenario::{Population, Transport},
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
/// The load begins this long after it was announced to the threads.
const LOAD_LEAD_NS: u64 = 100_000_000;

/// Runs the scenario.
///
/// # Errors
/// The run gave no result: bad arguments, preflight, aborted.
pub fn run(arguments: &ChatArguments, aborted: &Arc<AtomicBool>) -> Result<Report, RunError> {
    run_as("chat", arguments, aborted)
}

/// The same for a subcommand of another name that is a chat with certain arguments.
///
/// # Errors
/// As [`run`].
pub fn run_as(
    command: &'static str,
    arguments: &ChatArguments,
    aborted: &Arc<AtomicBool>,
) -> Result<Report, RunError> {
    let target = arguments.target.target()?;
    let population = Arc::new(population(arguments)?);
    let mut settings = settings(&target, &population, arguments.duration + arguments.hold)?;
    settings.message_bytes = arguments.message_bytes;
    settings.expect_faults = arguments.expect_faults;
    let (from, to) = arguments.churn_away;
    settings.away_ns = (from.as_nanos() as u64, to.as_nanos() as u64);
    if population.groups > 0 {
        groups::create(&target.http_base()?, target.api_token()?, &population)?;
    }

    let clock = Clock::start();
    let names = Names::default();
    let board = Arc::new(Board::default());
    let threads = arguments.crowd.threads;
    let part = 1.0 / f64::from(threads);
    let share = Share {
        thread: 0,
        threads,
        ramp_per_second: arguments.crowd.ramp_rate * part,
        single_per_second: arguments.single_rate * part,
        group_per_second: if population.groups > 0 { arguments.group_rate * part } else { 0.0 },
        room_per_second: if population.room_size > 0 { arguments.room_rate } else { 0.0 },
        churn_per_second: arguments.churn_per_minute / 60.0 * f64::from(population.users) * part,
        flat_out_below: 0,
        load_ns: arguments.duration.as_nanos() as u64,
        connections_per_source: 0,
    };
    let mut crew = start_crew(
        clock,
        arguments.result.quiet,
        aborted,
        settings,
        population.clone(),
        (&names, &board),
        share,
        arguments.crowd.seed,
    )?;

    let ramp_time = ramp(&mut crew, population.users, population.room_size)?;
    crew.control.enter(Phase::Hold);
    crew.watch(arguments.hold, |_| Wait::More)?;

    let cpu_before = cpu::seconds();
    let start_ns = clock.now_ns() + LOAD_LEAD_NS;
    crew.control.start_load(start_ns);
    let records_max = arguments.records_max;
    let mut too_many = false;
    crew.watch(Duration::from_nanos(LOAD_LEAD_NS) + arguments.duration, |snapshot| {
        too_many = snapshot.records > records_max;
        if too_many { Wait::Enough } else { Wait::More }
    })?;
    if too_many {
        return Err(RunError::aborted(format!(
            "more than {records_max} records; give a shorter --duration or a larger --records-max"
        )));
    }
    let load_seconds = (clock.now_ns() - start_ns) as f64 / 1e9;
    let cpu_seconds = cpu::seconds() - cpu_before;

    crew.control.enter(Phase::Settle);
    let settle_default = if arguments.expect_faults { 60 } else { 15 };
    let settle = arguments.settle.unwrap_or(Duration::from_secs(settle_default));
    wait_until_quiet(&mut crew, settle, |snapshot| {
        let counters = &snapshot.counters;
        // Everybody is back, or gave up, and everything has arrived.
        let settled = snapshot.ready + snapshot.done >= u64::from(population.users);
        let is_quiet = snapshot.outstanding == 0 && snapshot.pulls == 0 && snapshot.room_owed == 0;
        settled && is_quiet && counters.get(Counter::Received) >= counters.get(Counter::Expected)
    })?;

    crew.control.enter(Phase::Verify);
    let mut log = crew.collect()?;
    repair(&mut crew, &population, &names, &board, &mut log)?;
    let verdict = Verifier::new(&population, &names, &board, &log).verdict();
    let records = crew.leave(leave_max(&arguments.crowd))?;
    let configuration = configuration(arguments, &population);
    let times = Times {
        ramp_sessions: population.users,
        ramp_seconds: ramp_time.as_secs_f64(),
        load_seconds,
        cpu_seconds,
    };
    Ok(conclude(command, arguments, configuration, &records, &verdict, times))
}

fn population(arguments: &ChatArguments) -> Result<Population, RunError> {
    let users = arguments.crowd.connections;
    let size = arguments.group_size;
    let bad = |message: &str| Err(RunError::bad_arguments(message));
    if !(0.0..=1.0).contains(&arguments.crowd.websocket_share) {
        return bad("--websocket-share must be between 0 and 1");
    }
    if arguments.crowd.ramp_rate <= 0.0 || arguments.single_rate < 0.0 || arguments.group_rate < 0.0
    {
        return bad("--ramp-rate must be above 0, --single-rate and --group-rate not below");
    }
    if users < 2 || users < arguments.crowd.threads {
        return bad("--connections must be at least 2, and at least --threads");
    }
    if !(0.0..=60.0).contains(&arguments.churn_per_minute) || arguments.room_rate < 0.0 {
        return bad("--churn-per-minute must be between 0 and 60, --room-rate not below 0");
    }
    if arguments.room_size == 1 || arguments.room_size > users {
        return bad("--room-size must be 0, or from 2 to --connections");
    }
    let wants_groups = arguments.group_rate > 0.0;
    if wants_groups && (size < 2 || users < size || size < arguments.crowd.threads) {
        return bad("--group-size must be from 2 (and --threads) to --connections");
    }
    let groups = if wants_groups {
        let fitting = users / size;
        let wanted = arguments.groups.unwrap_or(arguments.group_rate.ceil() as u32);
        wanted.clamp(1, fitting)
    } else {
        0
    };
    Ok(Population {
        users,
        websocket_share: arguments.crowd.websocket_share,
        user_prefix: arguments.crowd.user_prefix.clone(),
        groups,
        group_size: size,
        room_size: arguments.room_size,
        run: run_number(),
    })
}

/// Another number in every run, so that its messages and groups are told from those of earlier
/// runs on the same store. It does not come from the seed, which makes runs alike.
pub fn run_number() -> u32 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mixed = (unix.as_nanos() as u64 ^ u64::from(std::process::id()) << 40)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 32) as u32
}

/// The clients' settings, with the listeners that the population needs; each is tried once.
///
/// # Errors
/// An address or the secret is missing, or a listener cannot be reached.
pub fn settings(
    target: &Target,
    population: &Population,
    run_length: Duration,
) -> Result<Settings, RunError> {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Long enough for the run and every reconnect in it.
    let expire_at_s = unix.as_secs() + run_length.as_secs() + 24 * 3600;
    let mut settings = Settings::new(target.secret()?, expire_at_s);
    let websockets = population.websockets();
    if websockets < population.users {
        let endpoint = target.tcp_endpoint()?;
        preflight::reach("--tcp", endpoint.address)?;
        settings.tcp = Some(endpoint);
    }
    if websockets > 0 {
        let endpoint = target.websocket_endpoint()?;
        preflight::reach("--websocket", endpoint.address)?;
        settings.websocket = Some(endpoint);
    }
    Ok(settings)
}

/// Starts the threads with their users.
///
/// # Errors
/// Descriptors or ports do not suffice.
#[expect(
    clippy::too_many_arguments,
    reason = "each is one fact of the run; a struct would only name them again"
)]
pub fn start_crew(
    clock: Clock,
    quiet: bool,
    aborted: &Arc<AtomicBool>,
    settings: Settings,
    population: Arc<Population>,
    (names, board): (&Names, &Arc<Board>),
    share: Share,
    seed: u64,
) -> Result<Crew<Records>, RunError> {
    let threads = share.threads;
    preflight::memory(population.users)?;
    let options = preflight::driver_options(population.users.div_ceil(threads), threads)?;
    let websockets = population.websockets();
    let targets: Vec<_> =
        [(Transport::Tcp, population.users - websockets), (Transport::WebSocket, websockets)]
            .into_iter()
            .filter_map(|(transport, count)| Some((settings.endpoint(transport)?.address, count)))
            .collect();
    let connections_per_source = preflight::sources(&targets, population.users)?;
    let settings = Arc::new(settings);
    let control = Arc::new(Control::new(threads as usize));
    Crew::start(clock, control.clone(), aborted.clone(), quiet, |thread| {
        let share = Share { thread, connections_per_source, ..share.clone() };
        let (settings, population) = (settings.clone(), population.clone());
        let (names, board) = (names.clone(), board.clone());
        let (control, options) = (control.clone(), options.clone());
        let seed = seed ^ (u64::from(thread) << 56) ^ u64::from(population.run);
        move || {
            let unix_ms = clock.unix_ms_at_start();
            let cx = Context::new(settings, population, names, board, seed, unix_ms);
            let mut fleet = ChatFleet::new(control, share, cx, clock.now_ns());
            let stations = fleet.stations();
            driver::run(clock, options, stations, &mut fleet)
                .map_err(|error| RunError::aborted(format!("io_uring: {error}")))?;
            Ok(fleet.into_records())
        }
    })
}

/// Waits until every user is logged in and every member is in the room. Answers how long that took.
///
/// # Errors
/// Users gave up, or nobody came for [`RAMP_PATIENCE_NS`].
pub fn ramp(crew: &mut Crew<Records>, users: u32, seats: u32) -> Result<Duration, RunError> {
    let clock = crew.clock;
    let start_ns = clock.now_ns();
    let mut last = Snapshot::default();
    let mut progress_ns = start_ns;
    crew.watch(Duration::MAX, |snapshot| {
        let now_ns = clock.now_ns();
        if (snapshot.ready, snapshot.seats) != (last.ready, last.seats) {
            progress_ns = now_ns;
        }
        last = snapshot.clone();
        let settled = last.ready + last.done >= u64::from(users) && last.seats >= u64::from(seats);
        let is_stuck = now_ns - progress_ns > RAMP_PATIENCE_NS;
        if settled || is_stuck { Wait::Enough } else { Wait::More }
    })?;
    if last.ready == u64::from(users) && last.seats >= u64::from(seats) {
        return Ok(Duration::from_nanos(clock.now_ns() - start_ns));
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

/// How long the sessions may take to end, at the rate at which they came.
pub fn leave_max(crowd: &CrowdArguments) -> Duration {
    Duration::from_secs_f64(f64::from(crowd.connections) / crowd.ramp_rate) + LEAVE_SLACK
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

fn configuration(arguments: &ChatArguments, population: &Population) -> serde_json::Value {
    serde_json::json!({
        "run": format!("{:08x}", population.run),
        "seed": arguments.crowd.seed,
        "connections": population.users,
        "websockets": population.websockets(),
        "threads": arguments.crowd.threads,
        "ramp_per_second": arguments.crowd.ramp_rate,
        "single_per_second": arguments.single_rate,
        "group_per_second": arguments.group_rate,
        "groups": population.groups,
        "group_size": population.group_size,
        "room_size": population.room_size,
        "room_per_second": arguments.room_rate,
        "churn_per_minute": arguments.churn_per_minute,
        "duration_seconds": arguments.duration.as_secs_f64(),
        "hold_seconds": arguments.hold.as_secs_f64(),
        "message_bytes": arguments.message_bytes,
        "expect_faults": arguments.expect_faults,
    })
}

/// Counters that fail a run in which nobody breaks anything.
const MUST_BE_ZERO: &[(Counter, &str)] = &[
    (Counter::ProtocolErrors, "bytes that break the protocol"),
    (Counter::Failed, "sends were given up"),
    (Counter::Unanswered, "sends were never answered"),
    (Counter::OutboxFull, "sends were shed by the client"),
    (Counter::RoomUnsent, "room messages could not be published"),
    (Counter::RoomRefused, "room messages were refused"),
    (Counter::SetupsCut, "connections ended before their session was up"),
    (Counter::ConnectionsLost, "sessions ended that should not have"),
    (Counter::GaveUp, "users did not come back"),
];

/// Counters that fail any run.
const MUST_ALWAYS_BE_ZERO: &[(Counter, &str)] =
    &[(Counter::ProtocolErrors, "bytes that break the protocol")];

fn conclude(
    command: &'static str,
    arguments: &ChatArguments,
    configuration: serde_json::Value,
    records: &[Records],
    verdict: &Verdict,
    times: Times,
) -> Report {
    let (record, endings, errors) = merge(records);
    let mut failures = Vec::new();
    if arguments.room_size > 0
        && arguments.room_rate > 0.0
        && record.counters.get(Counter::RoomReceived) == 0
    {
        failures.push("no room message arrived".to_owned());
    }
    if record.counters.get(Counter::Intended) > 0 && verdict.acked == 0 {
        failures.push("no message was acknowledged".to_owned());
    }
    if verdict.unverified > 0 {
        failures.push(format!(
            "{} deliveries or sequences could not be verified: {} users were not there to be asked",
            verdict.unverified, verdict.users_unasked
        ));
    }
    let must_be_zero = if arguments.expect_faults { MUST_ALWAYS_BE_ZERO } else { MUST_BE_ZERO };
    Report::new(Findings {
        command,
        configuration,
        record: &record,
        verdict: Some(verdict),
        endings: &endings,
        errors,
        times,
        must_be_zero,
        failures,
        thresholds: &arguments.result.threshold,
        allow_late: arguments.allow_late,
    })
}

/// The threads' records in one.
pub fn merge(records: &[Records]) -> Records {
    let mut sum = (Recorder::default(), Endings::default(), Vec::new());
    for (record, endings, errors) in records {
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
