//! The summary of a run for a person.

use std::fmt::Write as _;

use super::{AgentReport, Report};
use crate::record::Counter;

impl Report {
    /// The summary for a person.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let count = |counter: Counter| self.counters.get(counter.label()).copied().unwrap_or(0);
        writeln!(
            out,
            "\n{:<17} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "latency, ms", "count", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, _) in &self.histograms {
            if let Some(p) = self.latency_us.get(name) {
                let ms = |us: u64| us as f64 / 1000.0;
                writeln!(
                    out,
                    "{name:<17} {:>9} {:>10.3} {:>10.3} {:>10.3} {:>10.3} {:>10.3}",
                    p.count,
                    ms(p.p50),
                    ms(p.p90),
                    ms(p.p99),
                    ms(p.p99_9),
                    ms(p.max)
                )?;
            }
        }
        writeln!(
            out,
            "\nconnections  {} opened, {} logins, {} reconnects, {} lost, {} gave up",
            count(Counter::Connections),
            count(Counter::Logins),
            count(Counter::Reconnects),
            count(Counter::ConnectionsLost),
            count(Counter::GaveUp)
        )?;
        writeln!(
            out,
            "ramp         {:.1} s, {:.0} sessions a second",
            self.ramp_seconds, self.ramp_per_second
        )?;
        if count(Counter::Churned) > 0 {
            writeln!(
                out,
                "churn        {} went by themselves, {} came back",
                count(Counter::Churned),
                count(Counter::Reconnects)
            )?;
        }
        if count(Counter::FlatOut) > 0 {
            let rate = self.rates.get(Counter::FlatOut.label()).copied().unwrap_or(0.0);
            writeln!(out, "flat out     {} heartbeats ({rate:.0}/s)", count(Counter::FlatOut))?;
        }
        if count(Counter::RoomJoins) > 0 {
            writeln!(
                out,
                "room         {} joins, {} messages published ({} acknowledged, {} refused, {} \
                 unsent), {} arrivals ({:.0}/s)",
                count(Counter::RoomJoins),
                count(Counter::RoomSent),
                count(Counter::RoomAcked),
                count(Counter::RoomRefused),
                count(Counter::RoomUnsent),
                count(Counter::RoomReceived),
                self.rates.get(Counter::RoomReceived.label()).copied().unwrap_or(0.0)
            )?;
        }
        if count(Counter::CustomSent) > 0 {
            writeln!(
                out,
                "custom       {} sent, {} answered, {} refused, {} unsent, {} unanswered; {} pushed",
                count(Counter::CustomSent),
                count(Counter::CustomReplies),
                count(Counter::CustomRefused),
                count(Counter::CustomUnsent),
                count(Counter::CustomUnanswered),
                count(Counter::CustomReceived)
            )?;
        }
        if let Some(verification) = &self.verification {
            writeln!(
                out,
                "messages     {} intended, {} sent, {} resent ({} timeouts, {} refusals), \
                 {} acknowledged ({} as duplicate), {} failed, {} unanswered",
                count(Counter::Intended),
                count(Counter::Sent),
                count(Counter::Resent),
                count(Counter::SendTimeouts),
                count(Counter::SendRefusals),
                count(Counter::Acked),
                count(Counter::AckedDuplicate),
                count(Counter::Failed),
                count(Counter::Unanswered)
            )?;
            writeln!(
                out,
                "deliveries   {} of {} arrived, {} of them pulled; {} redelivered",
                verification.found_deliveries,
                verification.expected_deliveries,
                count(Counter::Pulled),
                count(Counter::Redelivered)
            )?;
            let faults = verification.faults.iter().map(|(kind, count)| format!("{kind} {count}"));
            writeln!(out, "verified     {}", faults.collect::<Vec<_>>().join(", "))?;
            for example in &verification.examples {
                writeln!(out, "             {example}")?;
            }
        }
        if count(Counter::Echoes) > 0 {
            let rate = self.rates.get(Counter::Echoes.label()).copied().unwrap_or(0.0);
            writeln!(out, "echoes       {} ({rate:.0}/s)", count(Counter::Echoes))?;
        }
        if self.endings.count > 0 {
            let by_code =
                self.endings.by_code.iter().map(|(code, count)| format!("{code} {count}"));
            writeln!(
                out,
                "ended        {} by the server, after {:.2} to {:.2} s of silence: {}",
                self.endings.count,
                self.endings.silence_seconds_min,
                self.endings.silence_seconds_max,
                by_code.collect::<Vec<_>>().join(", ")
            )?;
        }
        if !self.refusals.is_empty() {
            let refusals = self.refusals.iter().map(|(code, count)| format!("{code} {count}"));
            writeln!(out, "refusals     {}", refusals.collect::<Vec<_>>().join(", "))?;
        }
        for error in &self.errors {
            writeln!(out, "error        {error}")?;
        }
        self.write_course(out)?;
        let generator = &self.generator;
        writeln!(
            out,
            "generator    late p99 {:.1} ms, max {:.1} ms; CPU {:.0} % of a core over {:.1} s; waited \
             for a core {:.0} %",
            generator.late_p99_us as f64 / 1000.0,
            generator.late_max_us as f64 / 1000.0,
            generator.cpu_percent,
            self.load_seconds,
            generator.waited_percent
        )?;
        for agent in &self.agents {
            writeln!(out, "agent        {}", agent.words())?;
        }
        for result in &self.thresholds {
            let mark = if result.passed { "met" } else { "MISSED" };
            let observed = result.observed.map_or("nothing".to_owned(), |value| value.to_string());
            writeln!(out, "threshold    {} {mark} (observed {observed})", result.condition)?;
        }
        if self.passed {
            writeln!(out, "PASSED")
        } else {
            writeln!(out, "FAILED (exit {})", self.exit_code)?;
            self.failures.iter().try_for_each(|failure| writeln!(out, "  {failure}"))
        }
    }

    /// Stages, storms and the breakpoint.
    fn write_course(&self, out: &mut String) -> std::fmt::Result {
        if self.stages.len() > 1 {
            writeln!(
                out,
                "\n{:<24} {:>7} {:>9} {:>9} {:>10} {:>10} {:>10}",
                "stage", "s", "load", "asked/s", "p50 ms", "p99.9 ms", "max ms"
            )?;
        }
        for stage in self.stages.iter().filter(|_| self.stages.len() > 1) {
            let load = match stage.load_from == stage.load_to {
                true => format!("{:.2}", stage.load_to),
                false => format!("{:.2}-{:.2}", stage.load_from, stage.load_to),
            };
            // What people ask for first, of what there was.
            let latencies =
                ["delivery", "delivery_room", "heartbeat", "custom", "arrival", "return"];
            let latency = latencies.iter().find_map(|name| stage.latency_us.get(*name));
            let ms = |us: Option<u64>| match us {
                Some(us) => format!("{:.3}", us as f64 / 1000.0),
                None => "-".to_owned(),
            };
            writeln!(
                out,
                "{:<24} {:>7.1} {load:>9} {:>9.0} {:>10} {:>10} {:>10}{}",
                stage.name,
                stage.seconds,
                stage.to_per_second,
                ms(latency.map(|latency| latency.p50)),
                ms(latency.map(|latency| latency.p99_9)),
                ms(latency.map(|latency| latency.max)),
                if stage.passed { "" } else { "  MISSED" }
            )?;
            for result in stage.thresholds.iter().filter(|result| !result.passed) {
                let observed =
                    result.observed.map_or("nothing".to_owned(), |value| value.to_string());
                writeln!(out, "             {} (observed {observed})", result.condition)?;
            }
        }
        for recovery in &self.recoveries {
            let took = recovery
                .recovered_seconds
                .map_or("never".to_owned(), |seconds| format!("after {seconds:.1} s"));
            writeln!(
                out,
                "recovery     {} at {:.1} s: {} sessions gone, all back {took}",
                recovery.event, recovery.start_seconds, recovery.sessions
            )?;
        }
        if let Some(breakpoint) = &self.breakpoint {
            let held = match breakpoint.held_load > 0.0 {
                true => format!(
                    "load {:.2} ({:.0}/s) held",
                    breakpoint.held_load, breakpoint.held_per_second
                ),
                false => "no step held".to_owned(),
            };
            let broke = match (breakpoint.broke_load, &breakpoint.why) {
                (Some(load), Some(why)) => format!("load {load:.2} did not: {why}"),
                _ => "nothing broke".to_owned(),
            };
            writeln!(out, "breakpoint   {held}; {broke}")?;
        }
        Ok(())
    }
}

impl AgentReport {
    /// Its part in a line.
    fn words(&self) -> String {
        let mut words = format!(
            "{}: {} connections ({:.1} %), clock {:+.3} ms ± {:.3}",
            self.address,
            self.connections,
            100.0 * self.share,
            self.clock_offset_us / 1e3,
            self.clock_uncertainty_us / 1e3
        );
        if let Some(drift) = self.clock_drift_us {
            words.push_str(&format!(", drift {:+.3} ms", drift / 1e3));
        }
        if let Some(generator) = &self.generator {
            let late = generator.late_p99_us as f64 / 1e3;
            let cpu = generator.cpu_percent;
            words.push_str(&format!(", late p99 {late:.1} ms, CPU {cpu:.0} %"));
            if generator.saturated {
                words.push_str(", SPOILT");
            }
        }
        if let Some(lost) = &self.lost {
            words.push_str(&format!(", LOST: {lost}"));
        }
        words
    }
}
