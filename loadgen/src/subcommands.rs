//! The subcommands that are told what to do by arguments: each is a scenario of one stage.

use millrace_service::Duration;

use crate::{
    cli::{ChatArguments, CrowdArguments, IdleArguments},
    engine::{self, Job},
    exit::RunError,
    live::View,
    load::Place,
    report::Report,
    scenario::{
        GroupChat, Heartbeat, PopulationSection, PresenceChurn, RoomBroadcast, Scenario,
        SingleChat, Stage, TransportKind,
    },
    target::Target,
    threshold::Threshold,
};
use std::sync::{Arc, atomic::AtomicBool};

fn ms(duration: std::time::Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// What all of them have in common.
fn base(
    name: &str,
    crowd: &CrowdArguments,
    duration: std::time::Duration,
    thresholds: &[Threshold],
) -> Result<Scenario, RunError> {
    if !(0.0..=1.0).contains(&crowd.websocket_share) || crowd.ramp_rate <= 0.0 {
        let message = "--websocket-share must be between 0 and 1, --ramp-rate above 0";
        return Err(RunError::bad_arguments(message));
    }
    let mut scenario = Scenario {
        name: name.to_owned(),
        connections: crowd.connections,
        user_prefix: crowd.user_prefix.clone(),
        seed: crowd.seed,
        thresholds: thresholds.to_vec(),
        population: vec![PopulationSection {
            name: "users".to_owned(),
            share: Some(1.0),
            transport: TransportKind::Mixed,
            websocket_share: crowd.websocket_share,
            ..PopulationSection::default()
        }],
        stage: vec![Stage { duration: ms(duration), ..Stage::default() }],
        ..Scenario::default()
    };
    scenario.connect.per_second = crowd.ramp_rate;
    scenario.generator.threads = crowd.threads;
    Ok(scenario)
}

/// `chat` as a scenario; `fanout` is a chat that is only its room.
///
/// # Errors
/// The arguments make no sense.
pub fn scenario(name: &str, arguments: &ChatArguments) -> Result<Scenario, RunError> {
    let mut scenario =
        base(name, &arguments.crowd, arguments.duration, &arguments.result.threshold)?;
    scenario.message_bytes = arguments.message_bytes;
    scenario.connect.hold = ms(arguments.hold);
    scenario.single_chat = Some(SingleChat {
        per_second: arguments.single_rate,
        closed_loop: arguments.closed_loop,
        ..SingleChat::default()
    });
    if arguments.group_rate != 0.0 {
        scenario.group_chat = Some(GroupChat {
            per_second: arguments.group_rate,
            group_size: arguments.group_size,
            groups: arguments.groups,
            ..GroupChat::default()
        });
    }
    if arguments.room_size > 0 {
        scenario.room_broadcast = Some(RoomBroadcast {
            per_second: arguments.room_rate,
            members: Some(arguments.room_size),
            ..RoomBroadcast::default()
        });
    }
    if arguments.churn_per_minute != 0.0 {
        let (from, to) = arguments.churn_away;
        scenario.presence_churn = Some(PresenceChurn {
            share_per_minute: arguments.churn_per_minute,
            away_min: ms(from),
            away_max: ms(to),
            ..PresenceChurn::default()
        });
    }
    scenario.verdict.expect_faults = arguments.expect_faults;
    // A settle of 0 is the default; somebody who asks for none gets the shortest.
    scenario.verdict.settle = arguments
        .settle
        .map_or(Duration::default(), |settle| ms(settle).max(Duration::from_millis(1)));
    scenario.generator.allow_saturated = arguments.allow_late;
    scenario.generator.records_max = arguments.records_max;
    Ok(scenario)
}

/// `idle` as a scenario.
///
/// # Errors
/// The arguments make no sense.
pub fn idle_scenario(arguments: &IdleArguments) -> Result<Scenario, RunError> {
    let thresholds = &arguments.result.threshold;
    let mut scenario = base("idle", &arguments.crowd, arguments.duration, thresholds)?;
    for users in &mut scenario.population {
        users.heartbeats = !arguments.silent;
        users.reconnects = !arguments.silent;
    }
    if arguments.flat_out > 0 {
        scenario.heartbeat =
            Some(Heartbeat { closed_loop: arguments.flat_out, ..Heartbeat::default() });
    }
    scenario.verdict.closed_between = arguments.closed_between.map(|(from, to)| (ms(from), ms(to)));
    // Nothing is timed here that the generator's own lateness could spoil.
    scenario.generator.allow_saturated = true;
    Ok(scenario)
}

fn run_scenario(
    command: &'static str,
    scenario: &Scenario,
    target: &Target,
    view: View,
    aborted: &Arc<AtomicBool>,
) -> Result<Report, RunError> {
    let (place, login_key) = (Place::ALONE, None);
    let source = "arguments";
    engine::run(&Job { command, scenario, source, target, view, aborted, place, login_key })
}

/// Runs `chat`.
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
    let (scenario, target) = (scenario(command, arguments)?, arguments.target.target()?);
    run_scenario(command, &scenario, &target, arguments.result.view(), aborted)
}

/// Runs `idle`.
///
/// # Errors
/// As [`run`].
pub fn run_idle(arguments: &IdleArguments, aborted: &Arc<AtomicBool>) -> Result<Report, RunError> {
    let (scenario, target) = (idle_scenario(arguments)?, arguments.target.target()?);
    run_scenario("idle", &scenario, &target, arguments.result.view(), aborted)
}
