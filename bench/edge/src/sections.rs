//! Sections of the report that are made of what one script wrote: the preset `million`
//! (`tests/e2e/million.py --scenario million`) and single chat (`tests/e2e/single_chat.py`).
//!
//! They repeat figures and judge nothing: a run that failed is shown with what it said.

use std::fmt::Write as _;

use serde_json::Value;

use crate::plot::number;

fn figure(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The percentiles of these latencies, in milliseconds, as a table.
fn latencies(latency_us: &Value, rows: &[(&str, &str)]) -> String {
    let mut table = String::from(
        "| latency, ms | count | p50 | p99 | p99.9 | max |\n|---|---|---|---|---|---|\n",
    );
    for (name, what) in rows {
        let latency = &latency_us[*name];
        let _ = write!(table, "| {what} | {} |", number(figure(&latency["count"])));
        for percentile in ["p50", "p99", "p99.9", "max"] {
            let _ = write!(table, " {} |", number(figure(&latency[percentile]) / 1e3));
        }
        table.push('\n');
    }
    table
}

/// The preset `million`: everything at once on this machine.
pub fn million(run: &Value) -> String {
    let generator = &run["generator"];
    let (counters, verified) = (&generator["counters"], &generator["verification"]);
    let count = |name: &str| number(figure(&counters[name]));
    let mut out = String::from("\n## Everything at once: the preset `million`\n\n");
    let _ = writeln!(
        out,
        "{} WebSocket connections, each logged in through logic ({} a second), heartbeats every {} s; then, for {} s, {} \
         single-chat messages, {} connections that go and come back, and a live room that was joined {} times with {} messages. The \
         generator shares the {} cores; nice value {}.\n",
        number(figure(&run["connections"])),
        number(figure(&generator["ramp_per_second"])),
        number(figure(&run["heartbeat_seconds"])),
        number(figure(&generator["load_seconds"])),
        count("sent"),
        count("churned"),
        count("room_joins"),
        count("room_sent"),
        run["machine"]["cores"],
        generator["environment"]["nice"],
    );
    out += &latencies(
        &generator["latency_us"],
        &[
            ("delivery_single", "single chat, delivered"),
            ("ack_single", "single chat, acknowledged"),
            ("delivery_room", "room, each member"),
            ("heartbeat", "heartbeat, ramp included"),
            ("return", "back after going, logged in"),
            ("late", "the generator itself"),
        ],
    );
    let faults: f64 =
        verified["faults"].as_object().into_iter().flatten().map(|(_, of)| figure(of)).sum();
    let _ = writeln!(
        out,
        "\n{} of {} deliveries of single chat and {} of the room arrived, {} faults; {} connections lost, {} idled out, {} left and came \
         back. Gateway {} B of user memory an idle connection, logic {}, kernel {} for both ends. Verdict: {}{}\n",
        number(figure(&verified["found_deliveries"])),
        number(figure(&verified["expected_deliveries"])),
        count("room_received"),
        number(faults),
        count("connections_lost"),
        count("client_idle"),
        count("reconnects"),
        number(figure(&run["memory"]["per_connection"]["gateway_user"])),
        number(figure(&run["memory"]["per_connection"]["logic_user"])),
        number(figure(&run["memory"]["per_connection"]["kernel_both_ends"])),
        if generator["passed"].as_bool().unwrap_or_default() { "passed" } else { "failed: " },
        items(&generator["failures"]).map(text).collect::<Vec<_>>().join("; "),
    );
    out += "| % of a core | gateway, user + kernel | logic | generator | all of the machine | of it soft interrupts |\n|---|---|---|---|---|---|\n";
    for phase in ["ramp", "hold", "load"] {
        let used = &run["cpu_percent_of_a_core"][phase];
        let tier = |tier: &str| {
            let used = &used[tier];
            format!("{} + {}", number(figure(&used["user"])), number(figure(&used["system"])))
        };
        let _ = writeln!(
            out,
            "| {phase} | {} | {} | {} | {} | {} |",
            tier("gateway"),
            tier("logic"),
            tier("generator"),
            number(figure(&used["machine_busy"])),
            number(figure(&used["machine_softirq"])),
        );
    }
    let _ = write!(out, "\nCommand:\n\n```\n{}\n```\n", text(&run["command"]));
    out
}

/// Single chat at speed: its latencies, and where the CPU time goes. `profiled` is a run of its own,
/// because taking a profile costs latency.
pub fn single_chat(measured: &Value, profiled: Option<&Value>) -> String {
    let mut out = String::from("\n## Single chat at speed, and where the time goes\n\n");
    out += "Half of the connections are TCP and half WebSocket; every message stored (fdatasync), acknowledged, delivered, its receipt told; \
            gateway, logic, store and generator on the same cores. What was done about the largest parts is in \
            `docs/measurements/single-chat.md`.\n";
    for run in items(&measured["runs"]) {
        let verified = &run["verification"];
        let _ = write!(
            out,
            "\n{} messages a second asked, {} stored; {} of {} delivered.\n\n",
            number(figure(&run["rate"])),
            number(figure(&run["stored_per_second"])),
            number(figure(&verified["found_deliveries"])),
            number(figure(&verified["expected_deliveries"])),
        );
        out += &latencies(
            &run["latency_us"],
            &[
                ("ack_single", "acknowledged"),
                ("delivery_single", "delivered"),
                ("late", "the generator itself"),
            ],
        );
        out += "\n| threads | µs a message | of it kernel |\n|---|---|---|\n";
        let mut all = 0.0;
        for row in items(&run["cpu"]) {
            let (user, kernel) = (figure(&row["user_us"]), figure(&row["kernel_us"]));
            all += user + kernel;
            if user + kernel >= 0.5 {
                let name = format!("{}: {}", text(&row["process"]), text(&row["thread"]));
                let _ =
                    writeln!(out, "| {name} | {} | {} |", number(user + kernel), number(kernel));
            }
        }
        let capacity = 1e6 * figure(&run["cores"]) / figure(&run["stored_per_second"]).max(1.0);
        let _ = writeln!(out, "| all, of {} there are | {} | |", number(capacity), number(all));
    }
    let shares = profiled.into_iter().flat_map(|profiled| items(&profiled["runs"]));
    for run in shares {
        let _ = write!(
            out,
            "\nWhose work the CPU time is, from a profile (`perf`) of a run of its own at {} messages a second:\n\n| tier | share |\n|---|---|\n",
            number(figure(&run["rate"]))
        );
        for tier in items(&run["profile"]) {
            let share = 100.0 * figure(&tier["share"]);
            let _ = writeln!(out, "| {} | {} % |", text(&tier["whose"]), number(share));
        }
    }
    out += "\nCommands:\n\n```\n";
    for of in [Some(measured), profiled].into_iter().flatten() {
        let _ = writeln!(out, "{}", text(&of["command"]));
    }
    out += "```\n";
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{million, single_chat};

    #[test]
    fn figures_stand_in_the_sections_and_a_failure_is_said() {
        let latency = json!({"count": 300_000, "p50": 22_351, "p99": 156_031, "p99.9": 318_463, "max": 364_543});
        let run = json!({
            "connections": 1_000_000, "command": "million.py", "heartbeat_seconds": 300,
            "generator": {
                "passed": false, "failures": ["too slow"], "latency_us": {"delivery_single": latency},
                "verification": {"faults": {"lost": 2, "gap": 1}}, "environment": {"nice": -10}
            }
        });
        let text = million(&run);
        for part in [
            "1,000,000 WebSocket",
            "| 300,000 | 22.4 | 156 | 318 | 365 |",
            "3 faults",
            "failed: too slow",
            "nice value -10",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let measured = json!({"command": "measured", "runs": [{
            "rate": 20_000, "stored_per_second": 20_000, "cores": 2, "latency_us": {"delivery_single": latency},
            "cpu": [{"process": "gateway", "thread": "shard", "user_us": 3.0, "kernel_us": 16.5}]
        }]});
        let profiled = json!({"command": "profiled", "runs": [
            {"rate": 20_000, "profile": [{"whose": "kernel: gateway's sockets", "share": 0.215}]}
        ]});
        let text = single_chat(&measured, Some(&profiled));
        for part in [
            "| gateway: shard | 19.5 | 16.5 |",
            "| all, of 100 there are | 19.5 | |",
            "sockets | 21.5 % |",
            "profiled",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
