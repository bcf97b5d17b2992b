//! What a plan promises: nothing beyond what was observed, and no machine overcommitted.

use super::{Demand, Kind, Machine, Share, Supply, plan};
use crate::ledger::Ledger;

fn demand(connections: u64, messages_per_second: f64) -> Demand {
    Demand {
        connections,
        messages_per_second,
        group_messages_per_second: 0.0,
        group_size: 20,
        room_members: 0,
        room_messages_per_second: 0.0,
        heartbeat_seconds: 300.0,
        ramp_seconds: 600.0,
        churn_per_minute: 0.01,
    }
}

fn supply() -> Supply {
    let machine = Machine { cores: 8.0, memory_bytes: 16 << 30 };
    Supply {
        agent: machine,
        gateway: machine,
        logic: machine,
        utilization: 0.6,
        ports: 28_232,
        destinations: None,
    }
}

#[test]
fn ten_million_connections_take_ten_of_what_was_measured_once() {
    let ledger = Ledger::built_in();
    let plan = plan(&demand(10_000_000, 50_000.0), &supply(), &ledger).expect("possible");
    let [agents, gateways, logics] = &plan.tiers[..] else { panic!("three tiers") };
    assert_eq!((agents.count, gateways.count), (10, 10), "{plan:#?}");
    // 50,000 a second through stores that were seen to take 19,941 each.
    assert_eq!(logics.count, 3);
    assert_eq!(gateways.each[0].value, 1_000_000.0);
    // 1,000,000 / (14,116 × 10 destinations).
    let addresses = agents.each.iter().find(|line| line.name == "source addresses").expect("line");
    assert_eq!(addresses.value, 8.0);
    let text = plan.to_text();
    for word in ["10 gateways", "measured", "derived", "million.md", "PostgreSQL"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn one_address_to_connect_to_takes_more_source_addresses() {
    let supply = Supply { destinations: Some(1), ..supply() };
    let plan = plan(&demand(1_000_000, 0.0), &supply, &Ledger::built_in()).expect("possible");
    let agents = &plan.tiers[0];
    let addresses = agents.each.iter().find(|line| line.name == "source addresses").expect("line");
    assert_eq!(addresses.value * agents.count as f64, 71.0);
}

#[test]
fn no_machine_is_planned_beyond_its_share_and_one_machine_less_would_not_do() {
    let ledger = Ledger::built_in();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let mut demand = demand(random.u64(1..20_000_000), random.f64() * 200_000.0);
        demand.room_members = random.u64(0..=demand.connections);
        demand.room_messages_per_second = random.f64();
        let mut supply = supply();
        supply.gateway.cores = random.u32(1..64).into();
        supply.gateway.memory_bytes = random.u64(1 << 30..256 << 30);
        let plan = plan(&demand, &supply, &ledger).expect("possible");
        let kinds = [Kind::Agents, Kind::Gateways, Kind::Logics];
        for (tier, kind) in plan.tiers.iter().zip(kinds) {
            let share = Share::new(kind, &demand, &ledger, tier.count);
            let machine = supply.machine(kind);
            assert!(share.cores() <= machine.cores * supply.utilization, "seed {seed}: {demand:?}");
            assert!(
                share.memory <= machine.memory_bytes as f64 * supply.utilization,
                "seed {seed}"
            );
            assert!(kind == Kind::Logics || share.connections <= 1e6, "seed {seed}: {demand:?}");
            assert_eq!(tier.bound_by.is_empty(), tier.count == 1, "seed {seed}: {demand:?}");
        }
    }
}

#[test]
fn machines_that_carry_nothing_are_refused_in_words() {
    let mut supply = supply();
    supply.agent.memory_bytes = 1 << 20;
    let error = plan(&demand(1000, 0.0), &supply, &Ledger::built_in()).expect_err("too small");
    assert!(error.to_string().contains("memory"), "{error}");
}
