//! Makes the report of a run: the stages, the time line, and what must not have happened.

use super::{Course, Job, Records};
use crate::{
    exit::Exit,
    health::{Generator, Observed},
    record::{Counter, METRICS, Metric, Recorder, histogram},
    report::{
        Findings, PhaseReport, Report, ScenarioReport, StageReport, Times, WindowPercentiles,
        WindowReport,
        judge::{Measured, rates},
    },
    scenario::{Scenario, StageKind, plan::PlannedStage},
    windows::{Part, Window, errors},
};

/// Counters that fail a run in which nobody breaks anything.
const MUST_BE_ZERO: &[(Counter, &str)] = &[
    (Counter::ProtocolErrors, "bytes that break the protocol"),
    (Counter::Failed, "sends were given up"),
    (Counter::Unanswered, "sends were never answered"),
    (Counter::OutboxFull, "sends were shed by the client"),
    (Counter::RoomUnsent, "room messages could not be published"),
    (Counter::RoomRefused, "room messages were refused"),
    (Counter::CustomUnsent, "frames could not be sent"),
    (Counter::CustomRefused, "frames were refused"),
    (Counter::CustomUnanswered, "frames were never answered"),
    (Counter::SetupsCut, "connections ended before their session was up"),
    (Counter::ConnectionsLost, "sessions ended that should not have"),
    (Counter::GaveUp, "users did not come back"),
];

/// Counters that fail any run.
const MUST_ALWAYS_BE_ZERO: &[(Counter, &str)] =
    &[(Counter::ProtocolErrors, "bytes that break the protocol")];

fn load_seconds(course: &Course) -> f64 {
    course.load_end_ns.saturating_sub(course.load_start_ns) as f64 / 1e9
}

/// The account of itself of the process that ran this.
pub(crate) fn generator(scenario: &Scenario, course: &Course, record: &Recorder) -> Generator {
    let stages = stages(course, record);
    let observed = Observed {
        late: record.of(Metric::Late),
        stages: stages.iter().map(|(stage, part)| (stage.name.as_str(), part)).collect(),
        meter: &course.meter,
        load_seconds: load_seconds(course),
        has_closed_loop: course.plan.has_closed_loop(),
    };
    Generator::judge(&observed, &scenario.generator)
}

/// See the module.
pub(crate) fn report(
    job: &Job<'_>,
    course: &Course,
    (record, endings, errors): &Records,
    generator: Generator,
) -> Report {
    let scenario = job.scenario;
    let stages = stages(course, record);
    let load_seconds = load_seconds(course);
    let stage_reports = stages.iter().map(|(stage, part)| stage_report(course, stage, part));
    let is_silent = course.plan.population.parts.iter().all(|part| !part.heartbeats);
    let is_lenient = scenario.verdict.expect_faults || is_silent || course.broken.is_some();
    let must_be_zero = if is_lenient { MUST_ALWAYS_BE_ZERO } else { MUST_BE_ZERO };
    let has_messages = course.plan.has_messages() && course.broken.is_none();
    let is_verified = has_messages || course.verdict.faults.total() > 0;
    let recoveries_us = course
        .recoveries
        .iter()
        .filter_map(|recovery| Some((recovery.recovered_seconds? * 1e6) as u64))
        .collect();
    let mut report = Report::new(Findings {
        command: job.command,
        configuration: configuration(job, course),
        record,
        verdict: is_verified.then_some(&course.verdict),
        endings,
        errors: errors.clone(),
        times: Times {
            ramp_sessions: course.plan.population.users - course.plan.population.visitors(),
            ramp_seconds: course.ramp_seconds,
            load_seconds,
        },
        stages: stage_reports.collect(),
        recoveries_us,
        must_be_zero,
        failures: failures(job, course, record, endings),
        broken: course.broken.as_ref().map(|broken| broken.exit),
        thresholds: &scenario.thresholds,
        generator,
        allow_saturated: scenario.generator.allow_saturated,
    });
    let unix_us_at = |ns: u64| course.clock.unix_ns_at(ns).div_euclid(1000);
    let ramp_start_ns = record.windows.parts().first().map_or(0, |part| part.start_ns);
    report.started_at_unix_ms = unix_us_at(ramp_start_ns) / 1000;
    report.load_started_at_unix_us = unix_us_at(course.load_start_ns);
    report.scenario = Some(ScenarioReport {
        name: scenario.name.clone(),
        description: scenario.description.clone(),
        source: job.source.to_owned(),
        text: scenario.to_toml(),
    });
    report.phases = course.phases.clone();
    report.windows = windows(course, record, ramp_start_ns);
    report.agents = course.agents.clone();
    report.breakpoint = course.breakpoint.clone();
    report.recoveries = course.recoveries.clone();
    debug_assert!(report.passed == (report.exit_code == Exit::Ok as u8), "one verdict");
    report
}

/// What only the scenario knows to be wrong.
fn failures(
    job: &Job<'_>,
    course: &Course,
    record: &Recorder,
    endings: &crate::client::Endings,
) -> Vec<String> {
    if let Some(broken) = &course.broken {
        return vec![broken.why.clone()];
    }
    let (scenario, verdict) = (job.scenario, &course.verdict);
    let count = |counter: Counter| record.counters.get(counter);
    let mut failures = Vec::new();
    let mut fail = |is_so: bool, sentence: String| {
        if is_so {
            failures.push(sentence);
        }
    };
    let wants_room = scenario.room_broadcast.as_ref().is_some_and(|room| room.per_second > 0.0);
    let has_room = wants_room && course.plan.population.room_size > 0;
    fail(has_room && count(Counter::RoomReceived) == 0, "no room message arrived".to_owned());
    let is_unheard = count(Counter::Intended) > 0 && verdict.acked == 0 && verdict.found == 0;
    fail(is_unheard, "no message was acknowledged".to_owned());
    fail(
        verdict.unverified > 0,
        format!(
            "{} deliveries or sequences could not be verified: {} users were not there to be asked",
            verdict.unverified, verdict.users_unasked
        ),
    );
    for recovery in course.recoveries.iter().filter(|one| one.recovered_seconds.is_none()) {
        fail(true, format!("{}: not all sessions came back", recovery.event));
    }
    if let Some(breakpoint) = &course.breakpoint {
        let why = breakpoint.why.as_deref().unwrap_or_default();
        fail(breakpoint.held_load == 0.0, format!("not even the first step held: {why}"));
    }
    if let Some((from, to)) = scenario.verdict.closed_between {
        let users = u64::from(scenario.connections);
        let ended = endings.count;
        fail(ended < users, format!("only {ended} of {users} connections were ended"));
        let (min, max) = (endings.silence_ns_min / 1_000_000, endings.silence_ns_max / 1_000_000);
        // The end of the span includes its last millisecond.
        fail(
            ended > 0 && (min < from.as_millis() || max > to.as_millis()),
            format!(
                "connections were ended after {:.2} to {:.2} s of silence, not within {from} to {to}",
                endings.silence_ns_min as f64 / 1e9,
                endings.silence_ns_max as f64 / 1e9,
            ),
        );
    }
    failures
}

/// The stages that took place, with what was measured in them.
fn stages(course: &Course, record: &Recorder) -> Vec<(PlannedStage, Part)> {
    let parts = record.windows.parts();
    let stages = course.plan.stages.iter().filter_map(|stage| {
        let start_ns = course.load_start_ns + stage.offset_ns;
        let part = parts.iter().find(|part| part.start_ns == start_ns)?;
        (start_ns < course.load_end_ns).then(|| (stage.clone(), part.clone()))
    });
    stages.collect()
}

fn stage_report(course: &Course, stage: &PlannedStage, part: &Part) -> StageReport {
    let measured = Measured::of_part(part);
    let end_ns = (part.start_ns + stage.slope.duration_ns).min(course.load_end_ns);
    let seconds = (end_ns - part.start_ns) as f64 / 1e9;
    let total = part.total();
    let late = &part.histograms()[Metric::Late as usize];
    let thresholds: Vec<_> = stage.thresholds.iter().map(|one| measured.compare(one)).collect();
    let per_second = course.plan.per_second();
    StageReport {
        name: stage.name.clone(),
        kind: stage.kind.to_owned(),
        start_seconds: since_ramp(course, part.start_ns),
        seconds,
        load_from: stage.slope.from,
        load_to: stage.slope.to,
        from_per_second: stage.slope.from * per_second,
        to_per_second: stage.slope.to * per_second,
        counters: present(&total),
        rates: rates(&total.counters, seconds),
        latency_us: measured.percentiles(),
        late_p99_us: late.value_at_quantile(0.99),
        late_max_us: late.max(),
        passed: thresholds.iter().all(|result| result.passed),
        thresholds,
    }
}

fn present(window: &Window) -> std::collections::BTreeMap<String, u64> {
    window.counters.present().map(|(label, count)| (label.to_owned(), count)).collect()
}

/// Seconds from the first connect.
fn since_ramp(course: &Course, at_ns: u64) -> f64 {
    let load = course.phases.iter().find(|phase| phase.name == "load");
    let load_seconds = load.map_or(0.0, |phase| phase.start_seconds);
    load_seconds + (at_ns as f64 - course.load_start_ns as f64) / 1e9
}

/// The time line.
fn windows(course: &Course, record: &Recorder, ramp_start_ns: u64) -> Vec<WindowReport> {
    let window_ns = record.windows.window_ns;
    let parts = record.windows.parts();
    let mut all = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let next_ns = parts.get(number + 1).map_or(u64::MAX, |next| next.start_ns);
        for (index, window) in part.windows.iter().enumerate() {
            let start_ns = part.start_ns + index as u64 * window_ns;
            let end_ns = (start_ns + window_ns).min(next_ns);
            if start_ns >= end_ns {
                continue;
            }
            let start_seconds = (start_ns - ramp_start_ns) as f64 / 1e9;
            let stage = course.plan.stages.iter().find(|stage| {
                let began_ns = course.load_start_ns + stage.offset_ns;
                part.start_ns == began_ns && start_ns < course.load_end_ns
            });
            all.push(WindowReport {
                start_seconds,
                seconds: (end_ns - start_ns) as f64 / 1e9,
                phase: phase_at(&course.phases, start_seconds),
                stage: stage.map(|stage| stage.name.clone()),
                target_per_second: stage.map(|stage| target(course, stage, start_ns, end_ns)),
                connections: window.ready,
                counters: present(window),
                errors: errors(&window.counters),
                cpu_percent: course.meter.percent(start_ns, end_ns),
                ..latencies(window)
            });
        }
    }
    all
}

fn phase_at(phases: &[PhaseReport], start_seconds: f64) -> String {
    // Windows and phases begin at the same moments, but for rounding.
    let began = |phase: &&PhaseReport| phase.start_seconds <= start_seconds + 1e-3;
    phases.iter().rfind(began).map_or_else(String::new, |phase| phase.name.clone())
}

/// What the schedules ask for in the middle of a window.
fn target(course: &Course, stage: &PlannedStage, start_ns: u64, end_ns: u64) -> f64 {
    let slope = stage.slope;
    let middle_ns = (start_ns + end_ns) / 2 - course.load_start_ns - stage.offset_ns;
    let at = (middle_ns as f64 / slope.duration_ns as f64).min(1.0);
    (slope.from + (slope.to - slope.from) * at) * course.plan.per_second()
}

/// A window's latencies; the other fields are the caller's.
fn latencies(window: &Window) -> WindowReport {
    let mut dense: Vec<_> = (0..METRICS).map(|_| None).collect();
    for (metric, sparse) in window.latencies() {
        sparse.add_to(dense[*metric as usize].get_or_insert_with(histogram));
    }
    let mut named: Vec<_> = Metric::ALL
        .iter()
        .zip(&dense)
        .filter_map(|(metric, histogram)| Some((metric.label(), histogram.clone()?)))
        .collect();
    for (name, one, two) in [
        ("ack", Metric::AckSingle, Metric::AckGroup),
        ("delivery", Metric::DeliverySingle, Metric::DeliveryGroup),
    ] {
        let parts = [&dense[one as usize], &dense[two as usize]];
        let mut sum = histogram();
        for part in parts.into_iter().flatten() {
            sum.add(part).expect("all histograms have the same bounds");
        }
        if !sum.is_empty() {
            named.push((name, sum));
        }
    }
    let late = dense[Metric::Late as usize].as_ref();
    let latency_us = named
        .iter()
        .map(|(name, histogram)| ((*name).to_owned(), WindowPercentiles::of(histogram)));
    let histograms = window.latencies().iter();
    WindowReport {
        start_seconds: 0.0,
        seconds: 0.0,
        phase: String::new(),
        stage: None,
        target_per_second: None,
        connections: 0,
        counters: std::collections::BTreeMap::new(),
        errors: 0,
        latency_us: latency_us.collect(),
        late_p99_us: late.map_or(0, |late| late.value_at_quantile(0.99)),
        late_max_us: late.map_or(0, |late| late.max()),
        cpu_percent: 0.0,
        histograms: histograms
            .map(|(metric, sparse)| (metric.label().to_owned(), sparse.clone()))
            .collect(),
    }
}

/// What was asked for, in short; the scenario has all of it.
fn configuration(job: &Job<'_>, course: &Course) -> serde_json::Value {
    let (scenario, population) = (job.scenario, &course.plan.population);
    let single = scenario.single_chat.clone().unwrap_or_default();
    let group = scenario.group_chat.as_ref().map_or(0.0, |group| group.per_second);
    let room = scenario.room_broadcast.as_ref().map_or(0.0, |room| room.per_second);
    let churn = scenario.presence_churn.as_ref().map_or(0.0, |churn| churn.share_per_minute);
    let beats = scenario.heartbeat.clone().unwrap_or_default();
    let is_search = scenario.stage.iter().any(|stage| stage.kind == StageKind::Breakpoint);
    serde_json::json!({
        "protocol": course.plan.protocol.label(),
        "run": format!("{:08x}", population.run),
        "seed": scenario.seed,
        "connections": population.users,
        "websockets": population.websockets(),
        "threads": scenario.generator.threads,
        "ramp_per_second": scenario.connect.per_second,
        "single_per_second": single.per_second,
        "closed_loop": single.closed_loop,
        "group_per_second": group,
        "groups": population.groups,
        "group_size": population.group_size,
        "room_size": population.room_size,
        "room_per_second": room,
        "churn_per_minute": churn,
        "flat_out": beats.closed_loop,
        "duration_seconds": course.plan.load_ns() as f64 / 1e9,
        "hold_seconds": scenario.connect.hold.as_millis() as f64 / 1e3,
        "message_bytes": scenario.message_bytes,
        "expect_faults": scenario.verdict.expect_faults,
        "silent": population.parts.iter().all(|part| !part.heartbeats),
        "searches_breakpoint": is_search,
    })
}
