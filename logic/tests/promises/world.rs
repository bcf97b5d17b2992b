//! One run of a program: lives of logic one after the other, the gateways and devices around them,
//! and what is looked at when everything has come to rest.
//!
//! A life of logic is a runtime of one thread. It runs only while the program lets it, turn by turn,
//! and dies by being dropped where it stands: what its tasks held is gone, as after kill -9.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt as _;
use millrace_logic::{
    chat::{
        Chat, ChatSettings, Foundation, MessageSettings, NoProfiles, NoWords, OpenPresence,
        OpenRooms,
    },
    login::{ClaimRules, Hs256Verifier},
    registry::{MemoryRegistry, MemoryRegistrySettings},
    storage::{Store as _, conversation_id},
};
use millrace_logic_sdk::{
    Encoding, ServerSettings,
    testing::{FakeGateway, FakeGatewaySettings, InProcess, listed_session, login_request},
};
use millrace_protocol::{
    Code,
    chat::{
        CreateGroup, Delete, DeliverAck, InviteToGroup, JoinGroup, LeaveGroup, Read,
        RemoveFromGroup, Revoke, SendMessage, UpdateConversation,
    },
    command,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
};

use crate::{
    bed::Bed,
    device::{Device, Pending, Session},
    history::{Row, Seen},
    probe::{Probe, Watched},
    program::{Bounds, DEVICES_PER_USER, GATEWAYS, GROUPS, Op, Point, Program, Step, USERS},
};

const SECRET: &str = "a secret of the tests, long enough for HS256";

/// Turns without anything new after which nothing more is expected. A chain of tasks that wake each
/// other is some twenty turns long.
const QUIET_TURNS: usize = 250;

/// Turns after which it is a failure that there is no rest.
const TURNS_MAX: usize = 200_000;

/// What a run came to, as far as two runs of one program can be compared.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// What became durable, in order.
    pub log: Vec<String>,
    /// Of each user: the list, and what each conversation holds.
    pub views: Vec<String>,
    /// What was pushed to each device, in order.
    pub pushes: Vec<Vec<String>>,
    /// How often logic died, and where.
    pub deaths: BTreeMap<String, usize>,
}

struct Life {
    runtime: Arc<Runtime>,
    link: InProcess<Chat>,
}

struct Gateway {
    name: String,
    epoch: u64,
    stream: Option<FakeGateway>,
}

pub struct World<'a> {
    bed: &'a mut Bed,
    /// Of all names in this world.
    prefix: String,
    seed: u64,
    bounds: Bounds,
    probe: Arc<Probe>,
    life: Option<Life>,
    gateways: Vec<Gateway>,
    devices: Vec<Device>,
    tokens: Vec<String>,
    /// Where logic is to die, and whether the store is opened anew then.
    doom: Option<(Point, bool)>,
    next_session: u64,
    next_request: u32,
    next_message: u64,
    lives: u64,
    found: Found,
}

/// Runs a program on a store.
///
/// # Errors
/// Which promise was broken.
pub fn run(bed: &mut Bed, program: &Program) -> Result<Found, String> {
    let mut world = World::new(bed, program);
    for (index, step) in program.steps.iter().enumerate() {
        world.step(step).map_err(|wrong| format!("step {index}, {:?}: {wrong}", step.op))?;
    }
    world.finish().map_err(|wrong| format!("at the end: {wrong}"))
}

impl<'a> World<'a> {
    fn new(bed: &'a mut Bed, program: &Program) -> Self {
        let prefix = format!("w{:06}", bed.new_world());
        let user = |n: usize| format!("{prefix}u{n}");
        let devices = (0..USERS * DEVICES_PER_USER)
            .map(|n| Device::new(user(n / DEVICES_PER_USER), format!("device-{n}")));
        let gateways =
            (0..GATEWAYS).map(|n| Gateway { name: format!("gateway-{n}"), epoch: 1, stream: None });
        let mut world = Self {
            seed: program.seed,
            bounds: program.bounds.clone(),
            probe: Arc::default(),
            life: None,
            gateways: gateways.collect(),
            devices: devices.collect(),
            tokens: (0..USERS).map(|n| token(&user(n))).collect(),
            doom: None,
            next_session: 1,
            next_request: 1,
            next_message: 1,
            lives: 0,
            found: Found::default(),
            prefix,
            bed,
        };
        world.start();
        world
    }

    fn user(&self, n: usize) -> String {
        format!("{}u{}", self.prefix, n % USERS)
    }

    fn group(&self, n: usize) -> String {
        format!("{}g{}", self.prefix, n % GROUPS)
    }

    // --- lives --------------------------------------------------------------------------------------

    fn settings(&self) -> ChatSettings {
        let Bounds {
            queued_max,
            commit_writes_max,
            commits_in_flight_max,
            deliver_messages_max,
            catch_up_messages_max,
            receipts_gathered,
            ..
        } = self.bounds;
        let plenty = 1_000_000_000;
        ChatSettings {
            writes_queued_max: queued_max,
            reads_queued_max: queued_max,
            commit_writes_max,
            commits_in_flight_max,
            commits_queued_max: queued_max.min(4),
            deliver_messages_max,
            catch_up_messages_max,
            // Nothing waits for a clock: a run is as fast as it can be, and always the same.
            cursor_delay: Duration::ZERO,
            commit_interval: Duration::ZERO,
            catch_up_pause: Duration::ZERO,
            receipt_interval: match receipts_gathered {
                0 => Duration::ZERO,
                _ => Duration::from_secs(3_600),
            },
            receipts_pending_max: receipts_gathered.max(1),
            frames_per_second_max: plenty,
            frames_burst_max: plenty,
            messages_per_second_max: plenty,
            messages_burst_max: plenty,
            pulls_per_second_max: plenty,
            pulls_burst_max: plenty,
            logins_per_second_max: plenty,
            logins_burst_max: plenty,
            messages: MessageSettings {
                revoke_limit: Duration::from_secs(3_600),
                expiry_interval: Duration::from_secs(3_600),
                ..MessageSettings::default()
            },
            ..ChatSettings::default()
        }
    }

    /// Starts logic; the gateways connect and list their sessions.
    fn start(&mut self) {
        self.lives += 1;
        self.probe.arm(None);
        let runtime = Builder::new_current_thread()
            .enable_time()
            .event_interval(1)
            .global_queue_interval(1)
            .build()
            .expect("a runtime");
        let opened = self.bed.opened();
        let store = Watched::new(
            opened.store.clone(),
            self.probe.clone(),
            self.seed.wrapping_add(self.lives << 32),
        );
        let foundation = Foundation {
            store: Arc::new(store),
            registry: Arc::new(MemoryRegistry::new(MemoryRegistrySettings::default())),
            bus: opened.bus.clone(),
            notices: opened.notices.clone(),
            verifier: Arc::new(
                Hs256Verifier::new(SECRET.as_bytes(), &ClaimRules::default()).expect("long enough"),
            ),
            rooms: Arc::new(OpenRooms),
            revocations: opened.revocations.clone(),
            presence: Arc::new(OpenPresence),
            gates: vec![],
            search: None,
            words: Arc::new(NoWords),
            profiles: Arc::new(NoProfiles),
            peers: None,
            directory: opened.directory.clone(),
            push: None,
        };
        let settings = self.settings();
        let server = ServerSettings {
            batch_events_max: self.bounds.batch_events_max,
            ..ServerSettings::default()
        };
        let link = runtime.block_on(async {
            InProcess::start(server, |gateways| Chat::start(foundation, settings, gateways))
        });
        self.life = Some(Life { runtime: Arc::new(runtime), link });
        for gateway in 0..GATEWAYS {
            self.connect(gateway);
        }
    }

    /// Logic dies where it stands, and comes back.
    fn kill(&mut self, reopen: bool, cause: String) {
        *self.found.deaths.entry(cause).or_default() += 1;
        for gateway in &mut self.gateways {
            gateway.stream = None;
        }
        self.life = None;
        if reopen {
            self.bed.reopen();
        }
        self.start();
    }

    /// Opens the stream of a gateway and lists its sessions. A login that was not answered is void,
    /// and so is its connection.
    fn connect(&mut self, number: usize) {
        let mut sessions = Vec::new();
        for device in &mut self.devices {
            let Some(session) = device.session.filter(|session| session.gateway == number) else {
                continue;
            };
            if session.is_live {
                let mut listed = listed_session(session.id, &device.user, Encoding::Protobuf);
                listed.device_id = device.name.clone();
                sessions.push(listed);
                device.interrupted();
            } else {
                device.gone();
            }
        }
        let gateway = &mut self.gateways[number];
        gateway.stream = None;
        let settings = FakeGatewaySettings {
            gateway_id: gateway.name.clone(),
            gateway_epoch: gateway.epoch,
            heartbeats: false,
            sessions,
            ..FakeGatewaySettings::default()
        };
        let life = self.life.as_ref().expect("logic lives");
        let stream = life.runtime.block_on(async {
            tokio::select! {
                biased;
                stream = life.link.connect(settings) => Some(stream.expect("linked")),
                // Who stands still answers nobody.
                () = async { while !self.probe.is_hit() { yield_now().await } } => None,
            }
        });
        match stream {
            Some(stream) => gateway.stream = Some(stream),
            None => self.die_if_due(),
        }
    }

    fn runtime(&self) -> Arc<Runtime> {
        self.life.as_ref().expect("logic lives").runtime.clone()
    }

    // --- steps --------------------------------------------------------------------------------------

    fn step(&mut self, step: &Step) -> Result<(), String> {
        self.die_if_due();
        match step.op {
            Op::Kill { reopen } => self.kill(reopen, "anywhere".into()),
            Op::BreakLink { gateway } => self.connect(gateway),
            Op::KillGateway { gateway } => {
                self.gateways[gateway].epoch += 1;
                for device in &mut self.devices {
                    if device.session.is_some_and(|session| session.gateway == gateway) {
                        device.gone();
                    }
                }
                self.connect(gateway);
            }
            Op::KillAt { point, after, reopen } => {
                self.doom = Some((point, reopen));
                self.probe.arm(Some((point, after)));
            }
            Op::KillInFanOut { gateway, events } => {
                let runtime = self.runtime();
                runtime.block_on(async {
                    self.send().await;
                    for _ in 0..step.turns {
                        yield_now().await;
                    }
                    let stream = self.gateways[gateway].stream.as_mut().expect("linked");
                    for _ in 0..events {
                        let _read = stream.receive().now_or_never();
                    }
                });
                drop(runtime);
                self.hear()?;
                self.kill(false, "in a fan-out".into());
            }
            Op::Rest => self.rest()?,
            _ => self.act(&step.op),
        }
        self.turns(step.turns, step.readers)
    }

    /// What devices do.
    fn act(&mut self, op: &Op) {
        match *op {
            Op::Login { device, gateway } => {
                if self.devices[device].session.is_some() {
                    return;
                }
                let id = self.next_session;
                self.next_session += 1;
                let gateway = gateway % GATEWAYS;
                let user = self.devices[device].user.clone();
                let session = Session { gateway, id, is_live: false };
                self.devices[device].session = Some(session);
                let token = &self.tokens[device / DEVICES_PER_USER];
                let name = &self.devices[device].name;
                let request = login_request(id, &user, token, name, "", Encoding::Protobuf);
                let runtime = self.runtime();
                let stream = self.gateways[gateway].stream.as_mut().expect("linked");
                runtime.block_on(stream.send_login(request));
            }
            Op::Logout { device } => {
                let Some(session) = self.devices[device].session else { return };
                let runtime = self.runtime();
                let stream = self.gateways[session.gateway].stream.as_mut().expect("linked");
                runtime.block_on(stream.end_session(session.id, Code::PeerGone));
                self.devices[device].gone();
            }
            Op::Reinstall { device } => self.devices[device].reinstall(),
            Op::Send { device, to, counts } => {
                let number = self.next_message;
                self.next_message += 1;
                let (mut user_id, mut group_id) = (String::new(), String::new());
                match to.checked_sub(USERS) {
                    None => user_id = self.user(to),
                    Some(group) => group_id = self.group(group),
                }
                self.devices[device].send(SendMessage {
                    client_message_id: format!("m{number}"),
                    user_id,
                    group_id,
                    r#type: 1,
                    body: format!("body {number}"),
                    does_not_count: !counts,
                    ..SendMessage::default()
                });
            }
            Op::SendAgain { device, which } => self.devices[device].send_again(which),
            Op::Acknowledge { device, talk, back, wants_reply } => {
                let Some((conversation_id, sequence)) = self.newest(device, talk, back) else {
                    return;
                };
                let pending = Pending::Acknowledge(conversation_id.clone(), sequence);
                let ack = DeliverAck { conversation_id, sequence };
                let pending = wants_reply.then_some(pending);
                self.devices[device].request(command::DELIVER_ACK, &ack, pending);
            }
            Op::Read { device, talk, back } => {
                let Some((conversation_id, sequence)) = self.newest(device, talk, back) else {
                    return;
                };
                let pending = Pending::Read(conversation_id.clone(), sequence);
                let read = Read { conversation_id, sequence };
                self.devices[device].request(command::READ, &read, Some(pending));
            }
            Op::Revoke { device, talk, back } => {
                let user = self.devices[device].user.clone();
                let Some((conversation_id, _)) = self.newest(device, talk, 0) else { return };
                let messages = &self.devices[device].app.talks[&conversation_id].messages;
                let own = messages.iter().rev().filter(|(_, seen)| seen.1 == user);
                let Some((&sequence, _)) = own.clone().nth(back as usize).or(own.clone().next())
                else {
                    return;
                };
                let pending = Pending::Revoke(conversation_id.clone(), sequence);
                let revoke = Revoke { conversation_id, sequence };
                self.devices[device].request(command::REVOKE, &revoke, Some(pending));
            }
            Op::Delete { device, talk, back } => {
                let Some((conversation_id, sequence)) = self.newest(device, talk, back) else {
                    return;
                };
                let pending = Pending::Delete(conversation_id.clone(), sequence);
                let delete = Delete { conversation_id, sequences: vec![sequence] };
                self.devices[device].request(command::DELETE, &delete, Some(pending));
            }
            Op::Join { device, group } => {
                let group_id = self.group(group);
                if self.group_exists(&group_id) {
                    let join = JoinGroup { group_id, ..JoinGroup::default() };
                    let pending = Some(Pending::Act);
                    return self.devices[device].request(command::JOIN_GROUP, &join, pending);
                }
                self.create(device, group_id);
            }
            Op::Leave { device, group } => {
                let leave = LeaveGroup { group_id: self.group(group) };
                let pending = Some(Pending::Act);
                self.devices[device].request(command::LEAVE_GROUP, &leave, pending);
            }
            Op::Invite { device, group, user } => {
                let group_id = self.group(group);
                if !self.group_exists(&group_id) {
                    return self.create(device, group_id);
                }
                let invite = InviteToGroup { group_id, user_ids: vec![self.user(user)] };
                let pending = Some(Pending::Act);
                self.devices[device].request(command::INVITE_TO_GROUP, &invite, pending);
            }
            Op::Remove { device, group, user } => {
                let (group_id, user_ids) = (self.group(group), vec![self.user(user)]);
                let remove = RemoveFromGroup { group_id, user_ids };
                let pending = Some(Pending::Act);
                self.devices[device].request(command::REMOVE_FROM_GROUP, &remove, pending);
            }
            Op::Mute { device, talk, on } => {
                let Some((conversation_id, _)) = self.newest(device, talk, 0) else { return };
                let update = UpdateConversation {
                    conversation_id,
                    do_not_disturb: Some(on),
                    ..UpdateConversation::default()
                };
                let pending = Some(Pending::Mute);
                self.devices[device].request(command::UPDATE_CONVERSATION, &update, pending);
            }
            Op::Sync { device } => self.devices[device].synchronise(),
            Op::BreakLink { .. }
            | Op::KillGateway { .. }
            | Op::Kill { .. }
            | Op::KillAt { .. }
            | Op::KillInFanOut { .. }
            | Op::Rest => {}
        }
    }

    fn group_exists(&self, group_id: &str) -> bool {
        let history = self.probe.history();
        let talk = history.talks.get(&conversation_id::group(group_id));
        talk.is_some_and(|talk| talk.members.values().any(|member| member.quit.is_none()))
    }

    /// Whoever wants into a group that is not there makes it, open to all, with two others.
    fn create(&mut self, device: usize, group_id: String) {
        let user = device / DEVICES_PER_USER;
        let create = CreateGroup {
            name: group_id.clone(),
            group_id,
            members: vec![self.user(user + 1), self.user(user + 2)],
            join_rule: 1,
            ..CreateGroup::default()
        };
        let pending = Some(Pending::Act);
        self.devices[device].request(command::CREATE_GROUP, &create, pending);
    }

    /// A conversation of a device, and the newest message up to which it has everything, less
    /// `back`. Cursors never go where the device has a gap: a message that it acknowledged
    /// unseen would be its own fault.
    fn newest(&self, device: usize, talk: usize, back: u64) -> Option<(String, u64)> {
        let app = &self.devices[device].app;
        let (id, kept) = app.talks.iter().nth(talk % app.talks.len().max(1))?;
        let first = *kept.messages.keys().next()?;
        let whole = kept.messages.keys().zip(first..).take_while(|(n, expected)| **n == *expected);
        let last = *whole.last()?.0;
        let sequence = last.saturating_sub(back).max(first);
        Some((id.clone(), sequence))
    }

    // --- time ---------------------------------------------------------------------------------------

    /// Sends what the devices have to say.
    async fn send(&mut self) {
        for device in &mut self.devices {
            let outgoing = std::mem::take(&mut device.outgoing);
            let Some(session) = device.live() else { continue };
            let stream = self.gateways[session.gateway].stream.as_mut().expect("linked");
            for request in outgoing {
                let request_id = match request.pending {
                    None => 0,
                    Some(pending) => {
                        let id = self.next_request;
                        self.next_request += 1;
                        device.pending.insert(id, pending);
                        id
                    }
                };
                let body = Bytes::from(request.body);
                stream.send(session.id, request.command, request_id, body).await;
            }
        }
    }

    /// Gives the devices what their gateways have read.
    fn hear(&mut self) -> Result<bool, String> {
        let history = self.probe.history();
        let mut heard = false;
        for device in &mut self.devices {
            let Some(session) = device.session else { continue };
            let stream = self.gateways[session.gateway].stream.as_mut().expect("linked");
            if !session.is_live {
                let Some(result) = stream.take_login_result(session.id) else { continue };
                heard = true;
                if result.code != 0 {
                    return Err(format!("{} was refused: {result:?}", device.user));
                }
                device.session = Some(Session { is_live: true, ..session });
                device.entered();
            }
            while let Some(frame) = stream.take_frame(session.id) {
                heard = true;
                device
                    .receive(&frame, &history)
                    .map_err(|wrong| format!("{} of {}: {wrong}", device.name, device.user))?;
            }
        }
        Ok(heard)
    }

    fn read(&mut self, readers: u8) -> Result<(), String> {
        for (number, gateway) in self.gateways.iter_mut().enumerate() {
            let stream = gateway.stream.as_mut().expect("linked");
            if readers & (1 << number) != 0 && !stream.read_now() {
                return Err(format!("the stream of {} has ended", gateway.name));
            }
            while stream.closes() > 0 {
                // A session that has gone already may be closed too: the end was still under way.
                let Some(Some(close)) = stream.next_close().now_or_never() else { break };
                let is_alive = |device: &Device| {
                    device.session.is_some_and(|session| session.id == close.session_id)
                };
                if self.devices.iter().any(is_alive) {
                    return Err(format!("a session was closed: {close:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_commits(&self) -> Result<(), String> {
        self.probe.broken().map_or(Ok(()), Err)
    }

    /// Lets logic run for some turns, then some of the gateways read.
    fn turns(&mut self, turns: usize, readers: u8) -> Result<(), String> {
        let runtime = self.runtime();
        let outcome = runtime.block_on(async {
            self.send().await;
            for _ in 0..turns {
                yield_now().await;
                if self.probe.is_hit() {
                    break;
                }
            }
            self.read(readers)
        });
        drop(runtime);
        outcome?;
        self.hear()?;
        self.check_commits()?;
        self.die_if_due();
        Ok(())
    }

    fn die_if_due(&mut self) {
        if self.probe.is_hit() {
            let (cause, reopen) = match self.doom.take() {
                Some((point, reopen)) => (format!("at {point:?}"), reopen),
                None => ("anywhere".to_owned(), false),
            };
            self.kill(reopen, cause);
        }
    }

    /// Lets everything come to rest.
    fn settle(&mut self) -> Result<(), String> {
        let mut quiet = 0;
        let mut calls = self.probe.calls();
        for _ in 0..TURNS_MAX {
            let runtime = self.runtime();
            let read = runtime.block_on(async {
                self.send().await;
                yield_now().await;
                self.read(u8::MAX)
            });
            drop(runtime);
            read?;
            let heard = self.hear()?;
            self.check_commits()?;
            if self.probe.is_hit() {
                self.die_if_due();
                quiet = 0;
                continue;
            }
            let now = self.probe.calls();
            let speaks = self.devices.iter().any(|device| !device.outgoing.is_empty());
            let is_quiet = !heard && now == calls && self.probe.is_idle() && !speaks;
            calls = now;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet >= QUIET_TURNS {
                return Ok(());
            }
        }
        Err("there is no end to it".into())
    }

    // --- what must hold -----------------------------------------------------------------------------

    /// Lets everything come to rest and looks at what must hold then.
    fn rest(&mut self) -> Result<(), String> {
        self.settle()?;
        let history = self.probe.history();
        for device in &self.devices {
            if let Some(session) = device.session
                && !session.is_live
            {
                return Err(format!("the login of {} was never answered", device.name));
            }
            let Some(_) = device.live() else { continue };
            if !device.pending.is_empty() {
                return Err(format!("{} still waits for {:?}", device.name, device.pending));
            }
            if let Some(own) = device.own.iter().find(|own| own.answer.is_none()) {
                return Err(format!("{} has no answer for {own:?}", device.name));
            }
            for (id, talk, member) in history.of(&device.user) {
                if member.quit.is_some() {
                    continue;
                }
                let kept = device.app.talks.get(id);
                let known = |n: &u64| kept.is_some_and(|kept| kept.messages.contains_key(n));
                // Promise 3: what the user's cursor has not passed is on every device that is
                // online, the newest ones without a question.
                let undelivered = (member.init.max(member.delivered) + 1..=talk.top(member)).rev();
                let missing: Vec<u64> = undelivered
                    .take(self.bounds.catch_up_messages_max)
                    .filter(|n| !known(n))
                    .collect();
                if !missing.is_empty() {
                    return Err(format!("{} was not sent {missing:?} of {id}", device.name));
                }
                // And everything on one whose connection was never interrupted.
                if !device.is_synced {
                    continue;
                }
                // Promise 4; who joins starts with a cursor that nobody tells of.
                let read = device.read_of(id).max(member.init);
                if self.bounds.receipts_gathered == 0
                    && member.spans.len() == 1
                    && read != member.read
                {
                    let (name, is) = (&device.name, member.read);
                    return Err(format!("{name} believes {id} read up to {read}, not {is}"));
                }
                for n in member.init + 1..=talk.top(member) {
                    let expected = talk.seen(member, n);
                    let found = kept.and_then(|kept| kept.messages.get(&n));
                    if found != Some(&expected) {
                        return Err(format!(
                            "{} has {found:?} as {n} of {id}, and it is {expected:?}",
                            device.name
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Everybody comes online and asks for what is new; then every device has the same as the
    /// server, and the server what follows from everything that was done.
    fn finish(mut self) -> Result<Found, String> {
        self.probe.arm(None);
        self.rest()?;
        for device in 0..self.devices.len() {
            self.act(&Op::Login { device, gateway: device });
        }
        self.rest()?;
        for device in &mut self.devices {
            device.synchronise();
        }
        self.rest()?;
        self.compare()?;
        let mut found = std::mem::take(&mut self.found);
        let plain = |text: &str| text.replace(&self.prefix, "");
        found.log = self.probe.history().log.iter().map(|line| plain(line)).collect();
        found.pushes = self
            .devices
            .iter()
            .map(|device| device.trace.iter().map(|line| plain(line)).collect())
            .collect();
        Ok(found)
    }

    fn compare(&mut self) -> Result<(), String> {
        let history = self.probe.history();
        let mut views = Vec::new();
        for user in 0..USERS {
            let user = self.user(user);
            let store = &self.bed.opened().store;
            let list = self.bed.ask(store.conversations(&user, 0, 1_000));
            let list = list.map_err(|error| error.to_string())?;
            let mut rows: BTreeMap<&String, Row> =
                list.conversations.iter().map(|row| (&row.conversation_id, Row::of(row))).collect();
            for (id, talk, member) in history.of(&user) {
                // From what was done …
                let row = talk.row(&user, member);
                let seen: BTreeMap<u64, Seen> = (member.init + 1..=talk.top(member))
                    .map(|n| (n, talk.seen(member, n)))
                    .collect();
                // … to what the server says of it …
                let found = rows.remove(id);
                if found.as_ref() != Some(&row) {
                    return Err(format!("{user} has the row {found:?} of {id}, not {row:?}"));
                }
                let page = self.bed.ask(store.page(&user, id, 0, 0, 1_000, false));
                let page = page.map_err(|error| error.to_string())?;
                let stored: BTreeMap<u64, Seen> = page
                    .messages
                    .into_iter()
                    .map(|m| (m.sequence, (m.message_id, m.sender_id, m.body, m.state)))
                    .collect();
                if stored != seen {
                    return Err(format!("the server keeps {stored:?} of {id}, not {seen:?}"));
                }
                // … to what every device has.
                for device in self.devices.iter().filter(|device| device.user == user) {
                    let kept = device.app.talks.get(id);
                    let found = kept.and_then(|kept| kept.row.clone());
                    // Who has left is told nothing more, also not what was revoked.
                    let found = found.map(|found| match row.quit {
                        true => Row { unread: row.unread, ..found },
                        false => found,
                    });
                    if found.as_ref() != Some(&row) {
                        return Err(format!("{} has {found:?} of {id}, not {row:?}", device.name));
                    }
                    let has = kept.map(|kept| &kept.messages);
                    let is_same = has.is_some_and(|has| {
                        has.len() == seen.len()
                            && has.iter().zip(&seen).all(|(has, seen)| {
                                has == seen || (row.quit && has.0 == seen.0 && has.1.3 < seen.1.3)
                            })
                    });
                    if !is_same {
                        return Err(format!("{} has {has:?} of {id}, not {seen:?}", device.name));
                    }
                }
                let texts: Vec<_> = seen.iter().map(|(n, s)| (n, &s.1, &s.2, s.3)).collect();
                let view = format!("{user} {id} {row:?} {texts:?}");
                views.push(view.replace(&self.prefix, ""));
            }
            if !rows.is_empty() {
                return Err(format!("{user} has rows of nothing: {rows:?}"));
            }
        }
        self.found.views = views;
        Ok(())
    }
}

fn token(user_id: &str) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    // In the year 2100.
    let claims = serde_json::json!({ "sub": user_id, "exp": 4_102_444_800_u64 });
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

impl Drop for World<'_> {
    /// The store may be opened anew by the next world, so this one lets go of it.
    fn drop(&mut self) {
        for gateway in &mut self.gateways {
            gateway.stream = None;
        }
        self.life = None;
    }
}
