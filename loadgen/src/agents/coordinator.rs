//! Leads a run of several machines: calls the agents, measures their clocks, gives each its share, and
//! names the moments at which all of them go on. It adds up what they stream, and shows and judges the
//! sum. It opens no connection to the system under test.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

use super::{
    MESSAGES_MAX,
    arguments::{AgentsArguments, read_token},
    build,
    member::{Measurement, Member, call},
    proto::{self, FromAgent, Progress, Step, from_agent, from_coordinator},
    session::usage,
    split::split,
    summary::{Merged, Summary},
    wire::{self, Anchors},
};
use crate::{
    clock::Clock,
    control::{Control, Phase, Snapshot},
    engine::{Broken, Course, Job, Phases, conclude, run_number, search::Search, setup},
    exit::{Exit, RunError},
    health::{Generator, Meter},
    live::Watcher,
    record::{Metric, Recent, Recorder},
    report::{Breakpoint, Report},
    scenario::plan::Plan,
    windows::Windows,
};

/// Round trips of a measurement of the clocks, and the time they may take.
const PINGS: u32 = 32;
const PINGS_MAX: Duration = Duration::from_secs(5);
/// Between two of them.
const PING_PAUSE: Duration = Duration::from_millis(10);
/// An agent hears something this often.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A start is named this long before it, and several round trips more.
const LEAD_NS: u64 = 1_000_000_000;
const LEAD_ROUND_TRIPS: u64 = 10;
/// Agents that are told to stop get so long to hand over what they measured.
const STOP_MAX: Duration = Duration::from_secs(15);
/// What was measured in a step is here so long after a single process would have it.
const STREAM_NS: u64 = 2_000_000_000;
/// The end of a load is named this long before it.
const CUT_LEAD_NS: u64 = 200_000_000;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Messages that wait to be looked at, of all agents.
const EVENTS_MAX: usize = 1024;

/// Something that an agent said, and when it came.
struct Event {
    member: usize,
    at_unix_ns: i64,
    what: Result<Option<FromAgent>, Status>,
}

/// Why a run does not go on.
struct Halt {
    exit: Exit,
    why: String,
}

impl Halt {
    fn error(self) -> RunError {
        RunError { exit: self.exit, message: self.why }
    }
}

/// See the module.
struct Coordinator {
    runtime: Runtime,
    events: mpsc::Receiver<Event>,
    members: Vec<Member>,
    clock: Clock,
    plan: Arc<Plan>,
    aborted: Arc<AtomicBool>,
    silence_max: Duration,
    // What the view looks at: all agents as if they were one thread.
    control: Arc<Control>,
    watcher: Option<Watcher>,
    recent: Recent,
    windows: Windows,
    windows_max: u32,
    anchors: Anchors,
    /// Where the parts of the load begin.
    offsets_ns: Vec<u64>,
    /// Processor time of all agents, as it comes.
    processor: Vec<(u64, f64)>,
    phases: Phases,
    /// When the load ended; `u64::MAX`: it has not.
    load_end_ns: u64,
    breakpoint: Option<Breakpoint>,
    pings: u64,
    ping_due: Instant,
}

/// Runs a scenario on several machines.
///
/// # Errors
/// The run gave no result: bad arguments, preflight, aborted.
pub fn run(job: &Job<'_>, arguments: &AgentsArguments) -> Result<Report, RunError> {
    arguments.check()?;
    let scenario = job.scenario;
    let bad = |error: millrace_service::Invalid| RunError::bad_arguments(error.to_string());
    scenario.check().map_err(bad)?;
    let run = run_number();
    let plan = Arc::new(scenario.plan(run).map_err(bad)?);
    if !job.target.source_addresses.is_empty() {
        return Err(RunError::bad_arguments(
            "source addresses are a machine's own: give --source-addresses to each agent",
        ));
    }
    let shares = split(scenario, arguments.agents.len() as u32)?;
    let token = arguments.agents_token_file.as_ref();
    let token = token.map(|path| read_token("--agents-token-file", path)).transpose()?;
    let key_file = scenario.login.key_file.as_deref();
    let login_key = key_file.map(setup::key_file).transpose()?;

    let mut coordinator = Coordinator::call(job, arguments, &plan, &shares, token.as_deref())?;
    let whole = coordinator.prepare(job, run, login_key).and_then(|()| coordinator.ramp(job));
    if let Err(halt) = whole {
        coordinator.stop(&halt.why);
        return Err(halt.error());
    }
    let broken = match coordinator.load() {
        Ok(()) => None,
        Err(halt) => {
            coordinator.stop(&halt.why);
            if coordinator.aborted.load(Ordering::Relaxed) {
                return Err(halt.error());
            }
            Some(Broken { exit: Exit::Aborted, why: halt.why })
        }
    };
    coordinator.measure_clocks(Measurement::After);
    Ok(coordinator.conclude(job, broken))
}

impl Coordinator {
    /// Calls all agents.
    fn call(
        job: &Job<'_>,
        arguments: &AgentsArguments,
        plan: &Arc<Plan>,
        shares: &[crate::scenario::Scenario],
        token: Option<&str>,
    ) -> Result<Self, RunError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| RunError::preflight(format!("a runtime: {error}")))?;
        let clock = Clock::start();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let calls: Vec<_> = arguments
            .agents
            .iter()
            .map(|address| {
                let (address, token) = (address.clone(), token.map(str::to_owned));
                runtime.spawn(async move { call(&address, token.as_deref(), build()).await })
            })
            .collect();
        let mut members = Vec::new();
        for (index, ((address, share), called)) in
            arguments.agents.iter().zip(shares).zip(calls).enumerate()
        {
            let called = runtime.block_on(called);
            let (out, inbound) =
                called.map_err(|error| RunError::aborted(format!("a call: {error}")))??;
            let share_plan = share
                .plan(plan.population.run)
                .map_err(|error| RunError::bad_arguments(error.to_string()))?;
            members.push(Member::new(address, share.clone(), share_plan.per_second(), out));
            runtime.spawn(listen(index, inbound, clock, sender.clone()));
        }
        let (window_ns, windows_max) = setup::windows(job.scenario, plan);
        let mut offsets_ns: Vec<u64> = plan.stages.iter().map(|stage| stage.offset_ns).collect();
        offsets_ns.push(plan.load_ns());
        Ok(Self {
            runtime,
            events,
            members,
            clock,
            plan: plan.clone(),
            aborted: job.aborted.clone(),
            silence_max: arguments.agent_silence_max,
            control: Arc::new(Control::new(1)),
            watcher: Watcher::new(job.view, clock.now_ns(), job.aborted),
            recent: Recent::default(),
            windows: Windows::new(window_ns, windows_max),
            windows_max: u32::try_from(windows_max).unwrap_or(u32::MAX),
            anchors: Anchors { ramp_start_ns: u64::MAX, load_start_ns: u64::MAX },
            offsets_ns,
            processor: Vec::new(),
            phases: Phases::new(clock.now_ns()),
            load_end_ns: u64::MAX,
            breakpoint: None,
            pings: 0,
            ping_due: Instant::now(),
        })
    }

    /// Measures the clocks, and has every agent look at its machine and make its groups.
    fn prepare(&mut self, job: &Job<'_>, run: u32, login_key: Option<Vec<u8>>) -> Result<(), Halt> {
        self.measure_clocks(Measurement::Before);
        self.turn()?;
        if let Some(mute) =
            self.members.iter().find(|member| member.answers(Measurement::Before) == 0)
        {
            return Err(Halt {
                exit: Exit::Preflight,
                why: format!("agent {}: it answers no ping", mute.address),
            });
        }
        let of = self.members.len() as u32;
        let target = job.target;
        for (number, member) in self.members.iter().enumerate() {
            member.tell(from_coordinator::What::Share(proto::Share {
                scenario: member.share.to_toml(),
                run,
                number: number as u32,
                of,
                tcp: target.tcp.clone(),
                websocket: target.websocket.clone(),
                http: target.http.clone(),
                jwt_secret: target.jwt_secret.clone(),
                api_token: target.api_token.clone(),
                login_key: login_key.clone(),
                silence_ms_max: u32::try_from(self.silence_max.as_millis()).unwrap_or(u32::MAX),
            }));
        }
        self.all_reach(Step::Checked)?;
        self.go(Step::Checked, self.clock.now_ns());
        self.all_reach(Step::Ready)
    }

    /// All ramps begin at one moment; the load begins when everybody is there.
    fn ramp(&mut self, job: &Job<'_>) -> Result<(), Halt> {
        let ramp_start_ns = self.clock.now_ns() + self.lead_ns();
        self.anchors.ramp_start_ns = ramp_start_ns;
        self.phases = Phases::new(ramp_start_ns);
        self.phases.begin(Phase::Ramp, ramp_start_ns);
        self.go(Step::Ready, ramp_start_ns);
        self.all_reach(Step::Up)?;
        let hold_ns = job.scenario.connect.hold.as_millis() * 1_000_000;
        if hold_ns > 0 {
            self.phases.begin(Phase::Hold, self.clock.now_ns());
        }
        self.control.enter(Phase::Hold);
        let load_start_ns = self.clock.now_ns() + hold_ns.max(self.lead_ns());
        self.anchors.load_start_ns = load_start_ns;
        self.go(Step::Up, load_start_ns);
        Ok(())
    }

    /// From the beginning of the load until every agent has said what it has to say.
    fn load(&mut self) -> Result<(), Halt> {
        let start_ns = self.anchors.load_start_ns;
        self.until(start_ns)?;
        self.phases.begin(Phase::Load, start_ns);
        self.control.enter(Phase::Load);
        let end_ns = self.stages(start_ns)?;
        self.load_end_ns = end_ns;
        self.phases.begin(Phase::Settle, end_ns);
        self.control.enter(Phase::Settle);
        self.all_reach(Step::Verified)?;
        self.phases.begin(Phase::Leave, self.clock.now_ns());
        self.control.enter(Phase::Leave);
        self.go(Step::Verified, self.clock.now_ns());
        loop {
            self.turn()?;
            if self.members.iter().all(|member| member.summary.is_some()) {
                return Ok(());
            }
        }
    }

    /// The stages go by; a search judges its steps by what all agents measured in them, and ends the
    /// load at the first that breaks. Answers when the load ended.
    fn stages(&mut self, start_ns: u64) -> Result<u64, Halt> {
        let end_ns = start_ns + self.plan.load_ns();
        let Some(mut search) = Search::new(&self.plan, start_ns) else {
            self.until(end_ns)?;
            return Ok(end_ns);
        };
        while let Some(step_ns) = search.start_ns() {
            self.until(search.look_ns() + STREAM_NS)?;
            let part = self.windows.parts().iter().find(|part| part.start_ns == step_ns).cloned();
            if search.decide(&part.unwrap_or_default()) {
                break;
            }
        }
        let mut over_ns = end_ns;
        if search.has_broken() {
            over_ns = end_ns.min(self.clock.now_ns() + CUT_LEAD_NS);
            // What is measured after the cut is a part of its own.
            self.offsets_ns.push(over_ns - start_ns);
            let at_unix_ns = self.clock.unix_ns_at(over_ns);
            self.members.iter().for_each(|member| member.cut(at_unix_ns));
        }
        self.breakpoint = Some(search.finish(&self.plan));
        self.until(over_ns)?;
        Ok(over_ns)
    }

    fn lead_ns(&self) -> u64 {
        let longest = self.members.iter().map(Member::round_trip_ns).max().unwrap_or(0);
        LEAD_NS + LEAD_ROUND_TRIPS * longest
    }

    fn go(&self, after: Step, at_ns: u64) {
        let at_unix_ns = self.clock.unix_ns_at(at_ns);
        self.members.iter().for_each(|member| member.go(after, at_unix_ns));
    }

    fn until(&mut self, at_ns: u64) -> Result<(), Halt> {
        while self.clock.now_ns() < at_ns {
            self.turn()?;
        }
        Ok(())
    }

    fn all_reach(&mut self, step: Step) -> Result<(), Halt> {
        loop {
            self.turn()?;
            if self.members.iter().all(|member| member.reached >= step as i32) {
                return Ok(());
            }
        }
    }

    /// Round trips to every agent, one after another so that none waits for the one before. Who does
    /// not answer is left to the other rules.
    fn measure_clocks(&mut self, measurement: Measurement) {
        let until = Instant::now() + PINGS_MAX;
        for round in 1..=PINGS {
            for index in 0..self.members.len() {
                if self.members[index].lost.is_some() {
                    continue;
                }
                self.ping(index, measurement);
                while self.members[index].answers(measurement) < round
                    && self.members[index].lost.is_none()
                    && Instant::now() < until
                {
                    self.hear(LOOK_EVERY);
                }
            }
            std::thread::sleep(PING_PAUSE);
        }
    }

    fn ping(&mut self, index: usize, measurement: Measurement) {
        self.pings += 1;
        self.members[index].ping(self.pings, self.clock.unix_ns(), measurement);
    }

    /// Hears what has come, looks after everybody, and shows how things stand.
    fn turn(&mut self) -> Result<(), Halt> {
        self.look();
        if self.aborted.load(Ordering::Relaxed) {
            return Err(Halt { exit: Exit::Aborted, why: "interrupted".to_owned() });
        }
        if let Some((member, why)) =
            self.members.iter().find_map(|member| Some((member, member.lost.as_ref()?)))
        {
            let why = format!("agent {} was lost: {why}", member.address);
            return Err(Halt { exit: Exit::Aborted, why });
        }
        let failed = self.members.iter().find_map(|member| {
            let (exit, why) = member.ended.as_ref().filter(|(exit, _)| *exit != 0)?;
            Some((*exit, format!("agent {}: {why}", member.address)))
        });
        match failed {
            None => Ok(()),
            Some((exit, why)) => {
                let known = [Exit::BadArguments, Exit::Preflight].into_iter();
                let exit = known.into_iter().find(|known| *known as u8 == exit);
                Err(Halt { exit: exit.unwrap_or(Exit::Aborted), why })
            }
        }
    }

    /// The same, whatever has happened to whom.
    fn look(&mut self) {
        self.hear(LOOK_EVERY);
        let now_ns = self.clock.now_ns();
        if Instant::now() >= self.ping_due {
            self.ping_due = Instant::now() + PING_EVERY;
            for index in 0..self.members.len() {
                self.ping(index, Measurement::Within);
            }
            let usage = self.members.iter().filter_map(|member| member.snapshot.elsewhere);
            let seconds: f64 = usage.map(|usage| usage.cpu_seconds).sum();
            if self.anchors.load_start_ns <= now_ns {
                self.processor.push((now_ns, seconds));
            }
        }
        for member in self.members.iter_mut().filter(|member| member.is_running()) {
            let silence = member.heard.elapsed();
            if silence > self.silence_max {
                let seconds = silence.as_secs_f64();
                member.lost = Some(format!("nothing was heard of it for {seconds:.0} s"));
            }
        }
        let mut sum = Snapshot::default();
        self.members.iter().for_each(|member| sum.merge(member.snapshot.clone()));
        let recent = &mut self.recent;
        self.control.slots[0].publish(sum.clone(), |into| recent.take(into));
        if let Some(watcher) = &mut self.watcher {
            watcher.look(now_ns, &self.control, &sum);
        }
    }

    /// Waits for something to be said, and takes in all that was.
    fn hear(&mut self, at_most: Duration) {
        let events = &mut self.events;
        let first = self.runtime.block_on(async { timeout(at_most, events.recv()).await });
        let mut next = first.ok().flatten();
        // As many as can wait: who says more is heard at the next look.
        for _ in 0..EVENTS_MAX {
            let Some(event) = next else { return };
            self.take_in(event);
            next = self.events.try_recv().ok();
        }
        if let Some(event) = next {
            self.take_in(event);
        }
    }

    fn take_in(&mut self, event: Event) {
        let Event { member: index, at_unix_ns, what } = event;
        let member = &mut self.members[index];
        member.heard = Instant::now();
        let lost = match what {
            Ok(Some(FromAgent { what: Some(what) })) => match what {
                from_agent::What::Pong(pong) => {
                    member.pong(&pong, at_unix_ns);
                    Ok(())
                }
                from_agent::What::Reached(reached) => {
                    member.reached = member.reached.max(reached.step);
                    Ok(())
                }
                from_agent::What::Progress(progress) => self.progress(index, progress),
                from_agent::What::Ended(ended) => {
                    let exit = u8::try_from(ended.exit).unwrap_or(Exit::Aborted as u8);
                    let summary = match exit {
                        0 => Summary::parse(&ended.summary).map(Some),
                        _ => Ok(None),
                    };
                    member.ended = Some((exit, ended.why.chars().take(2000).collect()));
                    summary.map(|summary| member.summary = summary)
                }
            },
            Ok(Some(FromAgent { what: None })) => Err("it says what nobody understands".to_owned()),
            Ok(None) => Err("it closed the connection".to_owned()),
            Err(status) => Err(format!("the connection broke: {}", status.message())),
        };
        let member = &mut self.members[index];
        if let Err(why) = lost
            && (member.is_running() || (member.ended.is_some() && member.lost.is_none()))
        {
            // After its last word it may go.
            let is_done = member.ended.as_ref().is_some_and(|(exit, _)| *exit != 0)
                || member.summary.is_some();
            if !is_done {
                member.lost = Some(why);
            }
        }
    }

    /// Adds what an agent measured.
    fn progress(&mut self, index: usize, progress: Progress) -> Result<(), String> {
        let usage = usage(&progress);
        if let Some(snapshot) = progress.snapshot {
            self.members[index].snapshot = wire::read_snapshot(snapshot, usage)?;
        }
        for window in &progress.windows {
            let (start_ns, number, window) =
                wire::read_window(window, self.anchors, &self.offsets_ns, self.windows_max)?;
            for (metric, sparse) in window.latencies() {
                if metric.is_live() {
                    sparse.add_to(&mut self.recent.latency);
                } else if *metric == Metric::Late {
                    sparse.add_to(&mut self.recent.late);
                }
            }
            self.windows.add(start_ns, number, &window);
        }
        Ok(())
    }

    /// Ends every agent's run, and waits for what they have measured.
    fn stop(&mut self, why: &str) {
        self.members.iter().filter(|member| member.is_running()).for_each(|one| one.stop(why));
        let until = Instant::now() + STOP_MAX;
        while self.members.iter().any(Member::is_running) && Instant::now() < until {
            self.look();
        }
    }

    /// The report of all together.
    fn conclude(mut self, job: &Job<'_>, broken: Option<Broken>) -> Report {
        self.watcher = None;
        let now_ns = self.clock.now_ns();
        let record = Recorder::of_windows(self.windows);
        let mut merged = Merged::default();
        let summaries = self.members.iter().filter_map(|member| member.summary.as_ref());
        summaries.for_each(|summary| merged.add(summary));
        let parts: Vec<(&str, &Generator)> = self
            .members
            .iter()
            .filter_map(|member| Some((&*member.address, &member.summary.as_ref()?.generator)))
            .collect();
        let generator = Generator::merged(record.of(Metric::Late), &parts, &job.scenario.generator);
        let users = self.plan.population.users;
        let course = Course {
            clock: self.clock,
            plan: self.plan.clone(),
            ramp_seconds: merged.ramp_seconds,
            load_start_ns: self.anchors.load_start_ns,
            load_end_ns: self.load_end_ns.min(now_ns),
            meter: Meter::of_samples(self.processor),
            phases: self.phases.finish(now_ns),
            breakpoint: self.breakpoint,
            recoveries: merged.recoveries,
            verdict: merged.verdict,
            broken,
            agents: self.members.iter().map(|member| member.report(users)).collect(),
        };
        let records = (record, merged.endings, merged.errors);
        let report = conclude::report(job, &course, &records, generator);
        // Calls that hang must not hold the process.
        self.runtime.shutdown_background();
        report
    }
}

/// Passes on what an agent says, with the moment at which it came.
async fn listen(
    member: usize,
    mut inbound: Streaming<FromAgent>,
    clock: Clock,
    events: mpsc::Sender<Event>,
) {
    loop {
        let what = inbound.message().await;
        let is_over = !matches!(what, Ok(Some(_)));
        let event = Event { member, at_unix_ns: clock.unix_ns(), what };
        if events.send(event).await.is_err() || is_over {
            return;
        }
    }
}

// Everything that waits has room for what all agents may say at once.
const _: () = assert!(EVENTS_MAX >= MESSAGES_MAX);
