//! What scenarios say, and what is said about those that make no sense.

use super::{Scenario, plan::Act, presets};
use crate::population::Transport;

fn refusal(text: &str) -> String {
    Scenario::parse(text, "mine.toml").expect_err(text).to_string()
}

#[test]
fn every_preset_is_good_and_says_what_it_is_for() {
    for (name, text) in presets::ALL {
        let scenario = Scenario::parse(text, name).expect(name);
        assert_eq!(scenario.name, name);
        assert!(!scenario.description.is_empty(), "{name}");
        assert!(text.starts_with("# "), "{name} explains itself");
        let plan = scenario.plan(7).expect(name);
        assert!(plan.load_ns() > 0 && !plan.streams.is_empty(), "{name}");
        // All of it, written out and read again, is the same scenario.
        let written = scenario.to_toml();
        let again = Scenario::parse(&written, name).expect(&written);
        assert_eq!(again.to_toml(), written, "{name}");
    }
}

#[test]
fn an_empty_file_is_a_scenario_and_every_key_has_its_default() {
    let scenario = Scenario::parse("", "empty.toml").expect("defaults");
    let plan = scenario.plan(1).expect("a plan");
    assert_eq!(plan.population.users, 1000);
    assert_eq!(plan.stages.len(), 1);
    assert_eq!(plan.load_ns(), 60_000_000_000);
}

#[test]
fn a_slip_is_answered_with_its_place_the_key_and_what_is_allowed() {
    for (text, place, words) in [
        ("conections = 5", "mine.toml:1:1", "did you mean `connections`?"),
        ("\n[single_chat]\nper_secnd = 5", "mine.toml:3:1", "did you mean `per_second`?"),
        ("[[stage]]\nkind = \"spiky\"", "mine.toml:2:8", "`spike`"),
        ("[[population]]\ntransport = \"udp\"", "mine.toml:2:13", "`tcp`"),
        ("[[stage]]\nduration = 10", "mine.toml:2:12", "10 has no unit"),
        ("thresholds = [\"delivrey p99 < 1s\"]", "mine.toml:1:", "delivery_single"),
        ("thresholds = [\"delivery p99 < fast\"]", "mine.toml:1:", "fast"),
        ("connections = 0", "mine.toml:1:1", "connections"),
        ("[single_chat]\npopulation = \"phones\"", "mine.toml:2:1", "there is no [[population]]"),
        ("[login]\nalgorithm = \"RS256\"", "mine.toml:2:1", "login.key_file"),
        ("[[custom]]\ncommand = 2", "mine.toml:1:3", "0x0100"),
        ("[[stage]]\nkind = \"breakpoint\"\nfrom = 0.1", "mine.toml:1:3", "needs thresholds"),
        ("[[stage]]\nthresholds = [\"loss = 0\"]", "mine.toml:1:3", "whole run"),
    ] {
        let said = refusal(text);
        assert!(said.starts_with(place), "{text}: {said}");
        assert!(said.contains(words), "{text}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn shares_and_counts_make_up_all_connections() {
    let text = "connections = 1000\n\
        [[population]]\nname = \"a\"\nshare = 0.333\ntransport = \"tcp\"\n\
        [[population]]\nname = \"b\"\ncount = 100\ntransport = \"websocket\"\n\
        [[population]]\nname = \"c\"\nshare = 0.567\n";
    let plan = Scenario::parse(text, "t").expect(text).plan(1).expect("a plan");
    let sizes: Vec<_> = plan.population.parts.iter().map(|part| part.users.len()).collect();
    assert_eq!(sizes, [333, 100, 567]);
    assert_eq!(plan.population.transport(0), Transport::Tcp);
    assert_eq!(plan.population.transport(333), Transport::WebSocket);
    let short =
        "[[population]]\nname = \"a\"\nshare = 0.3\n[[population]]\nname = \"b\"\ncount = 5\n";
    assert!(refusal(short).contains("305 users"), "{}", refusal(short));
}

#[test]
fn stages_follow_each_other_and_a_search_has_its_steps() {
    let text = "[single_chat]\nper_second = 100\n\
        [[stage]]\nkind = \"ramp\"\nduration = \"10s\"\n\
        [[stage]]\nname = \"find\"\nkind = \"breakpoint\"\nduration = \"5s\"\nfrom = 1\nto = 3\n\
        steps = 3\nthresholds = [\"ack p99 < 1s\"]\n";
    let plan = Scenario::parse(text, "t").expect(text).plan(1).expect("a plan");
    let stages: Vec<_> = plan
        .stages
        .iter()
        .map(|stage| (stage.name.as_str(), stage.offset_ns / 1_000_000_000, stage.slope.to))
        .collect();
    let expected = [
        ("ramp", 0, 1.0),
        ("find 1 of 3", 10, 1.0),
        ("find 2 of 3", 15, 2.0),
        ("find 3 of 3", 20, 3.0),
    ];
    assert_eq!(stages, expected);
    assert!((plan.per_second() - 100.0).abs() < 1e-9);
}

#[test]
fn behaviours_keep_to_the_users_they_name_and_visitors_are_nobodys_partners() {
    let text = "connections = 100\n\
        [[population]]\nname = \"idle\"\nshare = 0.5\n\
        [[population]]\nname = \"talk\"\nshare = 0.3\n\
        [[population]]\nname = \"visit\"\nshare = 0.2\n\
        [single_chat]\nper_second = 1\npopulation = \"talk\"\n\
        [group_chat]\nper_second = 3\npopulation = \"talk\"\ngroup_size = 10\n\
        [room_broadcast]\nper_second = 1\n\
        [login_storm]\nper_second = 1\npopulation = \"visit\"\n";
    let plan = Scenario::parse(text, "t").expect(text).plan(1).expect("a plan");
    let users = |act: Act| {
        let stream = plan.streams.iter().find(|stream| stream.act == act);
        stream.map(|stream| stream.users.clone()).expect("the behaviour is there")
    };
    assert_eq!(users(Act::Single), 50..80);
    assert_eq!(users(Act::Group), 50..80);
    assert_eq!(users(Act::Call), 80..100);
    assert_eq!((plan.population.room_first, plan.population.room_size), (0, 80));
    assert_eq!(plan.population.group_of(55), Some(0));
    assert_eq!(plan.population.group_of(49), None);
    assert_eq!(plan.population.visitors(), 20);
    for user in 0..80 {
        for choice in 0..2 {
            let contact = plan.population.contact(user, choice);
            assert!(contact < 80 && contact != user, "{user} → {contact}");
        }
    }
}

#[test]
fn bodies_of_custom_frames_are_text_or_hexadecimal() {
    assert_eq!(super::plan::hex("00 ff1A"), Some(vec![0, 255, 26]));
    assert_eq!(super::plan::hex("0"), None);
    assert_eq!(super::plan::hex("zz"), None);
    let both = "[[custom]]\ncommand = 0x300\nbody = \"x\"\nbody_hex = \"00\"";
    assert!(refusal(both).contains("not both"));
}

#[test]
fn what_a_protocol_cannot_do_is_said_and_not_left_out() {
    let mqtt = "protocol = \"mqtt\"\n";
    let echo = "protocol = \"websocket_echo\"\n";
    for (head, text, words) in [
        (mqtt, "[group_chat]\nper_second = 1", "group_chat: mqtt has no groups; a topic with many"),
        (echo, "[group_chat]\nper_second = 1", "group_chat: websocket_echo has no groups"),
        (echo, "[room_broadcast]\nper_second = 1", "there are no rooms"),
        (mqtt, "[[custom]]\ncommand = 0x300", "custom: mqtt has no frames"),
        (mqtt, "[heartbeat]\nclosed_loop = 1", "no closed loop of pings"),
        (mqtt, "[mqtt]\nqos = 2", "mqtt.qos: must be 0 or 1: quality of service 2"),
        (mqtt, "[mqtt]\npassword = \"x\"", "no password without a user name"),
        (mqtt, "[mqtt]\ntopic_prefix = \"a/#\"", "topic_prefix"),
        ("protocol = \"mqtt\"\nuser_prefix = \"a#\"\n", "", "user_prefix: is a part of topics"),
        (mqtt, "[mqtt]\nkeep_alive = \"1500ms\"", "whole seconds"),
        (mqtt, "[mqtt]\nqos = 0\n[single_chat]\nclosed_loop = 1", "there is no closed loop"),
        (mqtt, "[websocket_echo]\ntext = true", "only protocol = \"websocket_echo\" has it"),
        ("", "[mqtt]\nqos = 1", "and this is millrace"),
        (echo, "[websocket_echo]\nmessage = \"x\"", "must hold {payload} once"),
        (echo, "[websocket_echo]\nsubprotocol = \"a b\"", "no name of a subprotocol"),
        (mqtt, "[[population]]\nname = \"a\"\ntransport = \"websocket\"", "transport of its own"),
        (
            echo,
            "[[population]]\nname = \"a\"\ndevices = { ios = 1 }",
            "no LOGIN that names devices",
        ),
        ("protocol = \"amqp\"\n", "", "`mqtt`"),
    ] {
        let said = refusal(&format!("{head}{text}"));
        assert!(said.contains(words), "{text}: {said}");
    }
    let plan = |text: &str| Scenario::parse(text, "t").expect(text).plan(1).expect("a plan");
    assert_eq!(plan(mqtt).population.transport(7), Transport::Tcp);
    assert_eq!(plan(echo).population.transport(7), Transport::WebSocket);
    let alone = "protocol = \"websocket_echo\"\nconnections = 1\n[single_chat]\nper_second = 1\n\
        [generator]\nthreads = 1";
    assert!(plan(alone).has_single_chat(), "an echo needs nobody else");
}
