//! What agents send about their measurements, to messages and back: snapshots, counters, and what is
//! fresh in the windows.
//!
//! Histograms travel as the buckets that were hit, so that the sum over all agents is, bucket for
//! bucket, the histogram of one process that had measured everything. Percentiles never travel.
//! What comes in is checked: an agent can make the coordinator neither panic nor grow without bound.

use super::proto;
use crate::{
    control::{Snapshot, Usage},
    record::{Counters, METRICS, Metric},
    windows::{Fresh, Sparse, Window},
};

/// Buckets in one message; more are sent in several.
const BUCKETS_MAX: usize = 100_000;
/// Windows in one message.
const WINDOWS_MAX: usize = 2_000;
/// Errors in words from one agent, and their length.
const ERRORS_MAX: usize = 10;
const ERROR_BYTES_MAX: usize = 500;

/// Where the parts of a run begin on a machine's clock, to name them so that others understand it.
#[derive(Clone, Copy, Debug)]
pub struct Anchors {
    /// The ramp.
    pub ramp_start_ns: u64,
    /// The load; `u64::MAX`: it has not begun.
    pub load_start_ns: u64,
}

fn counters(counters: &Counters) -> proto::Counters {
    let (values, codes) = counters.tables();
    let cut = |table: &[u64]| {
        let length = table.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        table[..length].to_vec()
    };
    proto::Counters { values: cut(values), codes: cut(codes) }
}

fn read_counters(counters: Option<proto::Counters>) -> Result<Counters, String> {
    let counters = counters.unwrap_or_default();
    Counters::of_tables(&counters.values, &counters.codes)
        .ok_or_else(|| "more counters than there are".to_owned())
}

/// How an agent stands.
pub fn snapshot(snapshot: &Snapshot) -> proto::Snapshot {
    let cut = |text: &String| text.chars().take(ERROR_BYTES_MAX / 4).collect();
    proto::Snapshot {
        counters: Some(counters(&snapshot.counters)),
        ready: snapshot.ready,
        done: snapshot.done,
        absent: snapshot.absent,
        outstanding: snapshot.outstanding,
        away: snapshot.away,
        seats: snapshot.seats,
        owed: snapshot.owed,
        pulls: snapshot.pulls,
        records: snapshot.records,
        errors: snapshot.errors.iter().take(ERRORS_MAX).map(cut).collect(),
    }
}

/// The same as the coordinator has it.
///
/// # Errors
/// It is none.
pub fn read_snapshot(snapshot: proto::Snapshot, usage: Usage) -> Result<Snapshot, String> {
    let errors = snapshot.errors;
    if errors.len() > ERRORS_MAX || errors.iter().any(|text| text.len() > ERROR_BYTES_MAX) {
        return Err("too many errors in words".to_owned());
    }
    Ok(Snapshot {
        counters: read_counters(snapshot.counters)?,
        ready: snapshot.ready,
        done: snapshot.done,
        absent: snapshot.absent,
        outstanding: snapshot.outstanding,
        away: snapshot.away,
        seats: snapshot.seats,
        owed: snapshot.owed,
        pulls: snapshot.pulls,
        records: snapshot.records,
        elsewhere: Some(usage),
        errors,
    })
}

fn latency(metric: Metric, sparse: &Sparse) -> proto::Latency {
    let mut before = 0;
    let (mut gaps, mut counts) = (Vec::new(), Vec::new());
    for (low, count) in sparse.buckets() {
        gaps.push(low - before);
        counts.push(*count);
        before = *low;
    }
    proto::Latency { metric: metric as u32, gaps, counts }
}

fn read_latency(latency: &proto::Latency) -> Result<(Metric, Sparse), String> {
    let metric = Metric::ALL.get(latency.metric as usize).ok_or("an unknown latency")?;
    if latency.gaps.len() != latency.counts.len() {
        return Err("buckets without counts".to_owned());
    }
    let mut low = 0_u32;
    let buckets: Option<Vec<(u32, u32)>> = latency
        .gaps
        .iter()
        .zip(&latency.counts)
        .map(|(gap, count)| {
            low = low.checked_add(*gap)?;
            Some((low, *count))
        })
        .collect();
    Ok((*metric, Sparse::of_buckets(buckets.ok_or("a bucket beyond all values")?)))
}

/// What was measured, in as many lists as messages are to be sent.
pub fn windows(fresh: &Fresh, anchors: Anchors) -> Vec<Vec<proto::Window>> {
    let mut messages = Vec::new();
    let (mut message, mut buckets) = (Vec::new(), 0);
    for ((start_ns, index), window) in fresh {
        let in_load = *start_ns >= anchors.load_start_ns;
        let anchor_ns = if in_load { anchors.load_start_ns } else { anchors.ramp_start_ns };
        let size: usize = window.latencies().iter().map(|(_, one)| one.buckets().len()).sum();
        if buckets + size > BUCKETS_MAX || message.len() >= WINDOWS_MAX {
            messages.push(std::mem::take(&mut message));
            buckets = 0;
        }
        buckets += size;
        message.push(proto::Window {
            in_load,
            part_offset_ns: start_ns.saturating_sub(anchor_ns),
            index: *index,
            counters: Some(counters(&window.counters)),
            ready: window.ready,
            meant: window.meant,
            latencies: window
                .latencies()
                .iter()
                .map(|(metric, one)| latency(*metric, one))
                .collect(),
        });
    }
    messages.push(message);
    messages
}

/// A window as the coordinator has it: when its part begins, its number in it, and what was measured.
///
/// # Errors
/// It is none, or not of this run: `offsets_ns` are the beginnings of the parts of the load.
pub fn read_window(
    window: &proto::Window,
    anchors: Anchors,
    offsets_ns: &[u64],
    windows_max: u32,
) -> Result<(u64, u32, Window), String> {
    let offset_ns = window.part_offset_ns;
    let is_known = match window.in_load {
        true => offsets_ns.contains(&offset_ns) && anchors.load_start_ns != u64::MAX,
        false => offset_ns == 0,
    };
    if !is_known || window.index >= windows_max || window.latencies.len() > METRICS {
        return Err("a window that the run does not have".to_owned());
    }
    let anchor_ns = if window.in_load { anchors.load_start_ns } else { anchors.ramp_start_ns };
    let mut read = Window::default();
    read.counters = read_counters(window.counters.clone())?;
    (read.ready, read.meant) = (window.ready, window.meant);
    for latency in &window.latencies {
        let (metric, sparse) = read_latency(latency)?;
        read.add_latency(metric, &sparse);
    }
    Ok((anchor_ns + offset_ns, window.index, read))
}

#[cfg(test)]
mod tests {
    use super::{Anchors, read_window, windows};
    use crate::{
        agents::proto,
        record::{Counter, Metric, Recorder},
        windows::{Fresh, Windows},
    };

    const SECOND: u64 = 1_000_000_000;

    /// A recorder of a run whose ramp and load begin then.
    fn recorder(ramp_ns: u64, load_ns: u64) -> Recorder {
        let mut recorder = Recorder::default();
        recorder.windows = Windows::new(SECOND, 30);
        recorder.windows.keep_fresh();
        recorder.windows.begin(ramp_ns);
        recorder.windows.begin(load_ns);
        recorder.windows.begin(load_ns + 5 * SECOND);
        recorder
    }

    fn read_all(into: &mut Windows, fresh: &Fresh, theirs: Anchors, ours: Anchors) {
        for window in windows(fresh, theirs).iter().flatten() {
            // As it comes over the wire.
            let bytes = prost::Message::encode_to_vec(window);
            let window = <proto::Window as prost::Message>::decode(&bytes[..]).expect("decodes");
            let (start_ns, index, window) =
                read_window(&window, ours, &[0, 5 * SECOND], 30).expect("of this run");
            into.add(start_ns, index, &window);
        }
    }

    #[test]
    fn what_agents_stream_adds_up_to_the_histograms_of_one_process() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..20 {
            let agents = random.usize(1..5);
            // Every machine counts its nanoseconds from elsewhere.
            let ours = Anchors { ramp_start_ns: 3 * SECOND, load_start_ns: 9 * SECOND };
            let starts: Vec<u64> = (0..agents).map(|_| random.u64(1..1000) * SECOND / 7).collect();
            let theirs = |agent: usize| Anchors {
                ramp_start_ns: starts[agent] + SECOND,
                load_start_ns: starts[agent] + 7 * SECOND,
            };
            let mut each: Vec<Recorder> = (0..agents)
                .map(|agent| recorder(theirs(agent).ramp_start_ns, theirs(agent).load_start_ns))
                .collect();
            let mut whole = recorder(ours.ramp_start_ns, ours.load_start_ns);
            let mut merged = Windows::new(SECOND, 30);
            for step in 0..2_000_u64 {
                let agent = random.usize(..agents);
                // 14 s of the run, from before the load until after its end.
                let at_ns = step * 14 * SECOND / 2_000 + random.u64(0..1000);
                let metric = Metric::ALL[random.usize(..Metric::ALL.len())];
                let us = 1 + (random.u64(0..30_000) * random.u64(0..30_000)).min(700_000_000);
                let counter = Counter::ALL[random.usize(..Counter::ALL.len())];
                let its = &mut each[agent];
                let code = random.u32(1..30);
                for (one, start_ns) in
                    [(its, theirs(agent).ramp_start_ns), (&mut whole, ours.ramp_start_ns)]
                {
                    one.now_ns = start_ns + at_ns + us * 1000;
                    one.record(metric, us * 1000);
                    one.windows.meant(start_ns + at_ns);
                    one.windows.roll(start_ns + at_ns, &one.counters, 1);
                    one.counters.add(counter);
                    one.counters.add_code(code);
                }
                if random.u32(..100) == 0 {
                    read_all(&mut merged, &each[agent].windows.take_fresh(), theirs(agent), ours);
                }
            }
            whole.windows.close(&whole.counters, 1);
            for (agent, its) in each.iter_mut().enumerate() {
                its.windows.close(&its.counters, 1);
                read_all(&mut merged, &its.windows.take_fresh(), theirs(agent), ours);
            }
            let merged = Recorder::of_windows(merged);
            let say = format!("seed {seed}, round {round}, {agents} agents");
            for metric in Metric::ALL {
                let (one, all) = (whole.of(*metric), merged.of(*metric));
                let buckets = |histogram: &hdrhistogram::Histogram<u64>| -> Vec<(u64, u64)> {
                    let recorded = histogram.iter_recorded();
                    recorded.map(|at| (at.value_iterated_to(), at.count_at_value())).collect()
                };
                assert_eq!(buckets(one), buckets(all), "{} {say}", metric.label());
            }
            assert_eq!(whole.counters.tables(), merged.counters.tables(), "{say}");
            // And window by window, but for counters, which are written down when a window ends.
            assert_eq!(whole.windows.parts().len(), merged.windows.parts().len(), "{say}");
            for (one, all) in whole.windows.parts().iter().zip(merged.windows.parts()) {
                assert_eq!((one.start_ns, one.windows.len()), (all.start_ns, all.windows.len()));
                for (one, all) in one.windows.iter().zip(&all.windows) {
                    assert_eq!(one.meant, all.meant, "{say}");
                    for (metric, sparse) in one.latencies() {
                        let same = all.latencies().iter().find(|(known, _)| known == metric);
                        assert_eq!(same.map(|(_, sparse)| sparse), Some(sparse), "{say}");
                    }
                }
            }
        }
    }

    #[test]
    fn windows_that_the_run_does_not_have_are_refused() {
        let anchors = Anchors { ramp_start_ns: SECOND, load_start_ns: 3 * SECOND };
        let read = |window: &proto::Window, anchors| read_window(window, anchors, &[0, 7], 30);
        let good = proto::Window { in_load: true, part_offset_ns: 7, ..proto::Window::default() };
        assert_eq!(read(&good, anchors).expect("good").0, 3 * SECOND + 7);
        let early = Anchors { load_start_ns: u64::MAX, ..anchors };
        assert!(read(&good, early).is_err(), "the load has not begun");
        let latency = |metric, gaps: &[u32], counts: &[u32]| proto::Latency {
            metric,
            gaps: gaps.to_vec(),
            counts: counts.to_vec(),
        };
        for bad in [
            proto::Window { part_offset_ns: 8, ..good.clone() },
            proto::Window { index: 30, ..good.clone() },
            proto::Window { in_load: false, ..good.clone() },
            proto::Window { latencies: vec![latency(1000, &[], &[])], ..good.clone() },
            proto::Window { latencies: vec![latency(0, &[1], &[])], ..good.clone() },
            proto::Window { latencies: vec![latency(0, &[u32::MAX, 1], &[1, 1])], ..good.clone() },
            proto::Window {
                counters: Some(proto::Counters { values: vec![1; 1000], codes: vec![] }),
                ..good.clone()
            },
        ] {
            assert!(read(&bad, anchors).is_err(), "{bad:?}");
        }
    }
}
