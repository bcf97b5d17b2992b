//! One run on an agent: what the coordinator says is heard, pings are answered, and once a second what
//! the threads measured is sent. The run itself is a thread of its own, which waits for nobody here.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tonic::{Status, Streaming};

use super::{
    lead::{AgentLead, Shared},
    proto::{
        self, Ended, FromAgent, FromCoordinator, Go, Pong, Progress, Step, from_agent,
        from_coordinator::What,
    },
    summary::Summary,
    wire,
};
use crate::{
    clock::Clock,
    control::Usage,
    cpu,
    doctor::{self, Diagnosis},
    engine::{self, Job, conclude},
    exit::{Exit, RunError},
    live::{View, sample::resident_bytes},
    load::Place,
    output::environment,
    population::Transport,
    scenario::Scenario,
    target::Target,
};

/// How often measurements are sent.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Before it has its share, an agent waits so long for a word.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Steps that are told but not taken yet.
const ORDERS_MAX: usize = 4;

/// The agent's side of a call.
pub struct Session {
    /// What the coordinator is told.
    pub out: mpsc::Sender<Result<FromAgent, Status>>,
    /// The agent's clock.
    pub clock: Clock,
    /// Where connections come from.
    pub source_addresses: Vec<IpAddr>,
    /// With the run, and with whoever ends the agent.
    pub shared: Arc<Shared>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The coordinator asked for no run.
    NoRun,
    /// The run came to its end.
    Whole,
    /// It did not.
    Broken,
}

/// The run, while it goes on.
struct Work {
    orders: SyncSender<Go>,
    ended: oneshot::Receiver<Ended>,
}

impl Session {
    /// Until the coordinator hangs up, or is gone.
    pub async fn run(self, mut inbound: Streaming<FromCoordinator>) -> Outcome {
        let mut work: Option<Work> = None;
        let mut outcome = Outcome::NoRun;
        let mut silence_max = SILENCE_MAX;
        let mut heard = Instant::now();
        let mut tick = interval(PROGRESS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ended = async {
                match &mut work {
                    Some(work) => (&mut work.ended).await.ok(),
                    None => std::future::pending().await,
                }
            };
            let is_well = tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(FromCoordinator { what: Some(what) })) => {
                        heard = Instant::now();
                        self.obey(what, &mut work, &mut silence_max, &mut outcome).await
                    }
                    Ok(_) | Err(_) => false,
                },
                ended = ended => {
                    work = None;
                    let ended = ended.unwrap_or_else(|| Ended {
                        exit: Exit::Aborted as u32,
                        why: "the run panicked".to_owned(),
                        summary: String::new(),
                    });
                    outcome = if ended.exit == 0 { Outcome::Whole } else { Outcome::Broken };
                    // Everything that was measured goes before the last word.
                    self.shared.over();
                    self.progress().await && self.say(from_agent::What::Ended(ended)).await
                }
                _ = tick.tick() => {
                    heard.elapsed() < silence_max && (work.is_none() || self.progress().await)
                }
            };
            if !is_well {
                break;
            }
        }
        self.shared.stop("the coordinator is gone");
        if let Some(work) = work {
            // The threads end at once; a request under way may take its time-out.
            drop(work.orders);
            let _ = work.ended.await;
            outcome = Outcome::Broken;
        }
        outcome
    }

    /// Sends; `false` if nobody takes it.
    async fn say(&self, what: from_agent::What) -> bool {
        let message = Ok(FromAgent { what: Some(what) });
        matches!(timeout(SILENCE_MAX, self.out.send(message)).await, Ok(Ok(())))
    }

    async fn obey(
        &self,
        what: What,
        work: &mut Option<Work>,
        silence_max: &mut Duration,
        outcome: &mut Outcome,
    ) -> bool {
        match what {
            What::Ping(ping) => {
                let came_unix_ns = self.clock.unix_ns();
                let went_unix_ns = self.clock.unix_ns();
                let pong = Pong { number: ping.number, came_unix_ns, went_unix_ns };
                self.say(from_agent::What::Pong(pong)).await
            }
            What::Share(share) if *outcome == Outcome::NoRun => {
                *silence_max = Duration::from_millis(u64::from(share.silence_ms_max));
                // Until it says otherwise.
                *outcome = Outcome::Broken;
                *work = self.start(share);
                work.is_some()
            }
            What::Go(go) => work.as_ref().is_some_and(|work| work.orders.try_send(go).is_ok()),
            What::Cut(cut) => match self.shared.running() {
                Some((control, _)) => {
                    control.cut_load(self.clock.at_unix_ns(cut.at_unix_ns));
                    true
                }
                None => false,
            },
            What::Stop(stop) => {
                self.shared.stop(&stop.why);
                true
            }
            What::Share(_) | What::Hello(_) => false,
        }
    }

    fn start(&self, share: proto::Share) -> Option<Work> {
        let (orders, received) = sync_channel(ORDERS_MAX);
        let (end, ended) = oneshot::channel();
        let lead = AgentLead {
            clock: self.clock,
            orders: received,
            out: self.out.clone(),
            shared: self.shared.clone(),
        };
        let source_addresses = self.source_addresses.clone();
        let run = move || {
            // Nobody waits for it any more when the coordinator is gone.
            let _ = end.send(match work(&share, source_addresses, lead) {
                Ok(summary) => Ended { summary: summary.to_json(), ..Ended::default() },
                Err(error) => {
                    Ended { exit: error.exit as u32, why: error.message, summary: String::new() }
                }
            });
        };
        std::thread::Builder::new().name("run".to_owned()).spawn(run).ok()?;
        Some(Work { orders, ended })
    }

    /// Sends what was measured since the last time; `false` if nobody takes it.
    async fn progress(&self) -> bool {
        let Some((control, anchors)) = self.shared.running() else { return true };
        let mut fresh = crate::windows::Fresh::new();
        for slot in &control.slots {
            crate::windows::merge_fresh(&mut fresh, slot.take_fresh());
        }
        let mut snapshot = Some(wire::snapshot(&control.snapshot()));
        for windows in wire::windows(&fresh, anchors) {
            let progress = Progress {
                snapshot: snapshot.take(),
                windows,
                cpu_seconds: cpu::seconds(),
                resident_bytes: resident_bytes().unwrap_or(0),
            };
            if !self.say(from_agent::What::Progress(progress)).await {
                return false;
            }
        }
        true
    }
}

/// What this process uses.
pub fn usage(progress: &Progress) -> Usage {
    Usage { cpu_seconds: progress.cpu_seconds, resident_bytes: progress.resident_bytes }
}

/// The share, from the first look at the machine to the summary.
fn work(
    share: &proto::Share,
    source_addresses: Vec<IpAddr>,
    mut lead: AgentLead,
) -> Result<Summary, RunError> {
    let scenario = Scenario::parse(&share.scenario, "share.toml")
        .map_err(|error| RunError::bad_arguments(error.to_string()))?;
    if scenario.login.key_file.is_some() && share.login_key.is_none() {
        return Err(RunError::bad_arguments(
            "the share names a key file and does not hold its key",
        ));
    }
    let target = Target {
        tcp: share.tcp.clone(),
        websocket: share.websocket.clone(),
        http: share.http.clone(),
        jwt_secret: share.jwt_secret.clone(),
        api_token: share.api_token.clone(),
        source_addresses,
    };
    let environment = environment::of_this_machine();
    look(&scenario, &target, share.run)?;
    lead.step(Step::Checked)?;

    let aborted = lead.shared.aborted.clone();
    let job = Job {
        command: "agent",
        scenario: &scenario,
        source: "coordinator",
        target: &target,
        view: View::Quiet,
        aborted: &aborted,
        place: Place { number: share.number, of: share.of.max(1) },
        login_key: share.login_key.clone(),
    };
    let shared = lead.shared.clone();
    let conducted = engine::conduct(&job, share.run, &mut lead);
    let (course, records) = conducted.map_err(|error| match shared.why() {
        Some(why) => RunError::aborted(why),
        None => error,
    })?;
    let generator = conclude::generator(&scenario, &course, &records.0);
    Ok(Summary::new(&course, &records, generator, environment))
}

/// What `doctor` says of this machine and the share.
fn look(scenario: &Scenario, target: &Target, run: u32) -> Result<(), RunError> {
    let bad = |error: millrace_service::Invalid| RunError::bad_arguments(error.to_string());
    let population = scenario.plan(run).map_err(bad)?.population;
    let has = |wanted| (0..population.users).any(|user| population.transport(user) == wanted);
    let mut to = Vec::new();
    if has(Transport::Tcp) {
        to.push(target.tcp_endpoint()?.host);
    }
    if has(Transport::WebSocket) {
        to.push(target.websocket_endpoint()?.host);
    }
    let sources = &target.source_addresses;
    let diagnosis = doctor::DoctorArguments {
        connections: u64::from(population.users),
        to,
        source_addresses: (!sources.is_empty())
            .then(|| crate::addresses::Addresses(sources.clone())),
        threads: scenario.generator.threads,
        ramp_rate: scenario.connect.per_second,
        fix: false,
        json: false,
    }
    .diagnosis()?;
    if diagnosis.passed { Ok(()) } else { Err(RunError::preflight(complaint(&diagnosis))) }
}

fn complaint(diagnosis: &Diagnosis) -> String {
    let failed = diagnosis.checks.iter().filter(|check| check.status == doctor::Status::Fail);
    let each: Vec<String> = failed
        .map(|check| match &check.fix[..] {
            [] => format!("{}: {}", check.name, check.finding),
            fix => format!("{}: {} (fix: {})", check.name, check.finding, fix.join("; ")),
        })
        .collect();
    format!("this machine cannot hold its share: {}", each.join("; "))
}
