//! The client's connection and session: connect, upgrade, LOGIN, heartbeats, GOAWAY, every way a
//! connection can end, and the way back with full jitter.

use std::io;

use millrace_protocol::{
    Code,
    code::After,
    command,
    frame::{Flags, Header},
    session,
};
use prost::Message;

use super::{
    Client, Context, NS_PER_MS, Pending, Request, Stage, Wish,
    wire::{self, Event, Wire},
};
use crate::{
    log::FaultKind,
    population::Transport,
    record::{Counter, Metric},
};

/// A LOGIN that found no logic is sent again after at least this …
const LOGIN_WAIT_NS_MIN: u64 = 500 * NS_PER_MS;
/// … and at most twice this, unless the refusal asks for more.
const LOGIN_WAIT_NS_MAX: u64 = 4_000 * NS_PER_MS;

/// A heartbeat that is answered within this is in no case late: the protocol's interval, for servers that
/// name a much shorter one.
const HEARTBEAT_LATE_NS_MIN: u64 = 5_000 * NS_PER_MS;
/// A server may count a client's silence from a moment this much before the client's own, which is
/// that of handing the bytes to the kernel.
const EARLY_NS: u64 = 250 * NS_PER_MS;

impl Client {
    /// Wants a connection now. The run's ramp calls it once for every user.
    /// `intended_ns` is when the schedule wanted it.
    pub fn start(&mut self, now_ns: u64, intended_ns: u64, cx: &Context) {
        debug_assert_eq!(self.stage, Stage::Waiting, "a user starts once");
        self.mark_ns = intended_ns;
        self.connect(now_ns, cx);
    }

    fn beats(&self, cx: &Context) -> bool {
        cx.settings.heartbeats && cx.population.part(self.user).heartbeats
    }

    /// The oldest heartbeat without an answer has got one.
    fn heartbeat_answered(&mut self, now_ns: u64, cx: &mut Context) {
        let took_ns = now_ns - self.mark_ns;
        cx.record.record(Metric::Heartbeat, took_ns);
        let allowed_ns = match cx.settings.heartbeat_reply_max_ns {
            0 => self.heartbeat_interval_ns().max(HEARTBEAT_LATE_NS_MIN),
            allowed_ns => allowed_ns,
        };
        let reads_slowly = cx.population.part(self.user).slow_reader_pause_ms > 0;
        if took_ns > allowed_ns && !reads_slowly && !cx.settings.expect_faults {
            let user = self.user;
            cx.log.faults.add(FaultKind::HeartbeatLate, || {
                let ms = |ns: u64| ns / NS_PER_MS;
                format!(
                    "user {user}: answered after {} ms, {} are allowed",
                    ms(took_ns),
                    ms(allowed_ns)
                )
            });
        }
    }

    /// The session ended. A server that calls it idle must have waited as long as it said.
    fn judge_end(&self, silence_ns: u64, cx: &mut Context) {
        let idle_timeout_ns = u64::from(self.idle_timeout_ms) * NS_PER_MS;
        let was_early = silence_ns + EARLY_NS < idle_timeout_ns;
        if self.end_reason == Some(Code::IdleTimeout) && was_early && !cx.settings.expect_faults {
            let user = self.user;
            cx.log.faults.add(FaultKind::EarlyIdleClose, || {
                let ms = |ns: u64| ns / NS_PER_MS;
                format!(
                    "user {user}: ended as idle after {} ms of silence, login named {} ms",
                    ms(silence_ns),
                    ms(idle_timeout_ns)
                )
            });
        }
    }

    pub(super) fn connect(&mut self, now_ns: u64, cx: &Context) {
        let endpoint = cx.settings.endpoint(self.transport).map(|endpoint| endpoint.address);
        let elsewhere = self.busy.as_mut().and_then(|busy| busy.elsewhere.take());
        let Some(address) = elsewhere.or(endpoint) else {
            self.stage = Stage::Done;
            return;
        };
        self.enter(Stage::Connecting, now_ns);
        if self.was_ready {
            self.mark_ns = now_ns;
        }
        self.busy().wish = Some(Wish::Connect(address));
    }

    pub(super) fn enter(&mut self, stage: Stage, now_ns: u64) {
        self.stage = stage;
        self.stage_since_ns = now_ns;
        self.due_ns = u64::MAX;
    }

    /// The connection that was wished for stands, or could not be made.
    pub fn connected(&mut self, now_ns: u64, cx: &mut Context, result: io::Result<()>) {
        if self.stage != Stage::Connecting {
            return;
        }
        if let Err(error) = result {
            cx.record.counters.add(Counter::ConnectFailed);
            cx.note_error(format!("connect: {error}"));
            self.busy().wish = Some(Wish::Close { farewell: Vec::new() });
            self.come_back(now_ns, cx);
            return;
        }
        cx.record.counters.add(Counter::Connections);
        cx.record.record(Metric::Connect, now_ns - self.stage_since_ns);
        self.last_received_ns = now_ns;
        let (host, path) = cx
            .settings
            .endpoint(self.transport)
            .map_or(("", ""), |endpoint| (endpoint.host.as_str(), endpoint.path.as_str()));
        self.wire = Wire::open(self.transport, host, path, &mut cx.random, &mut self.output);
        match self.transport {
            Transport::Tcp => self.log_in(now_ns, cx),
            Transport::WebSocket => self.enter(Stage::Upgrading, now_ns),
        }
    }

    fn log_in(&mut self, now_ns: u64, cx: &mut Context) {
        let user_id = cx.population.user_id(self.user);
        let login = session::Login {
            token: cx.token(&user_id),
            device_id: format!("{user_id}-device"),
            user_id,
            platform: cx.population.platform(self.user).to_owned(),
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            timestamp_ms: cx.unix_ms(now_ns),
            nonce: format!("{:016x}", cx.random.u64(..)),
            resume_token: self.resume_token.as_deref().cloned().unwrap_or_default(),
        };
        self.enter(Stage::LoggingIn, now_ns);
        let request_id = self.write(cx, command::LOGIN, Flags::NONE, &login.encode_to_vec());
        self.await_reply(request_id, now_ns, Request::Login);
    }

    /// Bytes arrived.
    pub fn received(&mut self, now_ns: u64, cx: &mut Context, bytes: &mut [u8]) {
        cx.record.counters.add_many(Counter::BytesIn, bytes.len() as u64);
        self.last_received_ns = now_ns;
        let mut wire = std::mem::take(&mut self.wire);
        let result = wire.read(bytes, |event| {
            self.event(now_ns, cx, event);
            self.is_connected()
        });
        if !self.is_connected() {
            return;
        }
        self.wire = wire;
        if let Err(error) = result {
            let upgrading = self.stage == Stage::Upgrading;
            let counter = if upgrading { Counter::UpgradeFailed } else { Counter::ProtocolErrors };
            cx.record.counters.add(counter);
            cx.note_error(error.to_string());
            self.abandon(now_ns, cx, Vec::new());
        }
    }

    fn is_connected(&self) -> bool {
        !matches!(self.stage, Stage::Waiting | Stage::Connecting | Stage::Done)
    }

    fn event(&mut self, now_ns: u64, cx: &mut Context, event: Event<'_>) {
        match event {
            Event::Upgraded => {
                cx.record.record(Metric::Upgrade, now_ns - self.stage_since_ns);
                self.log_in(now_ns, cx);
            }
            Event::Frame(header, body) => self.frame(now_ns, cx, header, body),
            Event::Ping(payload) => {
                if self.may_write() {
                    wire::write_pong(&mut self.output, &mut cx.random, payload);
                }
            }
            Event::Close(close_code) => {
                if let Some(code) = close_code.and_then(code_of_close) {
                    self.end_reason = Some(code);
                }
                let farewell = wire::close_frame(&mut cx.random, close_code.unwrap_or(1000));
                self.abandon(now_ns, cx, farewell);
            }
        }
    }

    fn frame(&mut self, now_ns: u64, cx: &mut Context, header: Header, body: &[u8]) {
        cx.record.counters.add(Counter::FramesIn);
        if header.command != command::ERROR {
            self.end_reason = None;
        }
        const HEARTBEAT_REPLY: u16 = command::reply(command::HEARTBEAT);
        const LOGIN_REPLY: u16 = command::reply(command::LOGIN);
        const LOGOUT_REPLY: u16 = command::reply(command::LOGOUT);
        let understood = match header.command {
            HEARTBEAT_REPLY => {
                cx.record.counters.add(Counter::Heartbeats);
                if self.mark_ns > 0 {
                    self.heartbeat_answered(now_ns, cx);
                    self.mark_ns = 0;
                    if self.user < cx.flat_out_below {
                        cx.record.counters.add(Counter::FlatOut);
                        self.beat(now_ns, now_ns, cx);
                    }
                }
                true
            }
            LOGIN_REPLY => self.login_reply(now_ns, cx, header.request_id, body),
            // The server closes next; `ended` finishes the matter.
            LOGOUT_REPLY => true,
            command::ERROR => match session::Error::decode(body) {
                Ok(error) => {
                    self.error(now_ns, cx, header.request_id, &error);
                    true
                }
                Err(_) => false,
            },
            command::KICK => match session::Kick::decode(body) {
                Ok(kick) => {
                    cx.record.counters.add(Counter::Kicks);
                    self.end_reason = Code::from_number(kick.code).or(Some(Code::Kicked));
                    true
                }
                Err(_) => false,
            },
            command::GOAWAY => match session::GoAway::decode(body) {
                Ok(goaway) => {
                    self.go_away(now_ns, cx, &goaway);
                    true
                }
                Err(_) => false,
            },
            _ => self.chat_frame(now_ns, cx, header, body),
        };
        if !understood {
            cx.record.counters.add(Counter::ProtocolErrors);
        }
    }

    fn login_reply(&mut self, now_ns: u64, cx: &mut Context, request_id: u32, body: &[u8]) -> bool {
        let Ok(reply) = session::LoginReply::decode(body) else { return false };
        let Some(pending) = self.take_pending(request_id) else { return false };
        if !matches!(pending.what, Request::Login) || self.stage != Stage::LoggingIn {
            return false;
        }
        if reply.code != 0 {
            cx.record.counters.add(Counter::LoginsRefused);
            cx.record.counters.add_code(reply.code);
            self.login_refused(now_ns, cx, reply.code, 0);
            return true;
        }
        cx.record.record(Metric::Login, now_ns - pending.sent_ns);
        cx.record.counters.add(Counter::Logins);
        if self.was_ready {
            cx.record.counters.add(Counter::Reconnects);
            cx.record.record(Metric::Return, now_ns.saturating_sub(self.mark_ns));
        } else {
            cx.record.record(Metric::Arrival, now_ns.saturating_sub(self.mark_ns));
        }
        self.mark_ns = 0;
        self.enter(Stage::Ready, now_ns);
        self.failures = 0;
        self.busy().retry_after_ns = 0;
        let resume_token = reply.resume_token;
        self.resume_token = (!resume_token.is_empty()).then(|| Box::new(resume_token));
        self.heartbeat_interval_ms = reply.heartbeat_interval_ms.max(1);
        self.idle_timeout_ms = reply.idle_timeout_ms.max(1);
        // The first beat falls anywhere in the interval, so that users who logged in together
        // do not beat together.
        let interval_ns = self.heartbeat_interval_ns();
        self.due_ns = if self.beats(cx) {
            now_ns + cx.random.u64(interval_ns / 10..=interval_ns)
        } else {
            u64::MAX
        };
        if self.was_ready {
            self.catch_up(now_ns, cx);
        }
        self.was_ready = true;
        self.away = false;
        self.join_room(now_ns, cx);
        self.write_outbox(now_ns, cx);
        true
    }

    /// LOGIN was refused with LoginReply or ERROR. Without logic the connection stays and LOGIN
    /// is sent again; any other code ends the connection, so we wait for the server to close.
    fn login_refused(&mut self, now_ns: u64, cx: &mut Context, code: u32, retry_after_ms: u32) {
        let code = Code::from_number(code).unwrap_or(Code::Internal);
        self.end_reason = Some(code);
        let retry_after_ns = u64::from(retry_after_ms) * NS_PER_MS;
        self.busy().retry_after_ns = retry_after_ns;
        if code == Code::LogicUnavailable {
            // As long again as it has waited on this connection, so that the spans double.
            let waited_ns = now_ns.saturating_sub(self.stage_since_ns).min(LOGIN_WAIT_NS_MAX);
            let wait_ns = retry_after_ns.max(waited_ns).max(LOGIN_WAIT_NS_MIN);
            self.due_ns = now_ns + wait_ns + cx.random.u64(0..wait_ns);
        }
    }

    fn error(&mut self, now_ns: u64, cx: &mut Context, request_id: u32, error: &session::Error) {
        match self.take_pending(request_id) {
            Some(Pending { what: Request::Login, .. }) => {
                cx.record.counters.add_code(error.code);
                cx.record.counters.add(Counter::LoginsRefused);
                self.login_refused(now_ns, cx, error.code, error.retry_after_ms);
            }
            Some(pending) => {
                cx.record.counters.add_code(error.code);
                self.refused(now_ns, cx, pending, error.code, error.retry_after_ms);
            }
            None if self.stage == Stage::LoggingIn => {
                // The ERROR that follows a refused LoginReply: the same refusal, with the delay.
                self.login_refused(now_ns, cx, error.code, error.retry_after_ms);
            }
            None => {
                cx.record.counters.add_code(error.code);
                self.end_reason = Code::from_number(error.code);
                self.busy().retry_after_ns = u64::from(error.retry_after_ms) * NS_PER_MS;
            }
        }
    }

    fn go_away(&mut self, now_ns: u64, cx: &mut Context, goaway: &session::GoAway) {
        let min = u64::from(goaway.reconnect_after_ms_min) * NS_PER_MS;
        let max = (u64::from(goaway.reconnect_after_ms_max) * NS_PER_MS).max(min);
        let busy = self.busy();
        busy.leave = Some((now_ns + cx.random.u64(min..=max), now_ns + max));
        // A name would need a resolver on the data path; only addresses are followed.
        let authority = goaway.reconnect_to.trim_start_matches("ws://");
        let authority = authority.split('/').next().unwrap_or_default();
        busy.elsewhere = authority.parse().ok();
    }

    /// The connection is over, by the peer or the network.
    pub fn ended(&mut self, now_ns: u64, cx: &mut Context) {
        if self.stage == Stage::Connecting {
            self.connected(now_ns, cx, Err(io::ErrorKind::ConnectionReset.into()));
        } else if self.is_connected() {
            let in_setup = matches!(self.stage, Stage::Upgrading | Stage::LoggingIn);
            if in_setup && self.end_reason.is_none() {
                cx.record.counters.add(Counter::SetupsCut);
            }
            self.abandon(now_ns, cx, Vec::new());
        }
    }

    /// Gives the present connection up, for whatever reason, and decides what is next.
    fn abandon(&mut self, now_ns: u64, cx: &mut Context, farewell: Vec<u8>) {
        let was = self.stage;
        // After GOAWAY it does not matter who closes first.
        let leave = self.busy().leave.take().filter(|_| was == Stage::Ready);
        self.busy().wish = Some(Wish::Close { farewell });
        self.forget_connection(cx);
        match was {
            Stage::LoggingOut if self.away => {
                self.stay_away(now_ns, cx);
                return;
            }
            Stage::LoggingOut => {
                self.enter(Stage::Done, now_ns);
                return;
            }
            Stage::Ready if leave.is_none() => {
                cx.record.counters.add(Counter::ConnectionsLost);
                let label = self.end_reason.map_or("none", Code::label);
                let silence_ns = now_ns - self.last_written_ns;
                cx.endings.add(silence_ns, label);
                self.judge_end(silence_ns, cx);
            }
            _ => {}
        }
        if let Some((at, _)) = leave {
            cx.record.counters.add(Counter::GoAways);
            // A moment later, so that the old connection is let go of first.
            self.connect_later(now_ns, at.saturating_sub(now_ns).max(NS_PER_MS));
        } else {
            self.come_back(now_ns, cx);
        }
    }

    pub(super) fn forget_connection(&mut self, cx: &mut Context) {
        self.wire = Wire::Closed;
        self.output = Vec::new();
        if let Some(busy) = &mut self.busy {
            for pending in std::mem::take(&mut busy.pending) {
                match pending.what {
                    Request::Pull { .. } => cx.pulls_outstanding -= 1,
                    Request::Publish { number, .. } => cx.board.doubt(number),
                    Request::Custom { .. } => cx.record.counters.add(Counter::CustomUnanswered),
                    _ => {}
                }
            }
            busy.join_due_ns = u64::MAX;
            busy.outbox.connection_ended();
        }
        self.conversations.iter_mut().for_each(super::Conversation::connection_ended);
        self.leave_room(cx);
        self.due_ns = u64::MAX;
        self.mark_ns = if self.was_ready { 0 } else { self.mark_ns };
    }

    /// Decides whether and when to connect again: full jitter over a doubling span, at least the
    /// delay the server asked for.
    fn come_back(&mut self, now_ns: u64, cx: &mut Context) {
        let settings = &cx.settings;
        let reconnects = settings.reconnect && cx.population.part(self.user).reconnects;
        let stay =
            self.end_reason.is_some_and(|code| code.after() == After::Stay && code != Code::Ok);
        self.failures += 1;
        if !reconnects || stay || self.failures > settings.reconnects_max {
            if reconnects {
                cx.record.counters.add(Counter::GaveUp);
            }
            self.stage = Stage::Done;
            return;
        }
        let doubled = settings.reconnect_base_ns << self.failures.min(16);
        let span = doubled.min(settings.reconnect_cap_ns).max(1);
        let retry_after_ns = std::mem::take(&mut self.busy().retry_after_ns);
        let wait = cx.random.u64(0..span) + retry_after_ns;
        self.end_reason = None;
        self.connect_later(now_ns, wait);
    }

    pub(super) fn connect_later(&mut self, now_ns: u64, wait_ns: u64) {
        self.enter(Stage::Waiting, now_ns);
        self.due_ns = now_ns + wait_ns;
    }

    /// Ends the session in good order. Messages still unanswered are counted and forgotten.
    pub fn finish(&mut self, now_ns: u64, cx: &mut Context) {
        cx.record.counters.add_many(Counter::Unanswered, self.outstanding() as u64);
        self.busy().outbox = super::Outbox::default();
        self.forget_custom(cx);
        self.away = false;
        match self.stage {
            Stage::Ready => {
                self.write(cx, command::LOGOUT, Flags::NONE, &[]);
                self.enter(Stage::LoggingOut, now_ns);
            }
            Stage::Waiting => self.enter(Stage::Done, now_ns),
            Stage::LoggingOut | Stage::Done => {}
            Stage::Connecting | Stage::Upgrading | Stage::LoggingIn => {
                self.busy().wish = Some(Wish::Close { farewell: Vec::new() });
                self.forget_connection(cx);
                self.enter(Stage::Done, now_ns);
            }
        }
    }

    /// When a silent server is given up. Without heartbeats nothing is owed to us.
    pub(super) fn idle_due_ns(&self, cx: &Context) -> u64 {
        if self.beats(cx) {
            self.last_received_ns + u64::from(self.idle_timeout_ms) * NS_PER_MS
        } else {
            u64::MAX
        }
    }

    fn heartbeat_interval_ns(&self) -> u64 {
        u64::from(self.heartbeat_interval_ms) * NS_PER_MS
    }

    pub(super) fn tick_session(&mut self, now_ns: u64, cx: &mut Context) {
        let overdue = now_ns >= self.stage_since_ns + cx.settings.stage_timeout_ns;
        match self.stage {
            Stage::Waiting if now_ns >= self.due_ns => self.connect(now_ns, cx),
            Stage::Connecting if overdue => {
                self.connected(now_ns, cx, Err(io::ErrorKind::TimedOut.into()));
            }
            Stage::Upgrading if overdue => {
                cx.record.counters.add(Counter::UpgradeFailed);
                self.abandon(now_ns, cx, Vec::new());
            }
            Stage::LoggingIn if now_ns >= self.due_ns => {
                // The deadline of the stage counts from the first LOGIN of this connection.
                let since = self.stage_since_ns;
                self.log_in(now_ns, cx);
                self.stage_since_ns = since;
            }
            Stage::LoggingIn | Stage::LoggingOut if overdue => {
                self.abandon(now_ns, cx, Vec::new());
            }
            Stage::Ready => self.tick_ready(now_ns, cx),
            _ => {}
        }
    }

    fn tick_ready(&mut self, now_ns: u64, cx: &mut Context) {
        if now_ns >= self.idle_due_ns(cx) {
            cx.record.counters.add(Counter::ClientIdle);
            self.abandon(now_ns, cx, Vec::new());
            return;
        }
        if let Some(busy) = &mut self.busy
            && let Some((at, window_end)) = busy.leave
            && now_ns >= at
        {
            if busy.pending.is_empty() || now_ns >= window_end {
                self.abandon(now_ns, cx, Vec::new());
                return;
            }
            // Answers are on their way; look again shortly, within the window.
            busy.leave = Some(((now_ns + 50 * NS_PER_MS).min(window_end), window_end));
        }
        if now_ns >= self.due_ns {
            self.due_ns = now_ns + self.heartbeat_interval_ns();
            // A closed loop has exactly one heartbeat on its way.
            let in_loop = self.user < cx.flat_out_below && self.mark_ns > 0;
            if self.may_write() && !in_loop {
                self.write(cx, command::HEARTBEAT, Flags::NONE, &[]);
                // One that still waits for its answer keeps its moment: else a server that is slow to
                // answer would never look slower than the interval.
                if self.mark_ns == 0 {
                    self.mark_ns = now_ns;
                }
            }
        }
    }
}

/// The code behind a WebSocket close code of the private ranges.
fn code_of_close(close_code: u16) -> Option<Code> {
    let number = match close_code {
        3000..=3499 => close_code - 3000,
        3500..=3999 => close_code - 3500,
        _ => return None,
    };
    Code::from_number(u32::from(number))
}
