//! What the coordinator knows of one agent, and the call to it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, transport::Endpoint};

use super::{
    MESSAGES_MAX, REPORT_BYTES_MAX,
    offset::Sample,
    proto::{
        Cut, FromAgent, FromCoordinator, Go, Hello, Ping, Pong, Step, Stop,
        agent_client::AgentClient, from_coordinator::What,
    },
    summary::Summary,
};
use crate::{control::Snapshot, exit::RunError, report::AgentReport, scenario::Scenario};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// From the connection to the agent's word that it is free.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// Pings without an answer that are remembered.
const PINGS_MAX: usize = 128;

/// Which of the two measurements of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// Before the run.
    Before,
    /// In it: nobody looks at the result, but the agent hears something.
    Within,
    /// After it.
    After,
}

/// See the module.
pub struct Member {
    /// As it was given.
    pub address: String,
    /// What it is to do.
    pub share: Scenario,
    /// What its schedules ask for at full load, per second.
    pub per_second: f64,
    /// The last step that it said it had reached.
    pub reached: i32,
    /// How it stands.
    pub snapshot: Snapshot,
    /// How its run ended, with the exit code; `None`: it goes on.
    pub ended: Option<(u8, String)>,
    /// What it said at the end.
    pub summary: Option<Summary>,
    /// How it was lost.
    pub lost: Option<String>,
    /// When something was heard of it.
    pub heard: Instant,
    out: mpsc::Sender<FromCoordinator>,
    pings: VecDeque<(u64, i64, Measurement)>,
    pongs: [u32; 2],
    clocks: [Option<Sample>; 2],
}

/// Calls an agent and says who we are.
///
/// # Errors
/// It cannot be reached, or refuses.
pub async fn call(
    address: &str,
    token: Option<&str>,
    build: &str,
) -> Result<(mpsc::Sender<FromCoordinator>, Streaming<FromAgent>), RunError> {
    let fail = |what: String| RunError::preflight(format!("agent {address}: {what}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| fail(error.to_string()))?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true);
    let channel = match timeout(CONNECT_MAX, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            // The cause says more than the layer that gave up.
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            return Err(fail(format!("cannot be reached: {cause}")));
        }
        Err(_) => return Err(fail(format!("cannot be reached within {CONNECT_MAX:?}"))),
    };
    let (out, stream) = mpsc::channel(MESSAGES_MAX);
    let hello = What::Hello(Hello { build: build.to_owned() });
    out.try_send(FromCoordinator { what: Some(hello) }).expect("a new channel has room");
    let mut request = Request::new(ReceiverStream::new(stream));
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("a token is plain ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = AgentClient::new(channel).max_decoding_message_size(REPORT_BYTES_MAX);
    match timeout(WELCOME_MAX, client.run(request)).await {
        Ok(Ok(response)) => Ok((out, response.into_inner())),
        Ok(Err(status)) => Err(fail(status.message().to_owned())),
        Err(_) => Err(fail(format!("no answer within {WELCOME_MAX:?}"))),
    }
}

impl Member {
    /// An agent that has answered.
    pub fn new(
        address: &str,
        share: Scenario,
        per_second: f64,
        out: mpsc::Sender<FromCoordinator>,
    ) -> Self {
        Self {
            address: address.to_owned(),
            share,
            per_second,
            reached: Step::Unspecified as i32,
            snapshot: Snapshot::default(),
            ended: None,
            summary: None,
            lost: None,
            heard: Instant::now(),
            out,
            pings: VecDeque::new(),
            pongs: [0; 2],
            clocks: [None; 2],
        }
    }

    /// Tells it something. What cannot be sent now is not sent: an agent that does not read is silent
    /// soon, and lost.
    pub fn tell(&self, what: What) {
        let _ = self.out.try_send(FromCoordinator { what: Some(what) });
    }

    /// Sends a ping.
    pub fn ping(&mut self, number: u64, now_unix_ns: i64, measurement: Measurement) {
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back((number, now_unix_ns, measurement));
        self.tell(What::Ping(Ping { number }));
    }

    /// A ping came back.
    pub fn pong(&mut self, pong: &Pong, back_unix_ns: i64) {
        let Some(at) = self.pings.iter().position(|(number, ..)| *number == pong.number) else {
            return;
        };
        let Some((_, sent_ns, measurement)) = self.pings.remove(at) else { return };
        let sample = Sample::new(sent_ns, pong.came_unix_ns, pong.went_unix_ns, back_unix_ns);
        let index = match measurement {
            Measurement::Before => 0,
            Measurement::Within => return,
            Measurement::After => 1,
        };
        self.pongs[index] += 1;
        let known = &mut self.clocks[index];
        *known = Some(known.map_or(sample, |known| known.or(sample)));
    }

    /// Answers of a measurement so far.
    pub fn answers(&self, measurement: Measurement) -> u32 {
        self.pongs[usize::from(measurement == Measurement::After)]
    }

    /// The shortest round trip before the run.
    pub fn round_trip_ns(&self) -> u64 {
        self.clocks[0].map_or(0, |clock| clock.round_trip_ns)
    }

    /// Names the moment, by our clock, at which the agent goes on from a step.
    pub fn go(&self, after: Step, at_unix_ns: i64) {
        let offset_ns = self.clocks[0].map_or(0, |clock| clock.offset_ns);
        let at_unix_ns = at_unix_ns.saturating_add(offset_ns);
        self.tell(What::Go(Go { after: after as i32, at_unix_ns }));
    }

    /// Ends its load at a moment of our clock.
    pub fn cut(&self, at_unix_ns: i64) {
        let offset_ns = self.clocks[0].map_or(0, |clock| clock.offset_ns);
        self.tell(What::Cut(Cut { at_unix_ns: at_unix_ns.saturating_add(offset_ns) }));
    }

    /// Ends its run.
    pub fn stop(&self, why: &str) {
        self.tell(What::Stop(Stop { why: why.to_owned() }));
    }

    /// Whether something is still to be expected of it.
    pub fn is_running(&self) -> bool {
        self.lost.is_none() && self.ended.is_none()
    }

    /// Its part, for the report. `users`: of all agents.
    pub fn report(&self, users: u32) -> AgentReport {
        let [before, after] = self.clocks;
        let offset = before.map_or(0.0, |clock| clock.offset_us());
        AgentReport {
            address: self.address.clone(),
            connections: self.share.connections,
            share: f64::from(self.share.connections) / f64::from(users.max(1)),
            per_second: self.per_second,
            clock_offset_us: offset,
            clock_uncertainty_us: before.map_or(0.0, |clock| clock.uncertainty_us()),
            clock_offset_end_us: after.map(|clock| clock.offset_us()),
            clock_uncertainty_end_us: after.map(|clock| clock.uncertainty_us()),
            clock_drift_us: after.map(|clock| clock.offset_us() - offset),
            ramp_seconds: self.summary.as_ref().map(|summary| summary.ramp_seconds),
            generator: self.summary.as_ref().map(|summary| summary.generator.clone()),
            environment: self.summary.as_ref().map(|summary| summary.environment.clone()),
            lost: self.lost.clone(),
        }
    }
}
