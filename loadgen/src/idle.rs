//! The scenario `idle`: connections that log in and do nothing but heartbeats; or, silent, not
//! even these, to see when the server ends them.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use crate::{
    chat::{self, Records},
    cli::IdleArguments,
    clock::Clock,
    control::Phase,
    coordinator::{Crew, Wait},
    cpu,
    exit::RunError,
    fleet::Share,
    log::Names,
    record::Counter,
    report::{Findings, Report, Times},
    scenario::Population,
};

/// Runs the scenario.
///
/// # Errors
/// The run gave no result: bad arguments, preflight, aborted.
pub fn run(arguments: &IdleArguments, aborted: &Arc<AtomicBool>) -> Result<Report, RunError> {
    let target = arguments.target.target()?;
    let crowd = &arguments.crowd;
    if !(0.0..=1.0).contains(&crowd.websocket_share) || crowd.ramp_rate <= 0.0 {
        let message = "--websocket-share must be between 0 and 1, --ramp-rate above 0";
        return Err(RunError::bad_arguments(message));
    }
    if crowd.connections < crowd.threads {
        return Err(RunError::bad_arguments("--connections must be at least --threads"));
    }
    let population = Arc::new(Population {
        users: crowd.connections,
        websocket_share: crowd.websocket_share,
        user_prefix: crowd.user_prefix.clone(),
        groups: 0,
        group_size: 0,
        room_size: 0,
        run: chat::run_number(),
    });
    let mut settings = chat::settings(&target, &population, arguments.duration)?;
    settings.heartbeats = !arguments.silent;
    settings.reconnect = !arguments.silent;
    let clock = Clock::start();
    let share = Share {
        thread: 0,
        threads: crowd.threads,
        ramp_per_second: crowd.ramp_rate / f64::from(crowd.threads),
        single_per_second: 0.0,
        group_per_second: 0.0,
        room_per_second: 0.0,
        churn_per_second: 0.0,
        flat_out_below: arguments.flat_out,
        load_ns: 0,
        connections_per_source: 0,
    };
    let names = Names::default();
    let users = population.users;
    let mut crew = chat::start_crew(
        clock,
        arguments.result.quiet,
        aborted,
        settings,
        population,
        (&names, &Arc::default()),
        share,
        crowd.seed,
    )?;
    let ramp_time = if arguments.silent {
        ramp_silent(&mut crew, users, crowd.ramp_rate)?
    } else {
        chat::ramp(&mut crew, users, 0)?
    };
    let cpu_before = cpu::seconds();
    let start_ns = clock.now_ns();
    if arguments.flat_out > 0 {
        crew.control.start_load(start_ns);
    } else {
        crew.control.enter(Phase::Hold);
    }
    crew.watch(arguments.duration, |snapshot| {
        let all_ended = snapshot.done >= u64::from(users);
        if all_ended { Wait::Enough } else { Wait::More }
    })?;
    let load_seconds = (clock.now_ns() - start_ns) as f64 / 1e9;
    let cpu_seconds = cpu::seconds() - cpu_before;
    let times = Times {
        ramp_sessions: users,
        ramp_seconds: ramp_time.as_secs_f64(),
        load_seconds,
        cpu_seconds,
    };
    let records = crew.leave(chat::leave_max(crowd))?;
    Ok(conclude(arguments, &records, times))
}

/// Silent users may be ended while others still arrive, so logins are counted and not sessions.
fn ramp_silent(crew: &mut Crew<Records>, users: u32, ramp_rate: f64) -> Result<Duration, RunError> {
    let start_ns = crew.clock.now_ns();
    let at_most = Duration::from_secs_f64(f64::from(users) / ramp_rate + 45.0);
    let mut logins = 0;
    let all = crew.watch(at_most, |snapshot| {
        logins = snapshot.counters.get(Counter::Logins);
        if logins >= u64::from(users) { Wait::Enough } else { Wait::More }
    })?;
    if all {
        Ok(Duration::from_nanos(crew.clock.now_ns() - start_ns))
    } else {
        Err(RunError::aborted(format!("only {logins} of {users} users logged in")))
    }
}

fn conclude(arguments: &IdleArguments, records: &[Records], times: Times) -> Report {
    let (record, endings, errors) = chat::merge(records);
    let mut failures = Vec::new();
    if let Some((from, to)) = arguments.closed_between {
        let users = u64::from(arguments.crowd.connections);
        if endings.count < users {
            failures.push(format!("only {} of {users} connections were ended", endings.count));
        }
        let (min, max) = (endings.silence_ns_min as u128, endings.silence_ns_max as u128);
        if endings.count > 0 && (min < from.as_nanos() || max > to.as_nanos()) {
            failures.push(format!(
                "connections were ended after {:.2} to {:.2} s of silence, not within {:?} to {:?}",
                min as f64 / 1e9,
                max as f64 / 1e9,
                from,
                to
            ));
        }
    }
    let must_be_zero: &[(Counter, &str)] = if arguments.silent {
        &[(Counter::ProtocolErrors, "bytes that break the protocol")]
    } else {
        &[
            (Counter::ProtocolErrors, "bytes that break the protocol"),
            (Counter::ConnectionsLost, "sessions ended that should not have"),
            (Counter::SetupsCut, "connections ended before their session was up"),
        ]
    };
    Report::new(Findings {
        command: "idle",
        configuration: serde_json::json!({
            "connections": arguments.crowd.connections,
            "websocket_share": arguments.crowd.websocket_share,
            "threads": arguments.crowd.threads,
            "ramp_per_second": arguments.crowd.ramp_rate,
            "duration_seconds": arguments.duration.as_secs_f64(),
            "silent": arguments.silent,
            "flat_out": arguments.flat_out,
        }),
        record: &record,
        verdict: None,
        endings: &endings,
        errors,
        times,
        must_be_zero,
        failures,
        thresholds: &arguments.result.threshold,
        allow_late: true,
    })
}
