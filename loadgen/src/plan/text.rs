//! A plan for a person: one block for each tier, then what it rests on.

use std::fmt::Write as _;

use super::{Line, Plan};
use crate::figures::{bytes, count, plain, significant};

impl Plan {
    /// The plan in words.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let demand = &self.demand;
        write!(
            out,
            "{} connections, {} messages a second",
            count(demand.connections),
            plain(demand.messages())
        )?;
        if demand.room_deliveries() > 0.0 {
            write!(
                out,
                ", a room of {} with {} messages a second",
                count(demand.room_members),
                plain(demand.room_messages_per_second)
            )?;
        }
        writeln!(
            out,
            ", heartbeats every {} s, everybody there within {} s",
            plain(demand.heartbeat_seconds),
            plain(demand.ramp_seconds)
        )?;
        for tier in &self.tiers {
            let machine = match tier.name {
                "agents" => self.supply.agent,
                "gateways" => self.supply.gateway,
                _ => self.supply.logic,
            };
            writeln!(
                out,
                "\n{} {} of {} cores and {}{}",
                count(tier.count),
                if tier.count == 1 { tier.name.trim_end_matches('s') } else { tier.name },
                plain(machine.cores),
                bytes(machine.memory_bytes as f64),
                if tier.bound_by.is_empty() {
                    String::new()
                } else {
                    format!("; fewer would not do: {}", tier.bound_by.join("; "))
                }
            )?;
            for line in &tier.each {
                let basis = line.basis.map_or("", |basis| basis.label());
                writeln!(out, "  {:<22} {:>12}  {basis:<8}  {}", line.name, value(line), line.how)?;
            }
        }
        writeln!(out, "\nsupposed")?;
        for assumption in &self.assumptions {
            writeln!(out, "  - {assumption}")?;
        }
        writeln!(out, "\nfigures, from {}", self.measured_on)?;
        for used in &self.figures {
            let figure = &used.figure;
            writeln!(
                out,
                "  {:<38} {:>10} {:<11} {:<8}  {}",
                used.name,
                plain(figure.value),
                if figure.unit == "1" { "" } else { &figure.unit },
                figure.basis.label(),
                figure.source
            )?;
        }
        Ok(())
    }
}

fn value(line: &Line) -> String {
    match line.unit {
        "B" => bytes(line.value),
        "1/s" => format!("{}/s", significant(line.value)),
        "cores" => significant(line.value),
        _ => count(line.value as u64),
    }
}
