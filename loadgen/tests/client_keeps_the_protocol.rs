//! One client, fed by hand under a virtual clock: each test is a promise of a good client.

mod support;

use std::{net::SocketAddr, sync::Arc};

use millrace_loadgen::{
    client::{Client, Context, Endpoint, NS_PER_MS, Settings, Wish},
    log::{FaultKind, Key, Names},
    population::{Population, Target, Transport},
    record::Counter,
};
use millrace_protocol::{
    Code, chat, command,
    frame::{Flags, FrameReader, Header},
    session,
};
use prost::Message;
use support::frame;

const SECOND: u64 = 1000 * NS_PER_MS;
const RUN: u32 = 7;

/// A client with its context and a clock that only the test moves.
struct Bench {
    client: Client,
    cx: Context,
    now_ns: u64,
    /// What the client wished while time passed.
    wishes: Vec<Wish>,
}

type Frame = (Header, Vec<u8>);

impl Bench {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new("secret", 4_000_000_000);
        let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        settings.tcp = Some(Endpoint { address, host: "h".into(), path: String::new() });
        change(&mut settings);
        let population =
            Population { groups: 2, group_size: 4, ..Population::uniform(10, 0.0, "load", RUN) };
        let (settings, population) = (Arc::new(settings), Arc::new(population));
        let cx = Context::new(settings, population, Names::default(), Arc::default(), 1, 0);
        Self { client: Client::new(0, Transport::Tcp), cx, now_ns: SECOND, wishes: Vec::new() }
    }

    /// Connected, with LOGIN written.
    fn connecting(change: impl FnOnce(&mut Settings)) -> (Self, Frame) {
        let mut bench = Self::new(change);
        bench.client.start(bench.now_ns, bench.now_ns, &bench.cx);
        let login = bench.connect();
        (bench, login)
    }

    fn connect(&mut self) -> Frame {
        self.wishes.extend(self.client.take_wish());
        assert!(matches!(self.wishes.pop(), Some(Wish::Connect(_))));
        self.client.connected(self.now_ns, &mut self.cx, Ok(()));
        let mut written = self.written();
        assert_eq!(written.len(), 1, "LOGIN and nothing else");
        let login = written.remove(0);
        assert_eq!(login.0.command, command::LOGIN);
        login
    }

    /// Logged in, with heartbeats every 5 s and an idle timeout of 15 s.
    fn ready() -> Self {
        let (mut bench, login) = Self::connecting(|_| {});
        bench.accept(login.0.request_id);
        bench
    }

    fn accept(&mut self, request_id: u32) {
        let reply = session::LoginReply {
            heartbeat_interval_ms: 5000,
            idle_timeout_ms: 15_000,
            resume_token: "resume".into(),
            ..session::LoginReply::default()
        };
        self.receive(&frame(command::reply(command::LOGIN), request_id, &reply));
        assert!(self.client.is_ready());
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.client.received(self.now_ns, &mut self.cx, &mut bytes.to_vec());
    }

    fn written(&mut self) -> Vec<Frame> {
        let output = self.client.take_output(self.now_ns, &mut self.cx);
        let (mut reader, mut frames) = (FrameReader::new(), Vec::new());
        let read = reader.read(&output, 65536, |header, body| {
            frames.push((header, body.to_vec()));
            true
        });
        read.expect("the client writes frames");
        assert!(!reader.is_partial());
        frames
    }

    fn written_of(&mut self, command: u16) -> Vec<Frame> {
        self.written().into_iter().filter(|(header, _)| header.command == command).collect()
    }

    /// Lets time pass as the fleet does: tick at every deadline. The server answers heartbeats.
    fn pass(&mut self, span_ns: u64) -> Vec<Frame> {
        let until_ns = self.now_ns + span_ns;
        let mut all = Vec::new();
        loop {
            let deadline_ns = self.client.deadline_ns(&self.cx);
            if deadline_ns > until_ns || self.client.is_done() {
                break;
            }
            self.now_ns = self.now_ns.max(deadline_ns);
            self.client.tick(self.now_ns, &mut self.cx);
            self.wishes.extend(self.client.take_wish());
            let written = self.written();
            for (header, _) in &written {
                if header.command == command::HEARTBEAT {
                    self.answer_heartbeat(header.request_id);
                }
            }
            all.extend(written);
            let deadline_ns = self.client.deadline_ns(&self.cx);
            assert!(deadline_ns > self.now_ns || self.client.is_done(), "the client spins");
        }
        self.now_ns = until_ns;
        all
    }

    fn answer_heartbeat(&mut self, request_id: u32) {
        let reply = command::reply(command::HEARTBEAT);
        self.receive(&frame(reply, request_id, &session::Refresh::default()));
    }

    fn deliver(&mut self, sequence: u64) {
        let body = chat::Deliver { messages: vec![message(sequence)] };
        self.receive(&frame(command::DELIVER, 0, &body));
    }

    fn count(&self, counter: Counter) -> u64 {
        self.cx.record.counters.get(counter)
    }

    fn end_with(&mut self, code: Code) {
        let error = session::Error { code: code.number(), ..session::Error::default() };
        self.receive(&frame(command::ERROR, 0, &error));
        self.client.ended(self.now_ns, &mut self.cx);
    }
}

/// A message of user 1 to user 0.
fn message(sequence: u64) -> chat::Message {
    let key = Key::new(1, sequence as u32);
    let text = millrace_loadgen::client::Text { key, intended_ns: 1, written_ns: 1 };
    chat::Message {
        conversation_id: "c".into(),
        conversation_type: 1,
        sequence,
        client_message_id: key.client_message_id(RUN),
        sender_id: "load-1".into(),
        body: text.write(0),
        ..chat::Message::default()
    }
}

fn decode<T: Message + Default>(frame: &Frame) -> T {
    T::decode(frame.1.as_slice()).expect("the client writes valid bodies")
}

#[test]
fn login_carries_identity_and_a_token_of_the_given_secret() {
    let (_, login) = Bench::connecting(|_| {});
    let login: session::Login = decode(&login);
    assert_eq!(login.user_id, "load-0");
    assert_eq!(login.device_id, "load-0-device");
    let key = jsonwebtoken::DecodingKey::from_secret(b"secret");
    let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    let claims: serde_json::Value =
        jsonwebtoken::decode(&login.token, &key, &validation).expect("a valid token").claims;
    assert_eq!(claims["sub"], "load-0");
}

#[test]
fn a_million_idle_users_fit_into_the_generators_memory() {
    // 152 bytes, and a quiet user owns nothing on the heap.
    assert!(size_of::<Client>() <= 160, "{} bytes", size_of::<Client>());
}

#[test]
fn heartbeats_keep_the_interval_that_login_named() {
    let mut bench = Bench::ready();
    let beats = bench.pass(60 * SECOND);
    assert!(beats.iter().all(|(header, _)| header.command == command::HEARTBEAT));
    assert!((12..=13).contains(&beats.len()), "{} in a minute", beats.len());
    assert_eq!(bench.count(Counter::Heartbeats), beats.len() as u64);
}

#[test]
fn a_server_that_says_nothing_is_given_up_after_the_idle_timeout() {
    let mut bench = Bench::ready();
    bench.now_ns += 15 * SECOND - 1;
    bench.client.tick(bench.now_ns, &mut bench.cx);
    assert!(bench.client.is_ready());
    bench.now_ns += 1;
    bench.client.tick(bench.now_ns, &mut bench.cx);
    assert!(matches!(bench.client.take_wish(), Some(Wish::Close { .. })));
    assert_eq!(bench.count(Counter::ClientIdle), 1);
    assert_eq!(bench.count(Counter::ConnectionsLost), 1);
}

#[test]
fn acknowledgements_are_coalesced_to_one_in_200_ms() {
    let mut bench = Bench::ready();
    for sequence in 1..=10 {
        bench.deliver(sequence);
        bench.pass(10 * NS_PER_MS);
    }
    assert_eq!(bench.count(Counter::DeliverAcks), 0);
    let acks: Vec<Frame> = bench.pass(150 * NS_PER_MS);
    let acks: Vec<chat::DeliverAck> = acks
        .iter()
        .filter(|(header, _)| header.command == command::DELIVER_ACK)
        .map(|frame| {
            assert_eq!(frame.0.request_id, 0, "no reply is wanted");
            decode(frame)
        })
        .collect();
    assert_eq!(acks.len(), 1);
    assert_eq!((acks[0].conversation_id.as_str(), acks[0].sequence), ("c", 10));
}

#[test]
fn a_hole_is_pulled_after_a_grace_and_what_comes_is_applied_once() {
    let mut bench = Bench::ready();
    bench.deliver(1);
    bench.deliver(4);
    let early = bench.pass(900 * NS_PER_MS);
    assert!(early.iter().all(|(header, _)| header.command != command::PULL_MESSAGES));
    let late = bench.pass(200 * NS_PER_MS);
    let pulls: Vec<&Frame> =
        late.iter().filter(|(header, _)| header.command == command::PULL_MESSAGES).collect();
    assert_eq!(pulls.len(), 1);
    let pull: chat::PullMessages = decode(pulls[0]);
    assert_eq!((pull.from_sequence, pull.to_sequence), (2, 3));

    let reply = chat::PullReply {
        messages: vec![message(2), message(3), message(4)],
        complete: true,
        ..chat::PullReply::default()
    };
    let reply = frame(command::reply(command::PULL_MESSAGES), pulls[0].0.request_id, &reply);
    bench.receive(&reply);
    assert_eq!(bench.count(Counter::Received), 4);
    assert_eq!(bench.count(Counter::Pulled), 2);
    assert_eq!(bench.cx.log.faults.total(), 0);
    let acks = bench.pass(SECOND);
    let last = acks.iter().rfind(|(header, _)| header.command == command::DELIVER_ACK);
    let ack: chat::DeliverAck = decode(last.expect("acknowledged"));
    assert_eq!(ack.sequence, 4);
}

#[test]
fn disorder_and_duplicates_on_one_connection_are_faults() {
    let mut bench = Bench::ready();
    for sequence in [1, 3, 2] {
        bench.deliver(sequence);
    }
    assert_eq!(bench.cx.log.faults.count(FaultKind::OutOfOrder), 1);
    bench.deliver(3);
    assert_eq!(bench.cx.log.faults.count(FaultKind::Duplicated), 1);
    assert_eq!(bench.count(Counter::Received), 3);
}

#[test]
fn after_a_reconnect_redeliveries_are_counted_and_the_client_pulls_from_where_it_was() {
    let mut bench = Bench::ready();
    bench.deliver(1);
    bench.deliver(2);
    bench.client.ended(bench.now_ns, &mut bench.cx);
    assert!(matches!(bench.client.take_wish(), Some(Wish::Close { .. })));
    bench.pass(SECOND);
    let login = bench.connect();
    assert_eq!(decode::<session::Login>(&login).resume_token, "resume");
    bench.accept(login.0.request_id);
    let pulls = bench.written_of(command::PULL_MESSAGES);
    assert_eq!(pulls.len(), 1);
    assert_eq!(decode::<chat::PullMessages>(&pulls[0]).from_sequence, 3);
    bench.deliver(2);
    bench.deliver(3);
    assert_eq!(bench.count(Counter::Redelivered), 1);
    assert_eq!(bench.count(Counter::Received), 3);
    assert_eq!(bench.count(Counter::Reconnects), 1);
    assert_eq!(bench.cx.log.faults.total(), 0);
}

#[test]
fn an_unanswered_message_is_sent_a_few_times_under_one_id_and_then_given_up() {
    let mut bench = Bench::ready();
    let intended_ns = bench.now_ns;
    bench.client.send(bench.now_ns, &mut bench.cx, Target::user(1), intended_ns);
    let mut sent = bench.written_of(command::SEND_MESSAGE);
    // 15 s, 30 s and 60 s, each with up to half of it more; the age ends what is left.
    let later = bench.pass(120 * SECOND);
    sent.extend(later.into_iter().filter(|(header, _)| header.command == command::SEND_MESSAGE));
    assert!((3..=4).contains(&sent.len()), "{} times", sent.len());
    let ids: Vec<String> =
        sent.iter().map(|f| decode::<chat::SendMessage>(f).client_message_id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    let flags: Vec<bool> =
        sent.iter().map(|(header, _)| header.flags.contains(Flags::RETRANSMISSION)).collect();
    assert!(!flags[0] && flags[1..].iter().all(|again| *again), "{flags:?}");
    assert_eq!(bench.count(Counter::Resent), sent.len() as u64 - 1);
    assert!(bench.count(Counter::SendTimeouts) >= bench.count(Counter::Resent));
    assert_eq!(bench.count(Counter::Failed), 1);
    assert_eq!(bench.client.outstanding(), 0);
    assert_eq!(bench.cx.log.unanswered.len(), 1);
}

/// When the frames of a command are written within a span, in nanoseconds from now.
fn moments(bench: &mut Bench, wanted: u16, span_ns: u64) -> Vec<u64> {
    let (start_ns, step_ns) = (bench.now_ns, 10 * NS_PER_MS);
    let mut moments = Vec::new();
    while bench.now_ns < start_ns + span_ns {
        let written = bench.pass(step_ns);
        let count = written.iter().filter(|(header, _)| header.command == wanted).count();
        moments.extend(std::iter::repeat_n(bench.now_ns - start_ns, count));
    }
    moments
}

#[test]
fn resends_spread_and_come_ever_later_so_that_a_slow_server_gets_less_to_do() {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for seed in 0..40 {
        let mut bench = Bench::ready();
        bench.cx.random.seed(seed);
        let now_ns = bench.now_ns;
        bench.client.send(now_ns, &mut bench.cx, Target::user(1), now_ns);
        assert_eq!(bench.written_of(command::SEND_MESSAGE).len(), 1);
        let at = moments(&mut bench, command::SEND_MESSAGE, 119 * SECOND);
        assert!((15 * SECOND..=23 * SECOND).contains(&at[0]), "seed {seed}: {at:?}");
        let wait_ns = at[1] - at[0];
        assert!((30 * SECOND..=46 * SECOND).contains(&wait_ns), "seed {seed}: {at:?}");
        first.push(at[0]);
        second.push(wait_ns);
    }
    let spread =
        |waits: &[u64]| waits.iter().max().copied() >= waits.iter().min().map(|w| w + 3 * SECOND);
    assert!(spread(&first) && spread(&second), "users do not come together: {first:?} {second:?}");
}

#[test]
fn a_refused_message_waits_longer_each_time_and_is_given_up_in_the_end() {
    for (retry_after_ms, seed) in [(0, 1), (0, 2), (3000, 3)] {
        let mut bench = Bench::ready();
        bench.cx.random.seed(seed);
        let now_ns = bench.now_ns;
        bench.client.send(now_ns, &mut bench.cx, Target::user(1), now_ns);
        let (mut waits, mut since_ns) = (Vec::new(), bench.now_ns);
        let mut sent = bench.written_of(command::SEND_MESSAGE);
        while let Some((header, _)) = sent.pop() {
            waits.push(bench.now_ns - since_ns);
            since_ns = bench.now_ns;
            let code = Code::RateLimited.number();
            let error = session::Error { code, retry_after_ms, ..session::Error::default() };
            bench.receive(&frame(command::ERROR, header.request_id, &error));
            while sent.is_empty() && bench.client.outstanding() > 0 {
                let written = bench.pass(10 * NS_PER_MS);
                let is_send = |frame: &Frame| frame.0.command == command::SEND_MESSAGE;
                sent.extend(written.into_iter().filter(is_send));
            }
        }
        assert!(waits.len() <= 11, "seed {seed}: {waits:?}");
        for (refusals, wait_ns) in waits.iter().enumerate().skip(1) {
            let least_ms = (500_u64 << (refusals - 1)).min(16_000).max(u64::from(retry_after_ms));
            let least_ns = least_ms * NS_PER_MS;
            let bounds = least_ns..2 * least_ns + SECOND;
            assert!(bounds.contains(wait_ns), "seed {seed}, refusal {refusals}: {waits:?}");
        }
        assert_eq!(bench.count(Counter::SendRefusals), waits.len() as u64, "seed {seed}");
        assert_eq!(bench.count(Counter::Failed), 1, "seed {seed}");
    }
}

#[test]
fn lost_connections_do_not_make_a_message_be_sent_without_end() {
    let mut bench = Bench::ready();
    let now_ns = bench.now_ns;
    bench.client.send(now_ns, &mut bench.cx, Target::user(1), now_ns);
    let mut writes = bench.written_of(command::SEND_MESSAGE).len();
    for _ in 0..10 {
        bench.client.ended(bench.now_ns, &mut bench.cx);
        assert!(matches!(bench.client.take_wish(), Some(Wish::Close { .. })));
        bench.pass(SECOND);
        let login = bench.connect();
        bench.accept(login.0.request_id);
        writes += bench.written_of(command::SEND_MESSAGE).len();
    }
    assert_eq!(writes, 4, "the first and resends_max");
    assert_eq!(bench.count(Counter::Failed), 1);
    assert_eq!(bench.cx.log.unanswered.len(), 1);
}

#[test]
fn nothing_is_sent_while_the_verifier_is_at_work() {
    let mut bench = Bench::ready();
    let now_ns = bench.now_ns;
    bench.client.send(now_ns, &mut bench.cx, Target::user(1), now_ns);
    assert_eq!(bench.written_of(command::SEND_MESSAGE).len(), 1);
    bench.cx.is_verifying = true;
    let later = bench.pass(100 * SECOND);
    assert!(later.iter().all(|(header, _)| header.command == command::HEARTBEAT));
    assert_eq!(bench.client.outstanding(), 1, "it stays unanswered, and is not given up");
    bench.client.ended(bench.now_ns, &mut bench.cx);
    bench.client.take_wish();
    bench.pass(SECOND);
    let login = bench.connect();
    bench.accept(login.0.request_id);
    assert_eq!(bench.written_of(command::SEND_MESSAGE).len(), 0);
}

#[test]
fn a_refused_pull_is_asked_again_ever_later() {
    let mut bench = Bench::ready();
    bench.deliver(1);
    bench.deliver(4);
    let (mut at, start_ns) = (Vec::new(), bench.now_ns);
    while bench.now_ns < start_ns + 40 * SECOND {
        for (header, _) in bench.pass(10 * NS_PER_MS) {
            if header.command == command::PULL_MESSAGES {
                at.push((bench.now_ns - start_ns) / SECOND);
                let code = Code::LogicUnavailable.number();
                let error = session::Error { code, ..session::Error::default() };
                bench.receive(&frame(command::ERROR, header.request_id, &error));
            }
        }
    }
    assert_eq!(at, [1, 3, 7, 15, 31]);
    assert_eq!(bench.cx.pulls_outstanding, 0);
}

#[test]
fn two_acknowledgements_of_one_message_must_agree() {
    for (second, faults) in [(5, 0), (6, 1)] {
        let mut bench = Bench::ready();
        bench.client.send(bench.now_ns, &mut bench.cx, Target::user(1), SECOND);
        let mut sent = bench.written_of(command::SEND_MESSAGE);
        let later = bench.pass(23 * SECOND);
        sent.extend(
            later.into_iter().filter(|(header, _)| header.command == command::SEND_MESSAGE),
        );
        assert_eq!(sent.len(), 2);
        for (frame_sent, sequence) in sent.iter().zip([5, second]) {
            let reply = chat::SendReply {
                conversation_id: "c".into(),
                sequence,
                ..chat::SendReply::default()
            };
            let reply_command = command::reply(command::SEND_MESSAGE);
            bench.receive(&frame(reply_command, frame_sent.0.request_id, &reply));
        }
        assert_eq!(bench.count(Counter::Acked), 1);
        assert_eq!(bench.cx.log.faults.count(FaultKind::StoredTwice), faults);
    }
}

#[test]
fn without_logic_login_is_tried_again_on_the_same_connection() {
    let (mut bench, login) = Bench::connecting(|_| {});
    let code = Code::LogicUnavailable.number();
    let reply = session::LoginReply { code, ..session::LoginReply::default() };
    bench.receive(&frame(command::reply(command::LOGIN), login.0.request_id, &reply));
    let error = session::Error { code, retry_after_ms: 1000, ..session::Error::default() };
    bench.receive(&frame(command::ERROR, login.0.request_id, &error));
    let early = bench.pass(900 * NS_PER_MS);
    assert!(early.is_empty());
    let again = bench.pass(1200 * NS_PER_MS);
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].0.command, command::LOGIN);
    assert!(bench.wishes.is_empty(), "the connection stays");
    bench.accept(again[0].0.request_id);
    assert_eq!(bench.count(Counter::LoginsRefused), 1);
}

#[test]
fn a_code_that_says_stay_ends_the_matter_and_one_that_says_reconnect_does_not() {
    for (code, comes_back) in [
        (Code::BadToken, false),
        (Code::Kicked, false),
        (Code::IdleTimeout, true),
        (Code::Draining, true),
    ] {
        let mut bench = Bench::ready();
        bench.end_with(code);
        bench.client.take_wish();
        assert_eq!(!bench.client.is_done(), comes_back, "{code}");
        assert_eq!(bench.cx.endings.by_label, [(code.label(), 1)]);
    }
}

#[test]
fn reconnects_have_full_jitter_up_to_the_cap_and_an_end() {
    let mut waits = Vec::new();
    let mut bench = Bench::ready();
    bench.client.ended(bench.now_ns, &mut bench.cx);
    bench.client.take_wish();
    while !bench.client.is_done() {
        let due_ns = bench.client.deadline_ns(&bench.cx);
        waits.push(due_ns - bench.now_ns);
        bench.now_ns = due_ns;
        bench.client.tick(bench.now_ns, &mut bench.cx);
        assert!(matches!(bench.client.take_wish(), Some(Wish::Connect(_))));
        let refused = std::io::ErrorKind::ConnectionRefused.into();
        bench.client.connected(bench.now_ns, &mut bench.cx, Err(refused));
        bench.client.take_wish();
    }
    assert_eq!(waits.len(), 20);
    assert_eq!(bench.count(Counter::GaveUp), 1);
    for (failures, wait_ns) in waits.iter().enumerate() {
        let span_ns = ((500 * NS_PER_MS) << (failures + 1)).min(20 * SECOND);
        assert!(*wait_ns <= span_ns, "failure {failures}: {wait_ns}");
    }
    let spread = waits.iter().max().expect("20") - waits.iter().min().expect("20");
    assert!(spread > 5 * SECOND, "waits are not alike: {waits:?}");
}

#[test]
fn goaway_is_obeyed_within_its_window() {
    for seed in 0..50 {
        let mut bench = Bench::ready();
        bench.cx.random.seed(seed);
        let goaway = session::GoAway {
            reconnect_after_ms_min: 1000,
            reconnect_after_ms_max: 3000,
            reconnect_to: "127.0.0.1:77".into(),
            ..session::GoAway::default()
        };
        bench.receive(&frame(command::GOAWAY, 0, &goaway));
        bench.pass(999 * NS_PER_MS);
        assert!(bench.client.is_ready(), "seed {seed}: not before the window");
        bench.pass(2002 * NS_PER_MS);
        assert!(!bench.client.is_ready(), "seed {seed}: not after it");
        assert_eq!(bench.count(Counter::GoAways), 1);
        assert_eq!(bench.count(Counter::ConnectionsLost), 0);
        let elsewhere = "127.0.0.1:77".parse().expect("an address");
        let close = Wish::Close { farewell: Vec::new() };
        assert_eq!(bench.wishes, [close, Wish::Connect(elsewhere)], "seed {seed}");
    }
}

#[test]
fn garbage_from_the_server_is_counted_and_never_a_panic() {
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::ready();
        let mut bytes = frame(command::DELIVER, 0, &chat::Deliver { messages: vec![message(1)] });
        for _ in 0..random.usize(1..8) {
            let at = random.usize(0..bytes.len());
            bytes[at] = random.u8(..);
        }
        bench.receive(&bytes);
        let tail: Vec<u8> = (0..random.usize(0..200)).map(|_| random.u8(..)).collect();
        bench.receive(&tail);
        bench.pass(SECOND);
    }
}
