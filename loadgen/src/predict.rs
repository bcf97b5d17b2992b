//! What the ledger says a finished run should have cost, beside what it did cost.

use crate::{
    ledger::{Basis, Figure, Ledger},
    observe::{Observations, Tier, Usage},
    output::document::{Document, Predicted},
};

/// Below so many connections, what a process has anyway outweighs what a connection adds.
const CONNECTIONS_MIN: f64 = 10_000.0;

/// What a run did a second while the load was on.
struct Rates {
    messages: f64,
    room_deliveries: f64,
    heartbeats: f64,
    logins: f64,
}

/// Moments at which the run's parts began and ended, on the wall clock.
struct Times {
    idle_ms: i64,
    load_from_ms: i64,
    load_to_ms: i64,
}

/// A row for each thing that the ledger knows and the run had. `is_local`: both ends of every
/// connection are on this machine.
pub fn predict(document: &Document, observations: &Observations, is_local: bool) -> Vec<Predicted> {
    let ledger = Ledger::built_in();
    let connections = connections(document);
    // Servers of others are unknown to the ledger, and so is what it costs to speak to them.
    let protocol = document.configuration.get("protocol").and_then(serde_json::Value::as_str);
    let is_ours = document.command != "echo" && protocol.is_none_or(|one| one == "millrace");
    if !is_ours || connections == 0.0 {
        return Vec::new();
    }
    let rates = rates(document);
    let times = times(document);
    let mut rows = Vec::new();
    let mut memory = |name: &str, figure: &Figure, factor: f64, measured: Option<f64>| {
        let note = if connections < CONNECTIONS_MIN {
            "; below 10,000 connections what a process has anyway outweighs it"
        } else {
            ""
        };
        rows.push(Predicted {
            name: format!("{name}, memory a connection"),
            unit: "B".to_owned(),
            predicted: figure.value * factor,
            measured: measured.map(|bytes| bytes / connections),
            basis: Some(figure.basis),
            source: format!("{}{note}", figure.source),
        });
    };
    let first = observations.moments.first();
    // Nothing was seen of a ramp shorter than the time between two looks.
    let idle = times
        .as_ref()
        .and_then(|times| observations.at(times.idle_ms))
        .filter(|idle| first.is_some_and(|first| first.unix_ms < idle.unix_ms));
    let grown =
        |of: &dyn Fn(&crate::observe::Moment) -> Option<f64>| Some(of(idle?)? - of(first?)?);
    // What agents hold is in memory elsewhere.
    let is_here = document.agents.is_empty();
    memory(
        "generator",
        &ledger.generator_bytes_per_connection,
        1.0,
        grown(&|moment| is_here.then_some(moment.own.resident_bytes)),
    );
    memory(
        "kernel (slab)",
        &ledger.kernel_bytes_per_connection_end,
        if is_local { 2.0 } else { 1.0 },
        grown(&|moment| is_here.then_some(moment.slab_bytes)),
    );
    for (index, tier) in observations.tiers.iter().enumerate() {
        let measured = grown(&|moment| Some(moment.servers.get(index)?.as_ref()?.resident_bytes));
        let (gateway, logic) =
            (&ledger.gateway_bytes_per_connection, &ledger.logic_bytes_per_session);
        match tier {
            Tier::Gateway => memory("gateway", gateway, 1.0, measured),
            Tier::Logic => memory("logic", logic, 1.0, measured),
            Tier::Both => {
                let both = Figure { value: gateway.value + logic.value, ..logic.clone() };
                memory("gateway and logic", &both, 1.0, measured);
            }
        }
    }
    let cost = ledger.message_cost(rates.messages);
    let mut processor = |name: &str,
                         [message, login, heartbeat, room]: [f64; 4],
                         measured: Option<f64>| {
        let us = rates.messages * message
            + rates.logins * login
            + rates.heartbeats * heartbeat
            + rates.room_deliveries * room;
        rows.push(Predicted {
            name: format!("{name}, processor in the load"),
            unit: "percent".to_owned(),
            predicted: us / 1e4,
            measured,
            basis: Some(Basis::Derived),
            source: format!(
                "of one core: {:.0} messages/s × {message:.0} µs, {:.0} heartbeats/s × {heartbeat:.0} µs, {:.0} logins/s × {login:.0} µs, {:.0} room deliveries/s × {room:.0} µs",
                rates.messages, rates.heartbeats, rates.logins, rates.room_deliveries
            ),
        });
    };
    let generator = [
        cost.generator_us,
        ledger.generator_us_per_login.value,
        ledger.generator_us_per_heartbeat.value,
        ledger.generator_us_per_room_delivery.value,
    ];
    let gateway = [
        cost.gateway_us,
        ledger.gateway_us_per_login.value,
        ledger.gateway_us_per_heartbeat.value,
        ledger.gateway_us_per_room_delivery.value,
    ];
    let logic = [cost.logic_us, ledger.logic_us_per_login.value, 0.0, 0.0];
    processor("generator", generator, Some(document.generator.cpu_percent));
    for (index, tier) in observations.tiers.iter().enumerate() {
        let usage = |unix_ms: i64| -> Option<(Usage, i64)> {
            let moment = observations.at(unix_ms)?;
            Some(((*moment.servers.get(index)?)?, moment.unix_ms))
        };
        let measured = times.as_ref().and_then(|times| {
            let (before, from_ms) = usage(times.load_from_ms)?;
            let (after, to_ms) = usage(times.load_to_ms)?;
            let seconds = (to_ms - from_ms) as f64 / 1000.0;
            (seconds >= 1.0).then(|| 100.0 * (after.cpu_seconds - before.cpu_seconds) / seconds)
        });
        match tier {
            Tier::Gateway => processor("gateway", gateway, measured),
            Tier::Logic => processor("logic", logic, measured),
            Tier::Both => {
                let both: [f64; 4] = std::array::from_fn(|at| gateway[at] + logic[at]);
                processor("gateway and logic", both, measured);
            }
        }
    }
    rows.extend(ramp(document, &ledger, is_local));
    rows
}

/// The ramp of a machine that holds everything; of other machines nothing is known here.
fn ramp(document: &Document, ledger: &Ledger, is_local: bool) -> Option<Predicted> {
    let cores = f64::from(document.environment.as_ref()?.cores);
    let asked = document.configuration.get("ramp_per_second")?.as_f64()?;
    if !is_local || document.ramp_per_second <= 0.0 {
        return None;
    }
    // The figure is that of two cores with everything on them.
    let possible = ledger.ramp_per_second.value * cores / 2.0;
    Some(Predicted {
        name: "ramp, sessions".to_owned(),
        unit: "1/s".to_owned(),
        predicted: asked.min(possible),
        measured: Some(document.ramp_per_second),
        basis: Some(Basis::Derived),
        source: format!(
            "asked {asked:.0}/s; {possible:.0}/s on {cores:.0} cores: {}",
            ledger.ramp_per_second.source
        ),
    })
}

fn connections(document: &Document) -> f64 {
    let asked = document.configuration.get("connections").and_then(serde_json::Value::as_f64);
    asked.unwrap_or_else(|| {
        let held = document.windows.iter().map(|window| window.connections).max();
        held.unwrap_or(0) as f64
    })
}

fn rates(document: &Document) -> Rates {
    let rate = |name: &str| document.rates.get(name).copied().unwrap_or(0.0);
    let in_load = |name: &str| {
        let windows = document.windows.iter().filter(|window| window.phase == "load");
        let sum: u64 = windows.filter_map(|window| window.counters.get(name)).sum();
        sum as f64 / document.load_seconds.max(0.001)
    };
    Rates {
        messages: rate("acked"),
        room_deliveries: rate("room_received"),
        heartbeats: in_load("heartbeats"),
        logins: in_load("logins"),
    }
}

fn times(document: &Document) -> Option<Times> {
    let start_ms = document.started_at_unix_ms?;
    let load = document.phases.iter().find(|phase| phase.name == "load")?;
    let at = |seconds: f64| start_ms + (seconds * 1000.0) as i64;
    let from = at(load.start_seconds);
    Some(Times {
        idle_ms: from,
        load_from_ms: from,
        load_to_ms: at(load.start_seconds + load.seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::predict;
    use crate::{
        observe::{Moment, Observations, Tier, Usage},
        output::samples,
    };

    #[test]
    fn what_a_run_cost_stands_beside_what_the_ledger_says() {
        let mut document = samples::full();
        document.agents.clear();
        document.configuration["connections"] = 100_000.into();
        document.configuration["ramp_per_second"] = 100.0.into();
        let start = document.started_at_unix_ms.expect("is there");
        let moment = |seconds: i64, resident_bytes: f64, cpu_seconds: f64| Moment {
            unix_ms: start + seconds * 1000,
            own: Usage { resident_bytes, cpu_seconds },
            slab_bytes: resident_bytes * 30.0,
            servers: vec![Some(Usage { resident_bytes, cpu_seconds })],
        };
        let observations = Observations {
            tiers: vec![Tier::Gateway],
            moments: vec![moment(-1, 10e6, 0.0), moment(9, 40e6, 5.0), moment(60, 60e6, 30.5)],
        };
        let rows = predict(&document, &observations, true);
        let row = |name: &str| {
            rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name}: {rows:#?}"))
        };
        assert_eq!(row("generator, memory a connection").measured, Some(300.0));
        assert_eq!(row("generator, memory a connection").predicted, 257.0);
        // What agents hold is not in this process, whatever this process holds.
        let mut shared = document.clone();
        shared.agents = samples::full().agents;
        assert!(predict(&shared, &observations, false)[0].measured.is_none());
        assert_eq!(row("kernel (slab), memory a connection").predicted, 2.0 * 4846.0);
        assert_eq!(row("gateway, memory a connection").measured, Some(300.0));
        // 25.5 s of 51 s.
        assert_eq!(row("gateway, processor in the load").measured, Some(50.0));
        assert_eq!(row("generator, processor in the load").measured, Some(20.0));
        assert_eq!(row("ramp, sessions").predicted, 100.0);
        assert!(rows.iter().all(|row| row.predicted > 0.0 && !row.source.is_empty()), "{rows:#?}");
    }

    #[test]
    fn what_nobody_looked_at_is_predicted_alone_and_an_echo_server_not_at_all() {
        let mut document = samples::full();
        document.started_at_unix_ms = None;
        let rows = predict(&document, &Observations::default(), false);
        assert!(rows.iter().any(|row| row.measured.is_none()), "{rows:#?}");
        document.configuration["protocol"] = "mqtt".into();
        assert!(predict(&document, &Observations::default(), false).is_empty());
        document.configuration["protocol"] = "millrace".into();
        document.command = "echo".to_owned();
        assert!(predict(&document, &Observations::default(), false).is_empty());
    }
}
