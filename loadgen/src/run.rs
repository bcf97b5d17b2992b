//! The subcommands `run` and `scenario`: a scenario from a file or a preset, with the changes that
//! the arguments ask for.

use std::sync::{Arc, atomic::AtomicBool};

use millrace_service::Duration;

use crate::{
    agents::coordinator,
    cli::{RunArguments, ScenarioCommand},
    engine::{self, Job},
    exit::RunError,
    load::Place,
    report::Report,
    scenario::{Scenario, presets},
    target::Target,
};

/// Runs a scenario.
///
/// # Errors
/// The run gave no result: bad arguments or scenario, preflight, aborted.
pub fn run(arguments: &RunArguments, aborted: &Arc<AtomicBool>) -> Result<Report, RunError> {
    let loaded = presets::load(&arguments.scenario)?;
    let mut scenario = loaded.scenario;
    change(&mut scenario, arguments)?;
    let section = &scenario.target;
    let target = arguments.target.target()?.or(Target {
        tcp: section.tcp.clone(),
        websocket: section.websocket.clone(),
        http: section.http.clone(),
        source_addresses: section.source_addresses.clone(),
        ..Target::default()
    });
    let job = Job {
        command: "run",
        scenario: &scenario,
        source: loaded.source,
        target: &target,
        view: arguments.result.view(),
        aborted,
        place: Place::ALONE,
        login_key: None,
    };
    if arguments.agents.agents.is_empty() {
        engine::run(&job)
    } else {
        coordinator::run(&job, &arguments.agents)
    }
}

/// Applies what the arguments say.
fn change(scenario: &mut Scenario, arguments: &RunArguments) -> Result<(), RunError> {
    let RunArguments { load, time, .. } = *arguments;
    if !(load.is_finite() && load >= 0.0 && time.is_finite() && time > 0.0) {
        return Err(RunError::bad_arguments("--load must not be negative, --time above 0"));
    }
    let set = |value: &mut f64| *value *= load;
    scenario.single_chat.iter_mut().for_each(|chat| set(&mut chat.per_second));
    scenario.group_chat.iter_mut().for_each(|chat| set(&mut chat.per_second));
    scenario.room_broadcast.iter_mut().for_each(|room| set(&mut room.per_second));
    scenario.heartbeat.iter_mut().for_each(|beat| set(&mut beat.per_second));
    scenario.login_storm.iter_mut().for_each(|storm| set(&mut storm.per_second));
    scenario.custom.iter_mut().for_each(|custom| set(&mut custom.per_second));
    let scaled = |duration: Duration| {
        // Above 0 stays above 0; a time out of range is found by the check.
        Duration::from_millis(((duration.as_millis() as f64 * time).round() as u64).max(1))
    };
    scenario.stage = scenario.stages();
    scenario.stage.iter_mut().for_each(|stage| stage.duration = scaled(stage.duration));
    if let Some(storm) = &mut scenario.reconnect_storm {
        storm.at = scaled(storm.at);
    }
    if let Some(connections) = arguments.connections {
        scenario.connections = connections;
        // Whoever is asked for in numbers cannot be more than there are.
        if let Some(room) = &mut scenario.room_broadcast {
            room.members = room.members.map(|members| members.min(connections));
        }
    }
    scenario.protocol = arguments.protocol.unwrap_or(scenario.protocol);
    scenario.connect.per_second = arguments.ramp_rate.unwrap_or(scenario.connect.per_second);
    scenario.generator.threads = arguments.threads.unwrap_or(scenario.generator.threads);
    scenario.seed = arguments.seed.unwrap_or(scenario.seed);
    if let Some(prefix) = &arguments.user_prefix {
        scenario.user_prefix.clone_from(prefix);
    }
    scenario.verdict.expect_faults |= arguments.expect_faults;
    scenario.generator.allow_saturated |= arguments.allow_late;
    scenario.thresholds.extend(arguments.result.threshold.iter().cloned());
    Ok(())
}

/// What `scenario` prints.
///
/// # Errors
/// A scenario is none, with the place of the mistake.
pub fn scenario(command: &ScenarioCommand) -> Result<String, RunError> {
    match command {
        ScenarioCommand::Check { scenarios } => {
            let mut text = String::new();
            for name in scenarios {
                let scenario = presets::load(name)?.scenario;
                let plan = scenario
                    .plan(0)
                    .map_err(|invalid| RunError::bad_arguments(format!("{name}: {invalid}")))?;
                text.push_str(&format!(
                    "{name}: good; {} connections, {} stages, {:.0} s, {:.0} acts a second at full \
                     load\n",
                    scenario.connections,
                    plan.stages.len(),
                    plan.load_ns() as f64 / 1e9,
                    plan.per_second()
                ));
            }
            Ok(text)
        }
        ScenarioCommand::Show { scenario, all } => match presets::text(scenario) {
            Some(text) if !all => Ok(text.to_owned()),
            _ => Ok(presets::load(scenario)?.scenario.to_toml()),
        },
        ScenarioCommand::List => {
            let mut text = String::new();
            for (name, _) in presets::ALL {
                let description = presets::load(name)?.scenario.description;
                text.push_str(&format!("{name:<15} {description}\n"));
            }
            Ok(text)
        }
    }
}
