//! The scenario `echo`: WebSocket messages to a server that sends them back, checked byte by
//! byte. It speaks plain RFC 6455 without a subprotocol, so it measures any echo server.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use millrace_protocol::websocket::{self, Limits, Message, MessageReader, Opcode, Role};

use crate::{
    cli::EchoArguments,
    client::{Endings, Endpoint},
    clock::Clock,
    control::{Control, Phase, Snapshot},
    crew::{Crew, Wait},
    driver::{self, Action, Fleet},
    engine::{self, Records},
    exit::RunError,
    health::{Generator, Meter, Observed},
    pacer::Pacer,
    preflight::{self, Sources},
    record::{Counter, Metric, Recorder},
    report::{Findings, Report, Times},
    scenario::GeneratorSection,
    target::websocket_endpoint,
};

/// Messages on their way per connection; beyond it the schedule's message is shed and counted.
const IN_FLIGHT_MAX: usize = 1024;
/// Unwritten bytes per connection above which the same happens.
const OUTPUT_BYTES_MAX: usize = 32 * 1024 * 1024;
const LIMITS: Limits = Limits { message_bytes_max: 16 * 1024 * 1024 };
const SETTLE_MAX: Duration = Duration::from_secs(15);
const LEAVE_MAX: Duration = Duration::from_secs(30);
const PUBLISH_NS: u64 = 100_000_000;
const LOAD_LEAD_NS: u64 = 100_000_000;

enum Stage {
    Waiting,
    Connecting,
    Upgrading(Box<Upgrading>),
    Open(MessageReader),
    Ended,
}

struct Upgrading {
    key: [u8; 16],
    head: Vec<u8>,
}

/// One connection: messages come back in the order in which they went out.
struct Station {
    stage: Stage,
    /// Counted as open.
    is_open: bool,
    /// Counted as ended.
    is_over: bool,
    since_ns: u64,
    output: Vec<u8>,
    /// Number and intended moment of what is on its way.
    in_flight: VecDeque<(u64, u64)>,
    next_number: u64,
}

/// The messages: number `n` is `n` in sixteen hex digits, then a pattern that depends on it. Made
/// without an allocation, since a closed loop makes and compares 200,000 a second.
struct Payloads {
    size: usize,
    /// The alphabet over and over: the tail of every message is a part of it.
    pattern: Vec<u8>,
    buffer: Vec<u8>,
}

impl Payloads {
    fn new(size: usize) -> Self {
        let pattern = (0..size + 26).map(|at| b'a' + (at % 26) as u8).collect();
        Self { size, pattern, buffer: Vec::with_capacity(size) }
    }

    fn of(&mut self, number: u64) -> &[u8] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.buffer.clear();
        let digits = (0..16).rev().map(|digit| HEX[(number >> (4 * digit) & 15) as usize]);
        self.buffer.extend(digits);
        let shift = (number % 26) as usize;
        self.buffer.extend_from_slice(&self.pattern[shift..shift + self.size - 16]);
        &self.buffer
    }
}

#[derive(Clone)]
struct Plan {
    thread: u32,
    threads: u32,
    connections: u32,
    endpoint: Endpoint,
    per_second: f64,
    ramp_per_second: f64,
    load_ns: u64,
    size: usize,
    text: bool,
    sources: Sources,
    seed: u64,
}

struct EchoFleet {
    plan: Plan,
    control: Arc<Control>,
    stations: Vec<Station>,
    actions: VecDeque<Action>,
    ramp: Pacer,
    ramp_next: u32,
    load: Option<Pacer>,
    load_end_ns: u64,
    turn: u32,
    random: fastrand::Rng,
    payloads: Payloads,
    /// Stations that are open, those that have ended, and messages on their way: kept up, so that
    /// nobody walks over all stations ten times a second.
    open: u64,
    ended: u64,
    on_their_way: u64,
    record: Recorder,
    errors: Vec<String>,
    publish_due_ns: u64,
    now_ns: u64,
}

impl EchoFleet {
    fn new(control: Arc<Control>, plan: Plan, now_ns: u64) -> Self {
        let count = (plan.thread..plan.connections).step_by(plan.threads as usize).count();
        let station = || Station {
            stage: Stage::Waiting,
            is_open: false,
            is_over: false,
            since_ns: 0,
            output: Vec::new(),
            in_flight: VecDeque::new(),
            next_number: 0,
        };
        let ramp_ns = (count as f64 / plan.ramp_per_second * 1e9).ceil() as u64;
        Self {
            ramp: Pacer::new(plan.ramp_per_second, now_ns, ramp_ns, 0.0),
            random: fastrand::Rng::with_seed(plan.seed ^ u64::from(plan.thread) << 32),
            payloads: Payloads::new(plan.size),
            open: 0,
            ended: 0,
            on_their_way: 0,
            plan,
            control,
            stations: std::iter::repeat_with(station).take(count).collect(),
            actions: VecDeque::new(),
            ramp_next: 0,
            load: None,
            load_end_ns: u64::MAX,
            turn: 0,
            record: Recorder::default(),
            errors: Vec::new(),
            publish_due_ns: 0,
            now_ns,
        }
    }

    fn is_closed_loop(&self) -> bool {
        self.plan.per_second == 0.0
    }

    fn send_message(&mut self, index: u32, intended_ns: u64) {
        let station = &mut self.stations[index as usize];
        self.record.counters.add(Counter::Intended);
        if !matches!(station.stage, Stage::Open(_)) {
            self.record.counters.add(Counter::Failed);
            return;
        }
        let payload = self.payloads.of(station.next_number);
        let is_full = station.in_flight.len() >= IN_FLIGHT_MAX
            || station.output.len() + payload.len() > OUTPUT_BYTES_MAX.max(2 * payload.len());
        if is_full {
            self.record.counters.add(Counter::OutboxFull);
            return;
        }
        station.in_flight.push_back((station.next_number, intended_ns));
        station.next_number += 1;
        self.on_their_way += 1;
        let mask = self.random.u32(..).to_ne_bytes();
        let opcode = if self.plan.text { Opcode::Text } else { Opcode::Binary };
        websocket::write_frame(&mut station.output, opcode, true, Some(mask), payload);
        self.record.counters.add(Counter::Sent);
        self.actions.push_back(Action::Send { index });
    }

    fn advance_load(&mut self, now_ns: u64) {
        if self.load.is_none() {
            let start_ns = self.control.load_start_ns();
            self.load_end_ns = start_ns + self.plan.load_ns;
            let phase = f64::from(self.plan.thread) / f64::from(self.plan.threads);
            let rate = self.plan.per_second;
            self.load = Some(Pacer::new(rate, start_ns, self.plan.load_ns, phase));
            if self.is_closed_loop() {
                for index in 0..self.stations.len() as u32 {
                    self.send_message(index, now_ns);
                }
            }
        }
        let Some(mut pacer) = self.load.take() else { return };
        while let Some(intended_ns) = pacer.take_due(now_ns) {
            self.record.record(Metric::Late, now_ns - intended_ns);
            let index = self.turn;
            self.turn = (self.turn + 1) % self.stations.len().max(1) as u32;
            self.send_message(index, intended_ns);
        }
        self.load = Some(pacer);
    }

    fn message(&mut self, now_ns: u64, index: u32, bytes: &[u8], is_text: bool) {
        let Some((number, intended_ns)) = self.stations[index as usize].in_flight.pop_front()
        else {
            self.record.counters.add(Counter::EchoesWrong);
            return;
        };
        self.on_their_way -= 1;
        if is_text != self.plan.text || bytes != self.payloads.of(number) {
            self.record.counters.add(Counter::EchoesWrong);
            return;
        }
        self.record.counters.add(Counter::Echoes);
        self.record.record(Metric::Echo, now_ns.saturating_sub(intended_ns));
        if self.is_closed_loop() && self.control.phase() == Phase::Load && now_ns < self.load_end_ns
        {
            self.send_message(index, now_ns);
        }
    }

    fn fail(&mut self, index: u32, error: String) {
        if !self.errors.contains(&error) && self.errors.len() < 10 {
            self.errors.push(error);
        }
        self.record.counters.add(Counter::ConnectionsLost);
        self.end(index);
    }

    fn end(&mut self, index: u32) {
        let station = &mut self.stations[index as usize];
        station.stage = Stage::Ended;
        self.open -= u64::from(std::mem::take(&mut station.is_open));
        self.ended += u64::from(!std::mem::replace(&mut station.is_over, true));
        station.output = Vec::new();
        let unanswered = station.in_flight.len() as u64;
        self.on_their_way -= unanswered;
        self.record.counters.add_many(Counter::Unanswered, unanswered);
        station.in_flight = VecDeque::new();
        self.actions.push_back(Action::Close { index, farewell: Vec::new() });
    }

    fn read_messages(
        &mut self,
        now_ns: u64,
        index: u32,
        reader: &mut MessageReader,
        bytes: &mut [u8],
    ) -> Result<(), String> {
        let mut from = 0;
        loop {
            let read = reader.read(Role::Client, &LIMITS, &mut bytes[from..]);
            let (used, message) = read.map_err(|error| error.to_string())?;
            from += used;
            match message {
                None => return Ok(()),
                Some(Message::Text(text)) => self.message(now_ns, index, text.as_bytes(), true),
                Some(Message::Binary(bytes)) => self.message(now_ns, index, bytes, false),
                Some(Message::Ping(payload)) => {
                    let mask = Some(self.random.u32(..).to_ne_bytes());
                    let output = &mut self.stations[index as usize].output;
                    websocket::write_frame(output, Opcode::Pong, true, mask, payload);
                    self.actions.push_back(Action::Send { index });
                }
                Some(Message::Pong(_)) => {}
                Some(Message::Close(close)) => {
                    let code = close.map_or(1005, |close| close.code);
                    return Err(format!("the server closed with {code}"));
                }
            }
        }
    }

    fn advance_leave(&mut self) {
        for index in 0..self.stations.len() as u32 {
            let station = &mut self.stations[index as usize];
            if matches!(station.stage, Stage::Open(_)) {
                let mut farewell = Vec::new();
                let mask = Some(self.random.u32(..).to_ne_bytes());
                websocket::write_close(&mut farewell, mask, 1000, "");
                self.end(index);
                if let Some(Action::Close { farewell: last, .. }) = self.actions.back_mut() {
                    *last = farewell;
                }
            } else if !matches!(station.stage, Stage::Ended) {
                self.end(index);
            }
        }
    }

    fn publish(&mut self, now_ns: u64) {
        self.publish_due_ns = now_ns + PUBLISH_NS;
        let snapshot = Snapshot {
            counters: self.record.counters.clone(),
            ready: self.open,
            done: self.ended,
            outstanding: self.on_their_way,
            errors: self.errors.clone(),
            ..Snapshot::default()
        };
        let slot = &self.control.slots[self.plan.thread as usize];
        slot.publish(snapshot, |recent| self.record.take_recent(recent));
    }

    fn connect(&mut self, now_ns: u64, index: u32) {
        let station = &mut self.stations[index as usize];
        station.stage = Stage::Connecting;
        station.since_ns = now_ns;
        let user = index * self.plan.threads + self.plan.thread;
        let address: SocketAddr = self.plan.endpoint.address;
        let source = self.plan.sources.of(user, address.ip());
        self.actions.push_back(Action::Connect { index, address, source });
    }
}

impl Fleet for EchoFleet {
    fn advance(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        match self.control.phase() {
            Phase::Ramp => {
                while (self.ramp_next as usize) < self.stations.len()
                    && (self.ramp.take_due(now_ns).is_some() || self.ramp.next_ns().is_none())
                {
                    self.ramp_next += 1;
                    self.connect(now_ns, self.ramp_next - 1);
                }
            }
            Phase::Hold => {}
            Phase::Load => self.advance_load(now_ns),
            Phase::Settle | Phase::Verify => {
                if self.load.is_some() {
                    self.advance_load(now_ns);
                }
            }
            Phase::Leave => self.advance_leave(),
        }
        if now_ns >= self.publish_due_ns {
            self.publish(now_ns);
        }
    }

    fn wake_ns(&self) -> u64 {
        let next = match self.control.phase() {
            Phase::Ramp => self.ramp.next_ns(),
            Phase::Load => self.load.as_ref().and_then(Pacer::next_ns),
            _ => None,
        };
        next.unwrap_or(u64::MAX).min(self.now_ns + 10_000_000)
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn connected(&mut self, now_ns: u64, index: u32, result: io::Result<()>) {
        if let Err(error) = result {
            self.record.counters.add(Counter::ConnectFailed);
            return self.fail(index, format!("connect: {error}"));
        }
        let mut key = [0; 16];
        self.random.fill(&mut key);
        let station = &mut self.stations[index as usize];
        self.record.counters.add(Counter::Connections);
        self.record.record(Metric::Connect, now_ns - station.since_ns);
        let Endpoint { host, path, .. } = &self.plan.endpoint;
        websocket::write_upgrade_request(&mut station.output, host, path, None, &key);
        station.stage = Stage::Upgrading(Box::new(Upgrading { key, head: Vec::new() }));
        station.since_ns = now_ns;
        self.actions.push_back(Action::Send { index });
    }

    fn received(&mut self, now_ns: u64, index: u32, bytes: &mut [u8]) {
        self.record.counters.add_many(Counter::BytesIn, bytes.len() as u64);
        let station = &mut self.stations[index as usize];
        let since_ns = station.since_ns;
        // While its bytes are read the station stands as ended; it comes back unless it failed.
        let stage = std::mem::replace(&mut station.stage, Stage::Ended);
        let (mut reader, result) = match stage {
            Stage::Upgrading(mut upgrading) => {
                let Upgrading { key, head } = upgrading.as_mut();
                head.extend_from_slice(bytes);
                match websocket::read_upgrade_response(head, key) {
                    Ok(None) => {
                        self.stations[index as usize].stage = Stage::Upgrading(upgrading);
                        return;
                    }
                    Ok(Some((used, _))) => {
                        self.record.record(Metric::Upgrade, now_ns - since_ns);
                        self.stations[index as usize].is_open = true;
                        self.open += 1;
                        let mut reader = MessageReader::new();
                        let rest = &mut head[used..];
                        let result = self.read_messages(now_ns, index, &mut reader, rest);
                        (reader, result)
                    }
                    Err(error) => {
                        self.record.counters.add(Counter::UpgradeFailed);
                        return self.fail(index, format!("upgrade: {error}"));
                    }
                }
            }
            Stage::Open(mut reader) => {
                self.stations[index as usize].stage = Stage::Open(MessageReader::new());
                let result = self.read_messages(now_ns, index, &mut reader, bytes);
                (reader, result)
            }
            other => {
                self.stations[index as usize].stage = other;
                return;
            }
        };
        match result {
            Ok(()) => {
                let reader = std::mem::take(&mut reader);
                self.stations[index as usize].stage = Stage::Open(reader);
            }
            Err(error) => self.fail(index, error),
        }
    }

    fn ended(&mut self, _: u64, index: u32) {
        if !matches!(self.stations[index as usize].stage, Stage::Ended) {
            self.fail(index, "the server ended the connection".to_owned());
        }
    }

    fn has_output(&self, index: u32) -> bool {
        !self.stations[index as usize].output.is_empty()
    }

    fn take_output(&mut self, _: u64, index: u32) -> Vec<u8> {
        let output = std::mem::take(&mut self.stations[index as usize].output);
        self.record.counters.add_many(Counter::BytesOut, output.len() as u64);
        output
    }

    fn is_finished(&self) -> bool {
        let has_left = self.control.phase() == Phase::Leave
            && self.actions.is_empty()
            && self.ended == self.stations.len() as u64;
        has_left || self.control.is_abandoned()
    }
}

/// Runs the scenario.
///
/// # Errors
/// The run gave no result: bad arguments, preflight, aborted.
pub fn run(arguments: &EchoArguments, aborted: &Arc<AtomicBool>) -> Result<Report, RunError> {
    let endpoint = websocket_endpoint(&arguments.url)?;
    if arguments.rate < 0.0 || arguments.ramp_rate <= 0.0 {
        return Err(RunError::bad_arguments("--rate must not be negative, --ramp-rate above 0"));
    }
    let (connections, threads) = (arguments.connections, arguments.threads);
    if connections < threads {
        return Err(RunError::bad_arguments("--connections must be at least --threads"));
    }
    preflight::reach("the echo server", endpoint.address)?;
    preflight::memory(connections)?;
    let options = preflight::driver_options(connections.div_ceil(threads), threads)?;
    let given = arguments.source_addresses.clone().unwrap_or_default().0;
    let sources = preflight::sources(&[(endpoint.address, connections)], connections, &given)?;
    let part = 1.0 / f64::from(threads);
    let plan = Plan {
        thread: 0,
        threads,
        connections,
        endpoint,
        per_second: arguments.rate * part,
        ramp_per_second: arguments.ramp_rate * part,
        load_ns: arguments.duration.as_nanos() as u64,
        size: arguments.size as usize,
        text: arguments.text,
        sources,
        seed: arguments.seed,
    };
    let clock = Clock::start();
    let control = Arc::new(Control::new(threads as usize));
    let view = arguments.result.view();
    let mut crew: Crew<Records> =
        Crew::start(clock, control.clone(), aborted.clone(), view, |thread| {
            let (plan, control) = (Plan { thread, ..plan.clone() }, control.clone());
            let options = options.clone();
            move || {
                let mut fleet = EchoFleet::new(control, plan, clock.now_ns());
                let stations = fleet.stations.len();
                driver::run(clock, options, stations, &mut fleet)
                    .map_err(|error| RunError::aborted(format!("io_uring: {error}")))?;
                Ok((fleet.record, Endings::default(), fleet.errors))
            }
        })?;

    let ramp_time = engine::ramp(&mut crew, connections, 0, clock.now_ns())?;
    let mut meter = Meter::new(1_000_000_000);
    let start_ns = clock.now_ns() + LOAD_LEAD_NS;
    crew.control.start_load(start_ns);
    crew.watch(Duration::from_nanos(LOAD_LEAD_NS) + arguments.duration, |_| {
        meter.look(clock.now_ns());
        Wait::More
    })?;
    meter.finish(clock.now_ns());
    let load_seconds = (clock.now_ns() - start_ns) as f64 / 1e9;
    let times =
        Times { ramp_sessions: connections, ramp_seconds: ramp_time.as_secs_f64(), load_seconds };
    crew.control.enter(Phase::Settle);
    crew.watch(Duration::from_millis(300), |_| Wait::More)?;
    crew.watch(
        SETTLE_MAX,
        |snapshot| {
            if snapshot.outstanding == 0 { Wait::Enough } else { Wait::More }
        },
    )?;
    let records = crew.leave(LEAVE_MAX)?;

    let (record, endings, errors) = engine::merge(&records);
    let observed = Observed {
        late: record.of(Metric::Late),
        stages: Vec::new(),
        meter: &meter,
        load_seconds,
        has_closed_loop: arguments.rate == 0.0,
    };
    let generator = Generator::judge(&observed, &GeneratorSection::default());
    let mut failures = Vec::new();
    if record.counters.get(Counter::Echoes) == 0 {
        failures.push("nothing came back".to_owned());
    }
    Ok(Report::new(Findings {
        command: "echo",
        configuration: serde_json::json!({
            "url": arguments.url,
            "connections": connections,
            "threads": threads,
            "per_second": arguments.rate,
            "size": arguments.size,
            "text": arguments.text,
            "duration_seconds": arguments.duration.as_secs_f64(),
        }),
        record: &record,
        verdict: None,
        endings: &endings,
        errors,
        times,
        stages: Vec::new(),
        recoveries_us: Vec::new(),
        must_be_zero: &[
            (Counter::EchoesWrong, "echoes differed from what was sent"),
            (Counter::Unanswered, "echoes never came"),
            (Counter::Failed, "connections were not there to send"),
            (Counter::OutboxFull, "messages were shed, the server did not keep up"),
            (Counter::ConnectionsLost, "connections ended that should not have"),
        ],
        failures,
        broken: None,
        thresholds: &arguments.result.threshold,
        generator,
        allow_saturated: arguments.allow_late,
    }))
}

#[cfg(test)]
mod tests {
    use super::Payloads;

    #[test]
    fn every_message_says_its_number_and_differs_from_its_neighbours() {
        let mut payloads = Payloads::new(40);
        assert_eq!(payloads.of(0), b"0000000000000000abcdefghijklmnopqrstuvwx");
        assert_eq!(payloads.of(0x1b), b"000000000000001bbcdefghijklmnopqrstuvwxy");
        assert_eq!(Payloads::new(16).of(u64::MAX), b"ffffffffffffffff");
    }
}
