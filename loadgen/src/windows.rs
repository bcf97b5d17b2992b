//! What is measured, second by second: for each window of time the growth of the counters and a
//! histogram of every latency that was recorded.
//!
//! A latency stands in the window in which its span *began*: a message in that of its intended
//! moment. So a stall shows in the seconds that it hit, with all messages that it delayed, and a
//! stage of a run is judged by what was meant in it. The windows of a part of a run (the ramp, each
//! stage, what comes after) together are the part's own histogram. Nothing is printed here.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::record::{Counter, Counters, METRICS, Metric, histogram};

/// A histogram that keeps only the buckets that were hit: those of an HDR histogram of
/// microseconds with three digits, so that it merges with one without loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// Lowest value of the bucket and count, ascending.
    buckets: Vec<(u32, u32)>,
}

/// Values below this have a bucket of their own.
const EXACT_BELOW: u32 = 2048;

/// The lowest value of the bucket that holds `us`.
const fn bucket_of(us: u32) -> u32 {
    if us < EXACT_BELOW {
        return us;
    }
    let shift = (u32::BITS - us.leading_zeros()) - EXACT_BELOW.trailing_zeros();
    us >> shift << shift
}

impl Sparse {
    /// Records one value in microseconds.
    pub fn record(&mut self, us: u64) {
        self.add(bucket_of(u32::try_from(us).unwrap_or(u32::MAX)), 1);
    }

    fn add(&mut self, bucket: u32, count: u32) {
        let at = self.buckets.partition_point(|(low, _)| *low < bucket);
        match self.buckets.get_mut(at) {
            Some((low, known)) if *low == bucket => *known = known.saturating_add(count),
            _ => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// Adds another's values.
    pub fn merge(&mut self, other: &Self) {
        other.buckets.iter().for_each(|(bucket, count)| self.add(*bucket, *count));
    }

    /// From buckets and counts that came from elsewhere.
    pub fn of_buckets(buckets: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut sparse = Self::default();
        buckets.into_iter().for_each(|(low, count)| sparse.add(bucket_of(low), count));
        sparse
    }

    /// Buckets and counts, ascending.
    pub fn buckets(&self) -> &[(u32, u32)] {
        &self.buckets
    }

    /// Adds all values to a dense histogram.
    pub fn add_to(&self, histogram: &mut Histogram<u64>) {
        for (bucket, count) in &self.buckets {
            histogram.saturating_record_n(u64::from(*bucket), u64::from(*count));
        }
    }
}

/// One window.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// What the counters grew by in it.
    pub counters: Counters,
    /// Sessions that were up at its end.
    pub ready: u64,
    /// Messages that were meant in it, whenever the generator got round to them.
    pub meant: u64,
    latencies: Vec<(Metric, Sparse)>,
}

impl Window {
    fn latency(&mut self, metric: Metric) -> &mut Sparse {
        let known = self.latencies.iter().position(|(known, _)| *known == metric);
        let at = known.unwrap_or_else(|| {
            self.latencies.push((metric, Sparse::default()));
            self.latencies.len() - 1
        });
        &mut self.latencies[at].1
    }

    /// The latencies whose spans began in this window.
    pub fn latencies(&self) -> &[(Metric, Sparse)] {
        &self.latencies
    }

    /// Adds a latency that was measured elsewhere.
    pub fn add_latency(&mut self, metric: Metric, sparse: &Sparse) {
        self.latency(metric).merge(sparse);
    }

    /// Adds what another thread measured in the same window.
    pub fn merge(&mut self, other: &Self) {
        self.counters.merge(&other.counters);
        self.ready += other.ready;
        self.meant += other.meant;
        for (metric, sparse) in &other.latencies {
            self.latency(*metric).merge(sparse);
        }
    }
}

/// A part of the run: the ramp, a stage, what comes after the load.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// When it begins.
    pub start_ns: u64,
    /// Its windows, of one length, from its beginning.
    pub windows: Vec<Window>,
}

impl Part {
    /// All its windows in one; `ready` is that of the last.
    pub fn total(&self) -> Window {
        let mut sum = Window::default();
        self.windows.iter().for_each(|window| sum.merge(window));
        sum.ready = self.windows.last().map_or(0, |window| window.ready);
        sum
    }

    /// The histogram of each metric over all windows.
    pub fn histograms(&self) -> Vec<Histogram<u64>> {
        let mut all: Vec<_> = (0..METRICS).map(|_| histogram()).collect();
        for (metric, sparse) in self.windows.iter().flat_map(Window::latencies) {
            sparse.add_to(&mut all[*metric as usize]);
        }
        all
    }
}

/// What was measured since it was last taken: by the beginning of a part and the number of a window in
/// it. All that was ever taken, merged, is the whole; `ready` is in the one that ended the window.
pub type Fresh = BTreeMap<(u64, u32), Window>;

/// Adds what was measured later.
pub fn merge_fresh(into: &mut Fresh, later: Fresh) {
    for (place, window) in later {
        into.entry(place).or_default().merge(&window);
    }
}

/// The windows of one thread, or of all together.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Length of each window.
    pub window_ns: u64,
    /// Windows of a part at most; what comes later is added to its last one.
    windows_max: usize,
    parts: Vec<Part>,
    /// The counters when the present window began, and where it is.
    before: Counters,
    present: (usize, usize),
    /// The same once more since it was last taken, if somebody takes it.
    fresh: Option<Fresh>,
}

impl Windows {
    /// Windows of this length. Nothing is kept before the first [`Windows::begin`].
    pub fn new(window_ns: u64, windows_max: usize) -> Self {
        Self {
            window_ns: window_ns.max(1),
            windows_max: windows_max.max(1),
            parts: Vec::new(),
            before: Counters::default(),
            present: (0, 0),
            fresh: None,
        }
    }

    /// From now on what is measured is also kept for [`Windows::take_fresh`].
    pub fn keep_fresh(&mut self) {
        self.fresh.get_or_insert_default();
    }

    /// What was measured since the last time; nothing unless it is kept.
    pub fn take_fresh(&mut self) -> Fresh {
        self.fresh.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Adds what somebody else measured in a window of the part that begins then.
    pub fn add(&mut self, start_ns: u64, index: u32, window: &Window) {
        let part = match self.parts.iter().position(|part| part.start_ns == start_ns) {
            Some(part) => part,
            None => {
                self.parts.push(Part { start_ns, windows: Vec::new() });
                self.parts.sort_by_key(|part| part.start_ns);
                self.parts.partition_point(|part| part.start_ns < start_ns)
            }
        };
        self.window((part, (index as usize).min(self.windows_max - 1))).merge(window);
    }

    /// A new part begins at this moment, which may lie ahead. What was recorded for the time after
    /// it stays where it is.
    pub fn begin(&mut self, start_ns: u64) {
        self.parts.retain(|part| part.start_ns < start_ns || !part.windows.is_empty());
        self.parts.push(Part { start_ns, windows: Vec::new() });
        self.parts.sort_by_key(|part| part.start_ns);
    }

    /// The parts, by their beginning.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn place(&self, at_ns: u64) -> Option<(usize, usize)> {
        let part = self.parts.partition_point(|part| part.start_ns <= at_ns).checked_sub(1)?;
        let index = (at_ns - self.parts[part].start_ns) / self.window_ns;
        Some((part, (index as usize).min(self.windows_max - 1)))
    }

    fn window(&mut self, (part, index): (usize, usize)) -> &mut Window {
        let windows = &mut self.parts[part].windows;
        if windows.len() <= index {
            windows.resize_with(index + 1, Window::default);
        }
        &mut windows[index]
    }

    /// Writes to a window, and to what is fresh of it.
    fn write(&mut self, place: (usize, usize), write: impl Fn(&mut Window)) {
        write(self.window(place));
        if let Some(fresh) = &mut self.fresh {
            let key = (self.parts[place.0].start_ns, place.1 as u32);
            write(fresh.entry(key).or_default());
        }
    }

    /// A message was meant at this moment.
    pub fn meant(&mut self, at_ns: u64) {
        if let Some(place) = self.place(at_ns) {
            self.write(place, |window| window.meant += 1);
        }
    }

    /// A span of `us` microseconds that began at this moment.
    pub fn record(&mut self, metric: Metric, us: u64, began_ns: u64) {
        // What began before the first part belongs to it.
        let place =
            self.place(began_ns).or(if self.parts.is_empty() { None } else { Some((0, 0)) });
        if let Some(place) = place {
            self.write(place, |window| window.latency(metric).record(us));
        }
    }

    /// Time has passed: what the counters grew by belongs to the window that was open until now.
    pub fn roll(&mut self, now_ns: u64, counters: &Counters, ready: u64) {
        let Some(place) = self.place(now_ns) else { return };
        if place != self.present {
            self.close(counters, ready);
            self.present = place;
        }
    }

    /// Writes the open window down.
    pub fn close(&mut self, counters: &Counters, ready: u64) {
        if self.parts.is_empty() {
            return;
        }
        let growth = counters.since(&self.before);
        self.before = counters.clone();
        self.write(self.present, |window| {
            window.counters.merge(&growth);
            window.ready = ready;
        });
    }

    /// Adds another thread's windows of the same parts.
    pub fn merge(&mut self, other: &Self) {
        for theirs in &other.parts {
            let known = self.parts.iter().position(|part| part.start_ns == theirs.start_ns);
            let Some(index) = known else {
                self.parts.push(theirs.clone());
                self.parts.sort_by_key(|part| part.start_ns);
                continue;
            };
            let windows = &mut self.parts[index].windows;
            if windows.len() < theirs.windows.len() {
                windows.resize_with(theirs.windows.len(), Window::default);
            }
            windows.iter_mut().zip(&theirs.windows).for_each(|(mine, other)| mine.merge(other));
        }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self::new(1_000_000_000, 7_200)
    }
}

/// What went wrong within a window, in one number.
pub fn errors(counters: &Counters) -> u64 {
    const ERRORS: [Counter; 8] = [
        Counter::ConnectFailed,
        Counter::UpgradeFailed,
        Counter::ConnectionsLost,
        Counter::SetupsCut,
        Counter::ProtocolErrors,
        Counter::Failed,
        Counter::OutboxFull,
        Counter::RoomUnsent,
    ];
    counters.codes_total() + ERRORS.iter().map(|counter| counters.get(*counter)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::{Sparse, Windows};
    use crate::record::{Counter, Counters, Metric, histogram};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_sparse_histogram_says_what_a_dense_one_says() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut one, mut other, mut dense) = (Sparse::default(), Sparse::default(), histogram());
        for _ in 0..20_000 {
            let us = 1 + (random.u64(0..30_000) * random.u64(0..20_000)).min(599_000_000);
            dense.record(us).expect("in range");
            if random.bool() { one.record(us) } else { other.record(us) }
        }
        one.merge(&other);
        let mut merged = histogram();
        one.add_to(&mut merged);
        assert_eq!(merged.len(), dense.len(), "seed {seed}");
        for percentile in [0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0] {
            let (a, b) =
                (merged.value_at_percentile(percentile), dense.value_at_percentile(percentile));
            assert_eq!(a, b, "p{percentile}, seed {seed}");
        }
    }

    #[test]
    fn a_latency_stands_where_its_span_began_and_a_count_where_it_happened() {
        let mut windows = Windows::new(SECOND, 100);
        windows.record(Metric::Login, 5, 0);
        assert!(windows.parts().is_empty(), "nothing is kept before the first part");
        windows.begin(10 * SECOND);
        windows.begin(12 * SECOND);
        let mut counters = Counters::default();
        windows.roll(10 * SECOND, &counters, 0);
        counters.add(Counter::Sent);
        windows.roll(11 * SECOND, &counters, 1);
        counters.add_many(Counter::Sent, 2);
        windows.roll(12 * SECOND + 1, &counters, 2);
        // Meant in the second second of the first part, and recorded much later.
        windows.record(Metric::AckSingle, 7_000_000, 11 * SECOND + 5);
        counters.add(Counter::Acked);
        windows.close(&counters, 3);
        let [first, second] = windows.parts() else { panic!("two parts") };
        assert_eq!(first.windows.len(), 2);
        assert_eq!(first.windows[0].counters.get(Counter::Sent), 1);
        assert_eq!(first.windows[1].counters.get(Counter::Sent), 2);
        assert_eq!((first.windows[0].ready, first.windows[1].ready), (1, 2));
        assert_eq!(first.histograms()[Metric::AckSingle as usize].len(), 1);
        assert_eq!(second.windows[0].counters.get(Counter::Acked), 1);
        assert!(second.windows[0].latencies().is_empty());
    }

    #[test]
    fn threads_are_added_up_window_by_window_and_there_are_no_more_than_allowed() {
        let (mut one, mut two) = (Windows::new(SECOND, 3), Windows::new(SECOND, 3));
        for (windows, count) in [(&mut one, 1), (&mut two, 2)] {
            windows.begin(SECOND);
            let mut counters = Counters::default();
            for second in 1..=10 {
                windows.roll(second * SECOND, &counters, count);
                counters.add_many(Counter::Sent, count);
                windows.record(Metric::Late, 10, second * SECOND);
            }
            windows.close(&counters, count);
        }
        one.merge(&two);
        let part = &one.parts()[0];
        assert_eq!(part.windows.len(), 3);
        let sent: Vec<_> = part.windows.iter().map(|w| w.counters.get(Counter::Sent)).collect();
        assert_eq!(sent, [3, 3, 24], "the last one holds what came later");
        assert_eq!(part.total().ready, 3);
        assert_eq!(part.histograms()[Metric::Late as usize].len(), 20);
    }

    #[test]
    fn a_part_that_begins_early_takes_the_place_of_those_that_never_came() {
        let mut windows = Windows::new(SECOND, 10);
        for start in [1, 5, 9] {
            windows.begin(start * SECOND);
        }
        windows.record(Metric::Late, 1, 2 * SECOND);
        windows.record(Metric::Late, 1, 5 * SECOND);
        windows.begin(7 * SECOND);
        let starts: Vec<_> = windows.parts().iter().map(|part| part.start_ns / SECOND).collect();
        assert_eq!(starts, [1, 5, 7]);
    }
}
