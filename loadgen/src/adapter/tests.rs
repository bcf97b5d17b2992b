//! Guests at servers of the tests, without sockets: what they say, what they make of a server that
//! does wrong, and what they do when a connection breaks.

mod world;

use millrace_protocol::websocket::{self, Opcode};

use super::{Adapter, guest::Guest, mqtt::Mqtt, streams::ROOM, websocket_echo::WebsocketEcho};
use crate::{
    client::{Manner, NS_PER_MS, Standing, Wish},
    log::FaultKind,
    population::{Part, Population},
    record::{Counter, Metric},
    scenario::{MqttSection, WebsocketEchoSection},
    user::User,
    verify::Verdict,
};
use world::{Broker, EchoServer, Plant, Server, World};

fn faults(verdict: &Verdict) -> Vec<(FaultKind, u64)> {
    let counts = FaultKind::ALL.iter().map(|kind| (*kind, verdict.faults.count(*kind)));
    counts.filter(|(_, count)| *count > 0).collect()
}

fn broker(qos: u8, plant: Plant) -> World<Mqtt, Broker> {
    broker_with(qos, plant, |_| {})
}

fn broker_with(qos: u8, plant: Plant, change: impl FnOnce(&mut Population)) -> World<Mqtt, Broker> {
    World::up(6, Broker::new(plant, 6), |settings, population| {
        settings.mqtt = MqttSection { qos, ..MqttSection::default() };
        (population.room_first, population.room_size) = (1, 4);
        change(population);
    })
}

fn echo(plant: Plant, section: WebsocketEchoSection) -> World<WebsocketEcho, EchoServer> {
    let subprotocol = section.subprotocol.as_ref().map(|_| "echo.v1");
    let (readers, said) = ((0..3).map(|_| None).collect(), Vec::new());
    let server = EchoServer { plant, readers, subprotocol, said, echoed: 0, held: None };
    World::up(3, server, |settings, _| settings.websocket_echo = section)
}

#[test]
fn at_either_quality_every_message_arrives_once_and_in_order() {
    for qos in [0, 1] {
        let mut world = broker(qos, Plant::Nothing);
        world.talk();
        for _ in 0..5 {
            let now_ns = world.now_ns;
            world.guests[1].publish(now_ns, &mut world.cx, now_ns);
        }
        world.pump();
        let acked = if qos > 0 { 60 } else { 0 };
        let expected = [
            (Counter::Intended, 60),
            (Counter::Sent, 60),
            (Counter::Acked, acked),
            (Counter::Expected, 60),
            (Counter::Received, 60),
            (Counter::RoomSent, 5),
            (Counter::RoomAcked, acked / 12),
            (Counter::RoomReceived, 15),
            (Counter::RoomJoins, 4),
            (Counter::Logins, 6),
            (Counter::Redelivered, 0),
        ];
        for (counter, count) in expected {
            assert_eq!(world.count(counter), count, "{counter:?} at {qos}");
        }
        assert_eq!(u64::from(world.server.acknowledged), if qos > 0 { 75 } else { 0 });
        let record = &world.cx.record;
        assert_eq!(record.of(Metric::DeliverySingle).len(), 60);
        assert_eq!(record.of(Metric::DeliverySingle).min(), 5_000, "from the intended moment");
        assert_eq!(record.of(Metric::ServiceDelivery).max(), 1, "from the write");
        assert_eq!(record.of(Metric::DeliveryRoom).len(), 15);
        assert_eq!(record.of(Metric::Login).len(), 6);
        assert!(world.guests.iter().all(|guest| guest.owed(&world.cx) == 0));
        assert_eq!(faults(&world.verdict()), []);
    }
}

#[test]
fn what_a_broker_does_wrong_is_found_by_name() {
    for (qos, plant, expected) in [
        (0, Plant::Lose(17), vec![(FaultKind::Lost, 1)]),
        (1, Plant::Lose(60), vec![(FaultKind::Lost, 1)]),
        (0, Plant::Duplicate(3), vec![(FaultKind::Duplicated, 1)]),
        (1, Plant::Duplicate(3), vec![]),
        (1, Plant::Misdeliver(9), vec![(FaultKind::Misdelivered, 1)]),
        (0, Plant::Corrupt(20), vec![(FaultKind::Lost, 1), (FaultKind::WrongMessage, 1)]),
    ] {
        let mut world = broker(qos, plant);
        world.talk();
        assert_eq!(faults(&world.verdict()), expected, "{plant:?} at {qos}");
        let again = if plant == Plant::Duplicate(3) { u64::from(qos) } else { 0 };
        assert_eq!(world.count(Counter::Redelivered), again, "{plant:?} at {qos}");
    }
    // Two in a row of one sender to one receiver.
    let mut world = broker(1, Plant::Reorder(1));
    world.send(0, 0);
    world.send(0, 0);
    world.pump();
    let verdict = world.verdict();
    assert_eq!(faults(&verdict), [(FaultKind::OutOfOrder, 1)]);
    assert_eq!((verdict.acked, verdict.found, verdict.expected), (2, 2, 2));
    // The room has faults of its own.
    for (plant, fault) in [
        (Plant::Lose(2), (FaultKind::RoomLost, 3)),
        (Plant::Reorder(2), (FaultKind::RoomOutOfOrder, 3)),
        (Plant::Corrupt(2), (FaultKind::RoomWrong, 3)),
    ] {
        let mut world = broker(0, plant);
        for _ in 0..4 {
            world.guests[1].publish(world.now_ns, &mut world.cx, world.now_ns);
        }
        world.pump();
        assert!(faults(&world.verdict()).contains(&fault), "{plant:?}");
    }
}

#[test]
fn a_message_that_was_not_acknowledged_is_written_again_on_the_next_connection() {
    let mut world = broker(1, Plant::NoAnswer(2));
    (0..3).for_each(|_| world.send(0, 0));
    world.pump();
    assert_eq!((world.count(Counter::Acked), world.guests[0].outstanding()), (2, 1));
    assert_eq!(world.guests[1].owed(&world.cx), 0, "it arrived");
    world.cut(0);
    world.send(0, 0);
    assert_eq!(world.count(Counter::ConnectionsLost), 1);
    world.pass(2_000);
    assert!(world.guests[0].is_up(), "it came back");
    let counts = [Counter::Acked, Counter::Resent, Counter::Redelivered, Counter::Received];
    assert_eq!(counts.map(|counter| world.count(counter)), [4, 1, 1, 4]);
    assert_eq!(world.server.again, 1, "as a duplicate, by its flag");
    assert_eq!(faults(&world.verdict()), []);
}

#[test]
fn who_has_no_session_misses_what_comes_and_that_is_no_loss() {
    let mut world = broker(1, Plant::Nothing);
    world.send(0, 0);
    world.pump();
    assert!(world.guests[1].may_step_away(&world.cx) || world.cx.population.is_publisher(1));
    world.guests[1].break_off(world.now_ns, &mut world.cx, 1_000 * NS_PER_MS);
    assert_eq!(world.guests[1].standing(), Standing::Away);
    world.pump();
    (0..3).for_each(|_| world.send(0, 0));
    world.pump();
    world.pass(2_000);
    assert!(world.guests[1].is_up() && !world.guests[1].is_away());
    (0..2).for_each(|_| world.send(0, 0));
    world.pump();
    let counts = [Counter::Acked, Counter::Received, Counter::Missed, Counter::ConnectionsLost];
    assert_eq!(counts.map(|counter| world.count(counter)), [6, 3, 3, 0]);
    let verdict = world.verdict();
    assert_eq!(faults(&verdict), []);
    assert_eq!((verdict.found, verdict.expected), (3, 3));
}

#[test]
fn a_loss_before_a_break_is_still_a_loss() {
    let mut world = broker(1, Plant::Lose(2));
    (0..3).for_each(|_| world.send(0, 0));
    world.pump();
    // And it is counted once, however often the connection breaks, before its session is up or after.
    let cut_on_the_way = |world: &mut World<Mqtt, Broker>| {
        world.cut(1);
        world.guests[1].take_wish();
        world.now_ns += 60_000 * NS_PER_MS;
        world.guests[1].tick(world.now_ns, &mut world.cx);
        assert!(matches!(world.guests[1].take_wish(), Some(Wish::Connect(_))));
        world.guests[1].connected(world.now_ns, &mut world.cx, Ok(()));
        assert_eq!(world.guests[1].standing(), Standing::Connecting);
    };
    cut_on_the_way(&mut world);
    world.cut(1);
    world.pass(5_000);
    assert!(world.guests[1].is_up());
    assert_eq!(faults(&world.verdict()), [(FaultKind::Lost, 1)]);
}

#[test]
fn without_acknowledgements_only_what_a_ping_proved_is_owed_after_a_break() {
    let mut world = broker(0, Plant::Lose(1));
    world.send(0, 0);
    world.pump();
    let now_ns = world.now_ns;
    world.guests[0].beat(now_ns, now_ns, &mut world.cx);
    world.pump();
    assert_eq!(world.count(Counter::Heartbeats), 1);
    // This one is written and never reaches the broker.
    world.send(0, 0);
    world.cut(0);
    world.pump();
    world.pass(2_000);
    assert_eq!(faults(&world.verdict()), [(FaultKind::Lost, 1)], "the first, not the second");
}

#[test]
fn a_refusal_is_told_in_words_and_only_asked_again_if_that_may_help() {
    for (plant, standing, words) in [
        (Plant::Refuse(5), Standing::Done, "CONNACK 5: not authorized"),
        (Plant::Refuse(3), Standing::Waiting, "CONNACK 3: the server is unavailable"),
        (Plant::RefuseSubscription, Standing::Done, "SUBACK [128]"),
    ] {
        let mut world: World<Mqtt, Broker> = World::new(2, Broker::new(plant, 2), |settings, _| {
            settings.mqtt.username = Some("{user}".to_owned());
            settings.mqtt.password = Some("{token}".to_owned());
        });
        world.guests[0].start(world.now_ns, world.now_ns, &world.cx);
        world.pump();
        assert_eq!(world.guests[0].standing(), standing, "{plant:?}");
        assert!(world.cx.errors[0].contains(words), "{:?}", world.cx.errors);
        let is_final = standing == Standing::Done;
        assert_eq!(world.count(Counter::GaveUp), u64::from(is_final));
        let (client_id, username, password) = &world.server.connects[0];
        assert_eq!((client_id.as_str(), username.as_deref()), ("load-0", Some("load-0")));
        assert_eq!(password.as_ref().map(|token| token.split('.').count()), Some(3), "a token");
    }
}

#[test]
fn pings_keep_a_session_and_silence_ends_it() {
    let mut world = broker_with(1, Plant::Nothing, |population| {
        let mut slow = Part::new("slow", 4..6, 0.0);
        slow.slow_reader_pause_ms = 9_000;
        population.parts = vec![Part::new("users", 0..4, 0.0), slow];
    });
    let interval_ns = Mqtt::ping_interval_ns(&world.cx.settings);
    assert_eq!(interval_ns, 54_000 * NS_PER_MS);
    world.pass(200_000);
    let pings = world.count(Counter::Heartbeats);
    assert!((18..=24).contains(&pings), "{pings} of six guests in 200 s");
    assert_eq!(world.count(Counter::ConnectionsLost), 0);
    // The server says nothing any more.
    for _ in 0..1_300 {
        world.now_ns += 100 * NS_PER_MS;
        for guest in &mut world.guests {
            guest.tick(world.now_ns, &mut world.cx);
            guest.take_output(world.now_ns, &mut world.cx);
        }
    }
    assert_eq!(world.count(Counter::ClientIdle), 4, "two read slowly, and hear nothing for that");
}

#[test]
fn a_guest_goes_in_good_order_or_without_a_word() {
    let mut world = broker(1, Plant::Nothing);
    for (manner, farewell) in [(Manner::LogOut, &[0xe0, 0][..]), (Manner::Abrupt, &[])] {
        let guest = &mut world.guests[5];
        guest.step_away(world.now_ns, &mut world.cx, manner);
        assert_eq!(guest.take_wish(), Some(Wish::Close { farewell: farewell.to_vec() }));
        world.server.closed(5);
        world.pass(6_000);
        assert!(world.guests[5].is_up());
    }
    assert_eq!(world.count(Counter::ConnectionsLost), 0);
    assert_eq!(world.count(Counter::Reconnects), 2);
    world.send(0, 0);
    for guest in &mut world.guests {
        guest.finish(world.now_ns, &mut world.cx);
        assert_eq!(guest.standing(), Standing::Done);
    }
    assert_eq!(world.count(Counter::Unanswered), 1);
}

#[test]
fn an_echo_comes_back_to_its_sender_and_is_checked() {
    for (plant, expected) in [
        (Plant::Nothing, vec![]),
        (Plant::Lose(7), vec![(FaultKind::Lost, 1)]),
        (Plant::Duplicate(30), vec![(FaultKind::Duplicated, 1)]),
        (Plant::Corrupt(1), vec![(FaultKind::Lost, 1), (FaultKind::WrongMessage, 1)]),
    ] {
        for text in [false, true] {
            let section = WebsocketEchoSection { text, ..WebsocketEchoSection::default() };
            let mut world = echo(plant, section);
            world.talk();
            let lost = expected.iter().find(|(kind, _)| *kind == FaultKind::Lost);
            let lost = lost.map_or(0, |(_, count)| *count);
            assert_eq!(world.count(Counter::Acked), 30 - lost, "{plant:?}");
            assert_eq!(world.count(Counter::Received), 30 - lost);
            let outstanding: usize = world.guests.iter().map(User::outstanding).sum();
            assert_eq!(outstanding as u64, lost);
            assert_eq!(world.cx.record.of(Metric::Upgrade).len(), 3);
            assert_eq!(world.cx.record.of(Metric::DeliverySingle).len(), 30 - lost);
            assert_eq!(faults(&world.verdict()), expected, "{plant:?}");
        }
    }
    let mut world = echo(Plant::Reorder(1), WebsocketEchoSection::default());
    (0..2).for_each(|_| world.send(0, 0));
    world.pump();
    assert_eq!(faults(&world.verdict()), [(FaultKind::OutOfOrder, 1)]);
}

#[test]
fn echoes_that_were_on_their_way_when_the_connection_broke_are_unanswered_and_not_lost() {
    let mut world = echo(Plant::Lose(2), WebsocketEchoSection::default());
    (0..3).for_each(|_| world.send(1, 0));
    world.pump();
    (0..2).for_each(|_| world.send(1, 0));
    world.cut(1);
    world.pump();
    world.pass(2_000);
    world.send(1, 0);
    world.pump();
    // The second one was followed by a third, so it was lost before the break; but who knows of a
    // message on a connection that broke?
    let counts = [Counter::Received, Counter::Unanswered, Counter::Missed];
    assert_eq!(counts.map(|counter| world.count(counter)), [3, 3, 0]);
    assert_eq!(faults(&world.verdict()), []);
}

#[test]
fn texts_of_the_scenario_stand_before_and_around_the_messages() {
    let section = WebsocketEchoSection {
        subprotocol: Some("echo.v1".to_owned()),
        text: true,
        first_message: Some("SUB {user}\r\n".to_owned()),
        message: Some("PUB {user} {bytes}\r\n{payload}\r\n".to_owned()),
        replies: [("PING\r\n".to_owned(), "PONG\r\n".to_owned())].into(),
        ..WebsocketEchoSection::default()
    };
    let mut world = echo(Plant::Nothing, section);
    world.send(2, 0);
    world.pump();
    assert_eq!(world.server.said[..3], ["SUB load-0\r\n", "SUB load-1\r\n", "SUB load-2\r\n"]);
    assert!(world.server.said[3].starts_with("PUB load-2 100\r\n~2 1 "), "{:?}", world.server.said);
    assert_eq!(world.count(Counter::Received), 1);
    // Several in one message, and among something else.
    let twice = {
        (0..2).for_each(|_| world.send(2, 0));
        let mut bytes = world.guests[2].take_output(world.now_ns, &mut world.cx);
        world.server.plant = Plant::Nothing;
        world.server.receive(2, &mut bytes);
        world.server.said[4..6].join("+OK\r\n")
    };
    for text in ["+OK\r\n", &twice, "PING\r\n"] {
        let mut bytes = Vec::new();
        websocket::write_frame(&mut bytes, Opcode::Text, true, None, text.as_bytes());
        world.guests[2].received(world.now_ns, &mut world.cx, &mut bytes);
    }
    assert_eq!(world.count(Counter::Received), 3);
    world.pump();
    assert_eq!(world.server.said.last().map(String::as_str), Some("PONG\r\n"));
    assert_eq!(faults(&world.verdict()), []);
}

#[test]
fn a_server_without_the_subprotocol_is_refused_in_words() {
    let section = WebsocketEchoSection::default();
    let mut world = echo(Plant::Nothing, section);
    world.server.subprotocol = Some("echo.v1");
    world.cut(0);
    world.pass(1_100);
    assert!(world.count(Counter::UpgradeFailed) > 0);
    let said = "upgrade: asked for subprotocol none, got echo.v1";
    assert!(world.cx.errors.iter().any(|error| error == said), "{:?}", world.cx.errors);
    assert!(!world.guests[0].is_up());
}

#[test]
fn a_guest_with_nothing_to_do_is_small() {
    assert!(size_of::<Guest<WebsocketEcho>>() <= 192, "{}", size_of::<Guest<WebsocketEcho>>());
    assert!(size_of::<Guest<Mqtt>>() <= 208, "{}", size_of::<Guest<Mqtt>>());
    let world = broker(1, Plant::Nothing);
    let is_bare = |guest: &Guest<Mqtt>| guest.letters.is_none() && guest.tracks.capacity() == 0;
    assert!(world.guests.iter().all(is_bare));
    assert!(world.cx.streams.of(&world.cx.population, 1, ROOM).is_some());
}
