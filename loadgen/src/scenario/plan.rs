//! From a scenario to what the engine runs: the users, the schedules and the stages in time.

use std::ops::Range;

use millrace_service::{Duration, Invalid};

use super::{Protocol, Scenario, StageKind, TransportKind};
use crate::{
    pacer::Slope,
    population::{Part, Population},
    threshold::Threshold,
};

/// What a schedule does at each of its moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A user writes to another one.
    Single,
    /// A user writes to its group.
    Group,
    /// The publisher writes to the room.
    Room,
    /// A user goes for a while.
    Churn,
    /// A user sends a heartbeat.
    Heartbeat,
    /// A visitor is called.
    Call,
    /// A user's connection ends, and it comes back.
    Storm,
    /// A user sends a frame of a team's own backend: which kind.
    Custom(usize),
}

/// A schedule: what happens how often, to whom.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What happens.
    pub act: Act,
    /// To one of these users.
    pub users: Range<u32>,
    /// How often, per second, at full load and over all threads.
    pub per_second: f64,
    /// When: along the stages, or within a span of its own after the start of the load.
    pub span_ns: Option<Range<u64>>,
}

/// A frame of a team's own backend.
#[derive(Clone, Debug)]
pub struct CustomFrame {
    /// The command.
    pub command: u16,
    /// A reply is awaited.
    pub reply: bool,
    /// The body, or its template.
    pub body: CustomBody,
}

/// The body of a [`CustomFrame`].
#[derive(Clone, Debug)]
pub enum CustomBody {
    /// As it is.
    Bytes(Vec<u8>),
    /// With `{user}` and `{number}` to be filled in.
    Template(String),
}

/// A stage in time.
#[derive(Clone, Debug)]
pub struct PlannedStage {
    /// What it is called.
    pub name: String,
    /// `ramp`, `steady`, `spike`, `soak` or `step`.
    pub kind: &'static str,
    /// When it begins, from the start of the load.
    pub offset_ns: u64,
    /// Its length and its load.
    pub slope: Slope,
    /// What must hold in it.
    pub thresholds: Vec<Threshold>,
    /// It is a step of a breakpoint search: a threshold that is missed ends the load.
    pub is_step: bool,
}

/// What the engine runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What they speak.
    pub protocol: Protocol,
    /// Who the users are.
    pub population: Population,
    /// What they do.
    pub streams: Vec<Stream>,
    /// Frames of a team's own backend, by number.
    pub custom: Vec<CustomFrame>,
    /// When, and how much of it.
    pub stages: Vec<PlannedStage>,
    /// Users below this index send their next heartbeat when the last one is answered.
    pub beats_closed_below: u32,
    /// Users below this index send their next message when the last one is acknowledged.
    pub chat_closed_below: u32,
    /// Visitors stay for so long.
    pub visit_ns: u64,
    /// Who went in a reconnect storm comes back after a random part of this.
    pub storm_back_ns: u64,
}

impl Plan {
    /// Length of the load.
    pub fn load_ns(&self) -> u64 {
        self.stages.iter().map(|stage| stage.slope.duration_ns).sum()
    }

    /// The stages' slopes.
    pub fn slopes(&self) -> Vec<Slope> {
        self.stages.iter().map(|stage| stage.slope).collect()
    }

    /// What the schedules ask for at full load, per second.
    pub fn per_second(&self) -> f64 {
        let along = self.streams.iter().filter(|stream| stream.span_ns.is_none());
        along.filter(|stream| stream.act != Act::Churn).map(|stream| stream.per_second).sum()
    }

    /// Whether a part of the load waits for answers.
    pub fn has_closed_loop(&self) -> bool {
        self.beats_closed_below > 0 || self.chat_closed_below > 0
    }

    /// Whether users write to each other.
    pub fn has_single_chat(&self) -> bool {
        self.chat_closed_below > 0 || self.streams.iter().any(|stream| stream.act == Act::Single)
    }

    /// Whether there are messages to verify.
    pub fn has_messages(&self) -> bool {
        let is_message = |act: &Act| matches!(act, Act::Single | Act::Group | Act::Room);
        self.chat_closed_below > 0 || self.streams.iter().any(|stream| is_message(&stream.act))
    }
}

/// The share of WebSockets where all come by one transport.
fn websocket_share_of(transport: TransportKind) -> f64 {
    if transport == TransportKind::WebSocket { 1.0 } else { 0.0 }
}

fn ns(duration: Duration) -> u64 {
    duration.as_millis() * 1_000_000
}

/// Reads pairs of hexadecimal digits; spaces between them are allowed.
pub fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some((value(*high)? << 4 | value(*low)?) as u8),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

impl Scenario {
    /// What the engine runs, for the run of this number.
    ///
    /// # Errors
    /// A behaviour finds too few users.
    pub fn plan(&self, run: u32) -> Result<Plan, Invalid> {
        let share = self.protocol.transport().map_or(0.5, websocket_share_of);
        let mut population = Population::uniform(self.connections, share, &self.user_prefix, run);
        if !self.population.is_empty() {
            population.parts = self.parts()?;
        }
        let mut streams = Vec::new();
        let mut stream = |act: Act, users: Range<u32>, per_second: f64| {
            if per_second > 0.0 && !users.is_empty() {
                streams.push(Stream { act, users, per_second, span_ns: None });
            }
        };
        let regulars = regulars(&population);
        let users = |name: &Option<String>| match name {
            Some(name) => population.parts.iter().find(|part| part.name == *name),
            None => None,
        };
        let range = |name: &Option<String>| {
            users(name).map_or_else(|| regulars.clone(), |part| part.users.clone())
        };
        if let Some(chat) = &self.single_chat {
            stream(Act::Single, range(&chat.population), chat.per_second);
        }
        let (mut groups, mut group_first, mut group_size) = (0, 0, 0);
        if let Some(chat) = self.group_chat.as_ref().filter(|chat| chat.per_second > 0.0) {
            let members = range(&chat.population);
            group_size = chat.group_size;
            let fitting = members.len() as u32 / group_size;
            if fitting == 0 {
                let message = format!("is {group_size}, and there are {} users", members.len());
                return Err(Invalid::new("group_chat.group_size", message));
            }
            groups = chat.groups.unwrap_or(chat.per_second.ceil() as u32).clamp(1, fitting);
            group_first = members.start;
            stream(Act::Group, group_first..group_first + groups * group_size, chat.per_second);
        }
        let (mut room_size, mut room_first) = (0, 0);
        if let Some(room) = &self.room_broadcast {
            let members = range(&room.population);
            room_size = room.members.unwrap_or(members.len() as u32);
            room_first = members.start;
            if room_size as usize > members.len() || room_size == 1 {
                let message = format!("{room_size} of {} users cannot be in it", members.len());
                return Err(Invalid::new("room_broadcast.members", message));
            }
            stream(Act::Room, room_first..room_first + 1, room.per_second);
        }
        if let Some(churn) = &self.presence_churn {
            let users = range(&churn.population);
            let per_second = churn.share_per_minute / 60.0 * users.len() as f64;
            stream(Act::Churn, users, per_second);
        }
        if let Some(beat) = &self.heartbeat {
            stream(Act::Heartbeat, range(&beat.population), beat.per_second);
        }
        if let Some(storm) = &self.login_storm {
            let visitors = range(&Some(storm.population.clone()));
            stream(Act::Call, visitors, storm.per_second);
        }
        let mut custom = Vec::new();
        for (number, frame) in self.custom.iter().enumerate() {
            stream(Act::Custom(number), range(&frame.population), frame.per_second);
            let body = match (&frame.body, &frame.body_hex) {
                (Some(text), _) => CustomBody::Template(text.clone()),
                (None, digits) => {
                    CustomBody::Bytes(digits.as_deref().and_then(hex).unwrap_or_default())
                }
            };
            custom.push(CustomFrame { command: frame.command, reply: frame.reply, body });
        }
        if let Some(storm) = &self.reconnect_storm {
            let within_ns = ns(storm.within);
            let sessions = (regulars.len() as f64 * storm.share).round();
            let at = ns(storm.at);
            streams.push(Stream {
                act: Act::Storm,
                users: regulars,
                per_second: sessions / (within_ns as f64 / 1e9),
                span_ns: Some(at..at + within_ns),
            });
        }
        (population.groups, population.group_first, population.group_size) =
            (groups, group_first, group_size);
        (population.room_size, population.room_first) = (room_size, room_first);
        let storm = self.reconnect_storm.as_ref();
        Ok(Plan {
            protocol: self.protocol,
            population,
            streams,
            custom,
            stages: self.planned_stages(),
            beats_closed_below: self.heartbeat.as_ref().map_or(0, |beat| beat.closed_loop),
            chat_closed_below: self.single_chat.as_ref().map_or(0, |chat| chat.closed_loop),
            visit_ns: self.login_storm.as_ref().map_or(0, |storm| ns(storm.stay)),
            storm_back_ns: storm.map_or(0, |storm| ns(storm.back_within)),
        })
    }

    fn parts(&self) -> Result<Vec<Part>, Invalid> {
        let mut start = 0;
        let parts = self.population.iter().zip(self.counts()?).map(|(section, count)| {
            let share = match self.protocol.transport().unwrap_or(section.transport) {
                TransportKind::Mixed => section.websocket_share,
                own => websocket_share_of(own),
            };
            let mut part = Part::new(&section.name, start..start + count, share);
            start += count;
            part.devices =
                section.devices.iter().map(|(name, weight)| (name.clone(), *weight)).collect();
            part.heartbeats = section.heartbeats;
            part.reconnects = section.reconnects;
            let is = |name: Option<&String>| name == Some(&section.name);
            part.visits = is(self.login_storm.as_ref().map(|storm| &storm.population));
            if is(self.slow_reader.as_ref().map(|slow| &slow.population)) {
                let pause = self.slow_reader.as_ref().map(|slow| slow.pause).unwrap_or_default();
                part.slow_reader_pause_ms = pause.as_millis_u32();
            }
            part
        });
        Ok(parts.filter(|part| !part.users.is_empty()).collect())
    }

    fn planned_stages(&self) -> Vec<PlannedStage> {
        let mut planned = Vec::new();
        let mut offset_ns = 0;
        for stage in self.stages() {
            let duration_ns = ns(stage.duration);
            let (kind, slopes): (_, Vec<(f64, f64)>) = match stage.kind {
                StageKind::Ramp => ("ramp", vec![(stage.from, stage.to)]),
                StageKind::Steady => ("steady", vec![(stage.load, stage.load)]),
                StageKind::Spike => ("spike", vec![(stage.load, stage.load)]),
                StageKind::Soak => ("soak", vec![(stage.load, stage.load)]),
                StageKind::Breakpoint => {
                    let steps = f64::from(stage.steps - 1);
                    let load =
                        |step: u32| stage.from + (stage.to - stage.from) * f64::from(step) / steps;
                    ("step", (0..stage.steps).map(load).map(|load| (load, load)).collect())
                }
            };
            let is_step = stage.kind == StageKind::Breakpoint;
            let count = slopes.len();
            for (number, (from, to)) in slopes.into_iter().enumerate() {
                let base = if stage.name.is_empty() { kind } else { stage.name.as_str() };
                let name = match is_step {
                    true => format!("{base} {} of {count}", number + 1),
                    false => base.to_owned(),
                };
                planned.push(PlannedStage {
                    name,
                    kind,
                    offset_ns,
                    slope: Slope { duration_ns, from, to },
                    thresholds: stage.thresholds.clone(),
                    is_step,
                });
                offset_ns += duration_ns;
            }
        }
        planned
    }
}

/// Who is there from the start: everybody but the visitors. The first stretch of them, if visitors
/// stand between.
pub(crate) fn regulars(population: &Population) -> Range<u32> {
    let mut regulars = population.parts.iter().skip_while(|part| part.visits);
    let first = regulars.next().map_or(0..0, |part| part.users.clone());
    let end = regulars.take_while(|part| !part.visits).last().map_or(first.end, |p| p.users.end);
    first.start..end
}
