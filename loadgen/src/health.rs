//! The generator's account of itself: its CPU time second by second, the time its threads waited for
//! a core, and the rule by which it refuses its own result.
//!
//! The rule: at every moment of a schedule, and a hundred times a second besides, the generator notes
//! how late it was itself (`late`). If more than 1 % of these moments were later than `late_p99_max`,
//! or more than 0.1 % later than `late_p999_max`, in the whole load or in any stage of it, or if the
//! busiest thread used more than `cpu_max` of a core, or had work and no core for more than `waited_max`
//! of the load, the latencies are the generator's and not the
//! server's: the run is refused. Evenly spread moments see the same waiting that arrivals from the
//! server see, so their lateness also bounds what was added to a delivery.

use std::fs;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{cpu, record::Metric, scenario::GeneratorSection, windows::Part};

/// Samples kept; then every second one is dropped.
const SAMPLES_MAX: usize = 16_384;

/// CPU of this process and of its busiest thread over time.
#[derive(Debug)]
pub struct Meter {
    every_ns: u64,
    due_ns: u64,
    /// When, and the CPU seconds until then.
    samples: Vec<(u64, f64)>,
    threads: Vec<ThreadTime>,
    /// Over the measured time: the largest share of a core that a generator thread used, and waited for.
    busiest: f64,
    waited: f64,
    started_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct ThreadTime {
    id: u32,
    on_cpu_ns: u64,
    waited_ns: u64,
}

impl Meter {
    /// Samples this often.
    pub fn new(every_ns: u64) -> Self {
        Self {
            every_ns: every_ns.max(1),
            due_ns: 0,
            samples: Vec::new(),
            threads: generator_threads(),
            busiest: 0.0,
            waited: 0.0,
            started_ns: None,
        }
    }

    /// Takes a sample if it is time.
    pub fn look(&mut self, now_ns: u64) {
        self.started_ns.get_or_insert(now_ns);
        if now_ns < self.due_ns {
            return;
        }
        self.due_ns = now_ns + self.every_ns;
        self.samples.push((now_ns, cpu::seconds()));
        if self.samples.len() > SAMPLES_MAX {
            let mut number = 0;
            self.samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.every_ns *= 2;
        }
    }

    /// From samples of several processes together: when, and the CPU seconds until then.
    pub fn of_samples(samples: Vec<(u64, f64)>) -> Self {
        Self { samples, ..Self::new(1) }
    }

    /// The measured time is over.
    pub fn finish(&mut self, now_ns: u64) {
        self.samples.push((now_ns, cpu::seconds()));
        let span_ns = now_ns.saturating_sub(self.started_ns.unwrap_or(now_ns)).max(1) as f64;
        for now in generator_threads() {
            let before = self.threads.iter().find(|before| before.id == now.id);
            let since =
                |now: u64, before: Option<u64>| now.saturating_sub(before.unwrap_or(0)) as f64;
            let on_cpu = since(now.on_cpu_ns, before.map(|before| before.on_cpu_ns));
            let waited = since(now.waited_ns, before.map(|before| before.waited_ns));
            self.busiest = self.busiest.max(on_cpu / span_ns);
            self.waited = self.waited.max(waited / span_ns);
        }
    }

    /// CPU seconds in all.
    pub fn cpu_seconds(&self) -> f64 {
        match (self.samples.first(), self.samples.last()) {
            (Some((_, first)), Some((_, last))) => last - first,
            _ => 0.0,
        }
    }

    /// CPU in percent of a core between two moments; 0 outside of the measured time.
    pub fn percent(&self, from_ns: u64, to_ns: u64) -> f64 {
        let at = |ns: u64| {
            let after = self.samples.partition_point(|(at_ns, _)| *at_ns < ns);
            let (Some(left), Some(right)) =
                (self.samples.get(after.saturating_sub(1)), self.samples.get(after))
            else {
                return self.samples.last().map(|(_, cpu)| *cpu);
            };
            let span = (right.0 - left.0).max(1) as f64;
            let part = (ns.saturating_sub(left.0) as f64 / span).clamp(0.0, 1.0);
            Some(left.1 + (right.1 - left.1) * part)
        };
        let (Some(from), Some(to)) = (at(from_ns), at(to_ns)) else { return 0.0 };
        100.0 * (to - from) / (to_ns.saturating_sub(from_ns).max(1) as f64 / 1e9)
    }
}

/// CPU and run-queue time of the threads that drive connections, which are named for it.
fn generator_threads() -> Vec<ThreadTime> {
    let Ok(folder) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let thread = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        if !name.starts_with("generator") {
            return None;
        }
        let schedstat = fs::read_to_string(path.join("schedstat")).ok()?;
        let mut words = schedstat.split_whitespace().map(str::parse::<u64>);
        Some(ThreadTime {
            id: entry.file_name().to_str()?.parse().ok()?,
            on_cpu_ns: words.next()?.ok()?,
            waited_ns: words.next()?.ok()?,
        })
    };
    // A thread may end while this looks.
    folder.filter_map(Result::ok).filter_map(thread).collect()
}

/// One condition of the rule, and what was observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Which.
    pub name: String,
    /// `us` or `percent`.
    pub unit: String,
    /// What is allowed.
    pub limit: f64,
    /// What was observed, in the worst stage.
    pub observed: f64,
    /// Whether it was more than allowed.
    pub broken: bool,
}

/// The generator's account of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Generator {
    /// Intended to handled, 99 %, microseconds.
    pub late_p99_us: u64,
    /// 99.9 %.
    #[serde(default)]
    pub late_p999_us: u64,
    /// The largest.
    pub late_max_us: u64,
    /// Moments looked at.
    #[serde(default)]
    pub moments: u64,
    /// Of them, those later than `late_p99_max`.
    #[serde(default)]
    pub late_sends: u64,
    /// CPU time of this process during the load, seconds.
    pub cpu_seconds: f64,
    /// The same in percent of one core.
    pub cpu_percent: f64,
    /// The busiest thread, in percent of a core.
    #[serde(default)]
    pub busiest_thread_cpu_percent: f64,
    /// Of the load, the largest part in which a thread could have run and had no core, percent.
    #[serde(default)]
    pub waited_percent: f64,
    /// Whether its figures are to be trusted.
    pub saturated: bool,
    /// The rule, condition by condition.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Why they are not, in sentences.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// What the rule looks at.
pub struct Observed<'a> {
    /// Lateness of the whole load.
    pub late: &'a Histogram<u64>,
    /// The stages, by name.
    pub stages: Vec<(&'a str, &'a Part)>,
    /// CPU.
    pub meter: &'a Meter,
    /// Length of the load.
    pub load_seconds: f64,
    /// A part of the load waits for answers: it uses what it gets.
    pub has_closed_loop: bool,
}

impl Generator {
    /// Applies the rule.
    pub fn judge(observed: &Observed<'_>, limits: &GeneratorSection) -> Self {
        let Observed { late, meter, load_seconds, .. } = observed;
        let cpu_seconds = meter.cpu_seconds();
        let p99_max = limits.late_p99_max.as_millis() * 1000;
        let mut generator = Self {
            late_p99_us: late.value_at_quantile(0.99),
            late_p999_us: late.value_at_quantile(0.999),
            late_max_us: late.max(),
            moments: late.len(),
            late_sends: late.len() - late.count_between(0, p99_max),
            cpu_seconds,
            cpu_percent: 100.0 * cpu_seconds / load_seconds.max(0.001),
            busiest_thread_cpu_percent: 100.0 * meter.busiest,
            waited_percent: 100.0 * meter.waited,
            ..Self::default()
        };
        let stages: Vec<_> = observed
            .stages
            .iter()
            .map(|(name, part)| (*name, part.histograms().swap_remove(Metric::Late as usize)))
            .filter(|(_, late)| !late.is_empty())
            .collect();
        let rules = [
            ("late_p99_max", 0.99, p99_max),
            ("late_p999_max", 0.999, limits.late_p999_max.as_millis() * 1000),
        ];
        for (name, quantile, limit_us) in rules {
            let whole = ("the load", late.value_at_quantile(quantile));
            let each = stages.iter().map(|(name, late)| (*name, late.value_at_quantile(quantile)));
            let (place, worst_us) =
                [whole].into_iter().chain(each).max_by_key(|(_, us)| *us).unwrap_or(whole);
            let broken = worst_us > limit_us;
            if broken {
                generator.reasons.push(format!(
                    "in {place} the generator itself was late: p{} {} ms, {name} is {} ms",
                    quantile * 100.0,
                    worst_us / 1000,
                    limit_us / 1000
                ));
            }
            generator.rule(name, "us", limit_us as f64, worst_us as f64, broken);
        }
        let (limit, busiest) = (100.0 * limits.cpu_max, generator.busiest_thread_cpu_percent);
        let broken = busiest > limit && !observed.has_closed_loop;
        if broken {
            generator.reasons.push(format!(
                "its busiest thread used {busiest:.0} % of a core, cpu_max is {limit:.0} %: use more \
                 threads or machines"
            ));
        }
        generator.rule("cpu_max", "percent", limit, busiest, broken);
        let (limit, waited) = (100.0 * limits.waited_max, generator.waited_percent);
        let broken = waited > limit;
        if broken {
            generator.reasons.push(format!(
                "a thread had work and no core for {waited:.0} % of the load, waited_max is \
                 {limit:.0} %: something else runs on its core; give it a core of its own, or let it go \
                 first (nice -n -10)"
            ));
        }
        generator.rule("waited_max", "percent", limit, waited, broken);
        generator.saturated = !generator.reasons.is_empty();
        generator
    }

    /// Several generators in one: the lateness of all together, and spoilt if one of them is, which is
    /// named.
    pub fn merged(
        late: &Histogram<u64>,
        parts: &[(&str, &Self)],
        limits: &GeneratorSection,
    ) -> Self {
        let p99_max = limits.late_p99_max.as_millis() * 1000;
        let mut sum = Self {
            late_p99_us: late.value_at_quantile(0.99),
            late_p999_us: late.value_at_quantile(0.999),
            late_max_us: late.max(),
            moments: late.len(),
            late_sends: late.len() - late.count_between(0, p99_max),
            ..Self::default()
        };
        for (name, part) in parts {
            sum.cpu_seconds += part.cpu_seconds;
            sum.cpu_percent += part.cpu_percent;
            let busiest = sum.busiest_thread_cpu_percent.max(part.busiest_thread_cpu_percent);
            sum.busiest_thread_cpu_percent = busiest;
            sum.waited_percent = sum.waited_percent.max(part.waited_percent);
            sum.saturated |= part.saturated;
            sum.reasons.extend(part.reasons.iter().map(|reason| format!("agent {name}: {reason}")));
            for rule in &part.rules {
                match sum.rules.iter_mut().find(|known| known.name == rule.name) {
                    // The worst of them.
                    Some(known) if rule.observed > known.observed => *known = rule.clone(),
                    Some(_) => {}
                    None => sum.rules.push(rule.clone()),
                }
            }
        }
        sum
    }

    fn rule(&mut self, name: &str, unit: &str, limit: f64, observed: f64, broken: bool) {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        self.rules.push(Rule { name, unit, limit, observed, broken });
    }
}

#[cfg(test)]
mod tests {
    use super::{Generator, Meter, Observed};
    use crate::{
        record::Metric,
        scenario::GeneratorSection,
        windows::{Part, Windows},
    };

    fn judge(part: &Part, change: impl FnOnce(&mut GeneratorSection, &mut Meter)) -> Generator {
        let (mut limits, mut meter) = (GeneratorSection::default(), Meter::new(1));
        change(&mut limits, &mut meter);
        let late = part.histograms().swap_remove(Metric::Late as usize);
        let stages = vec![("spike", part)];
        let observed = Observed {
            late: &late,
            stages,
            meter: &meter,
            load_seconds: 10.0,
            has_closed_loop: false,
        };
        Generator::judge(&observed, &limits)
    }

    fn late(moments: &[(u64, u64)]) -> Part {
        let mut windows = Windows::default();
        windows.begin(1);
        for (us, count) in moments {
            (0..*count).for_each(|_| windows.record(Metric::Late, *us, 1));
        }
        windows.parts()[0].clone()
    }

    #[test]
    fn late_moments_refuse_the_result_when_they_are_too_many() {
        let good = judge(&late(&[(1_000, 995), (60_000, 5)]), |_, _| {});
        assert!(!good.saturated, "{good:?}");
        assert_eq!((good.moments, good.late_sends), (1000, 5));
        let many = judge(&late(&[(1_000, 980), (60_000, 20)]), |_, _| {});
        assert!(many.saturated && many.reasons[0].contains("in spike"), "{many:?}");
        let long = judge(&late(&[(1_000, 998), (600_000, 2)]), |_, _| {});
        assert!(long.saturated && long.reasons[0].contains("p99.9"), "{long:?}");
        let allowed = judge(&late(&[(1_000, 980), (60_000, 20)]), |limits, _| {
            limits.late_p99_max = millrace_service::Duration::from_millis(100);
        });
        assert!(!allowed.saturated, "the limits are configuration");
    }

    #[test]
    fn one_bad_stage_refuses_the_result_however_long_the_others_were() {
        let (bad, all) = (late(&[(400_000, 50)]), late(&[(400_000, 50), (10, 100_000)]));
        let meter = Meter::new(1);
        let late = all.histograms().swap_remove(Metric::Late as usize);
        let observed = Observed {
            late: &late,
            stages: vec![("soak", &all), ("spike", &bad)],
            meter: &meter,
            load_seconds: 10.0,
            has_closed_loop: false,
        };
        let judged = Generator::judge(&observed, &GeneratorSection::default());
        assert!(judged.late_p99_us < 1000 && judged.saturated, "{judged:?}");
        assert!(judged.reasons[0].contains("spike"), "{judged:?}");
    }

    #[test]
    fn a_thread_that_had_its_core_to_itself_all_the_time_had_nothing_to_spare() {
        let busy = judge(&late(&[(10, 100)]), |_, meter| meter.busiest = 0.99);
        assert!(busy.saturated, "{busy:?}");
        assert!(busy.rules.iter().any(|rule| rule.name == "cpu_max" && rule.broken));
    }

    #[test]
    fn a_thread_that_had_to_wait_for_its_core_refuses_the_result() {
        let starved = judge(&late(&[(10, 100)]), |_, meter| meter.waited = 0.45);
        assert!(starved.saturated && starved.reasons[0].contains("no core"), "{starved:?}");
        let shared = judge(&late(&[(10, 100)]), |_, meter| meter.waited = 0.35);
        assert!(!shared.saturated, "{shared:?}");
    }

    #[test]
    fn cpu_between_two_moments_is_read_off_the_samples() {
        let mut meter = Meter::new(1);
        meter.samples = vec![(0, 1.0), (1_000_000_000, 1.5), (2_000_000_000, 1.5)];
        assert!((meter.percent(0, 1_000_000_000) - 50.0).abs() < 1e-9);
        assert!((meter.percent(500_000_000, 1_500_000_000) - 25.0).abs() < 1e-9);
        assert!(meter.percent(1_000_000_000, 2_000_000_000).abs() < 1e-9);
        assert!((meter.cpu_seconds() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn one_spoilt_generator_of_several_spoils_them_all_and_is_named() {
        let (good, bad) = (late(&[(1_000, 10_000)]), late(&[(600_000, 5)]));
        let parts = [judge(&good, |_, _| {}), judge(&bad, |_, _| {})];
        let mut all = good.histograms().swap_remove(Metric::Late as usize);
        all.add(&bad.histograms()[Metric::Late as usize]).expect("the same bounds");
        let limits = GeneratorSection::default();
        let merged = Generator::merged(&all, &[("a:1", &parts[0]), ("b:1", &parts[1])], &limits);
        assert!(merged.late_p99_us < 2_000, "all together look well: {merged:?}");
        assert_eq!((merged.moments, merged.late_sends, merged.rules.len()), (10_005, 5, 4));
        assert!(merged.saturated, "{merged:?}");
        assert!(
            merged.reasons.iter().all(|reason| reason.starts_with("agent b:1: ")),
            "{merged:?}"
        );
        assert!(merged.rules.iter().any(|rule| rule.name == "late_p99_max" && rule.broken));
        let well = Generator::merged(&all, &[("a:1", &parts[0])], &limits);
        assert!(!well.saturated && well.reasons.is_empty(), "{well:?}");
    }
}
