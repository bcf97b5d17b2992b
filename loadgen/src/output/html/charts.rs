//! The charts of the page: percentile curves, and everything over time.

use super::section;
use crate::{
    figures::{count, micros, plain, significant},
    output::{
        document::{Document, Latency, Window},
        escape,
        svg::{Band, Chart, Line, Scale, percent},
    },
};

/// More points than this cannot be told apart on a screen.
const POINTS_MAX: usize = 460;
/// Lines of one chart.
const LINES_MAX: usize = 6;

fn us_label(us: f64) -> String {
    let text = micros(us);
    // Ticks are round; their zeros after the point say nothing.
    text.replace(".00 ", " ").replace(".0 ", " ")
}

fn seconds_label(seconds: f64) -> String {
    format!("{} s", plain(seconds))
}

fn number_label(value: f64) -> String {
    if value >= 1e6 { format!("{} M", plain(value / 1e6)) } else { plain(value) }
}

/// Percentile curves: what was delivered, and how connections came up.
pub(super) fn percentiles(document: &Document) -> Option<String> {
    const DELIVERIES: [&str; 8] = [
        "delivery_single",
        "delivery_group",
        "delivery_room",
        "echo",
        "custom",
        "service_delivery",
        "delivery_slow",
        "delivery_offline",
    ];
    const ACKS: [&str; 4] = ["ack_single", "ack_group", "ack_room", "service"];
    const CONNECTIONS: [&str; 7] =
        ["connect", "upgrade", "login", "arrival", "return", "join", "heartbeat"];
    let charts: Vec<String> = [
        ("Deliveries, from the moment at which a message was meant to be sent", &DELIVERIES[..]),
        ("Acknowledgements, from the same moment", &ACKS[..]),
        ("Connections and heartbeats", &CONNECTIONS[..]),
    ]
    .into_iter()
    .filter_map(|(title, names)| curves(document, title, names))
    .collect();
    if charts.is_empty() {
        return None;
    }
    let caption = "<p class=\"faint\">To the right each further nine takes as much room as the one before. \
        Latency counts from the intended moment, so a stall of the server is in it for every message that \
        was due meanwhile; dashed is service time, from the actual write, which is all that a closed-loop tool sees.</p>";
    Some(section("Percentiles", &format!("{caption}{}", charts.concat())))
}

fn curves(document: &Document, title: &str, names: &[&str]) -> Option<String> {
    let present: Vec<(&str, &Latency)> = names
        .iter()
        .filter_map(|name| Some((*name, document.latency_us.get(*name)?)))
        .filter(|(_, latency)| latency.count > 0 && latency.curve.len() > 1)
        .take(LINES_MAX)
        .collect();
    let least =
        present.iter().map(|(_, latency)| latency.curve[0].us).fold(f64::INFINITY, f64::min);
    let most = present.iter().map(|(_, latency)| latency.max).max()? as f64;
    let values = present.iter().map(|(_, latency)| latency.count).max()? as f64;
    let nines = values.log10().ceil().clamp(2.0, 7.0);
    let line = |(index, (name, latency)): (usize, &(&str, &Latency))| Line {
        name: format!("{name} ({})", count(latency.count)),
        colour: index,
        is_dashed: name.starts_with("service"),
        // A curve ends where one value is left: the largest.
        points: latency
            .curve
            .iter()
            .filter(|point| point.quantile < 1.0)
            .map(|point| (point.quantile, point.us.max(1.0)))
            .chain([(1.0 - 1.0 / (latency.count as f64 + 1.0), latency.max.max(1) as f64)])
            .collect(),
        tips: &[],
    };
    let mut lines: Vec<Line<'_>> = present.iter().enumerate().map(line).collect();
    lines.iter_mut().for_each(|line| line.points.sort_by(|one, two| one.0.total_cmp(&two.0)));
    let chart = Chart {
        height: 340.0,
        title,
        x: Scale::Quantile { nines },
        y: Scale::log(least.max(1.0), most.max(10.0)),
        x_label: percent,
        y_label: us_label,
        bands: Vec::new(),
        lines,
        bars: Vec::new(),
        marks: Vec::new(),
    };
    Some(figure(title, &chart))
}

fn figure(title: &str, chart: &Chart<'_>) -> String {
    format!(
        "<figure><h3>{}</h3>{}<div class=\"wide\">{}</div></figure>",
        escape(title),
        chart.legend(),
        chart.draw()
    )
}

/// Several neighbouring windows as one, where there are more than a screen shows.
struct Joined<'a> {
    windows: &'a [Window],
}

impl Joined<'_> {
    fn middle(&self) -> f64 {
        let (first, last) = (&self.windows[0], &self.windows[self.windows.len() - 1]);
        (first.start_seconds + last.start_seconds + last.seconds) / 2.0
    }

    fn seconds(&self) -> f64 {
        self.windows.iter().map(|window| window.seconds).sum::<f64>().max(1e-6)
    }

    fn rate(&self, counter: &str) -> f64 {
        let sum: u64 = self.windows.iter().filter_map(|window| window.counters.get(counter)).sum();
        sum as f64 / self.seconds()
    }

    /// The worst of them: a peak must not vanish because the run was long.
    fn worst(&self, of: impl Fn(&Window) -> Option<f64>) -> f64 {
        self.windows.iter().filter_map(of).fold(f64::NAN, f64::max)
    }
}

/// Rates, latencies, errors, connections and the generator, window by window.
pub(super) fn time_lines(document: &Document) -> Option<String> {
    let windows = &document.windows;
    let last = windows.last()?;
    let together = windows.len().div_ceil(POINTS_MAX);
    let joined: Vec<Joined<'_>> =
        windows.chunks(together).map(|windows| Joined { windows }).collect();
    let x = Scale::Linear { from: 0.0, to: last.start_seconds + last.seconds };
    let charts = [
        rates(document, &joined, x),
        latencies(document, &joined, x),
        errors(document, &joined, x),
        connections(document, &joined, x),
        generator(document, &joined, x),
    ];
    // The windows at the edges of a phase may be shorter.
    let each = windows[windows.len() / 2].seconds * together as f64;
    let caption = format!(
        "<p class=\"faint\">Points of {}; hover one for its figures. Latencies stand at the moment at which their messages \
         were meant to be sent, counts at the moment they happened.{}</p>",
        seconds_label(each),
        if together > 1 { " Of a point's windows the worst latency is drawn." } else { "" }
    );
    let charts: String = charts.into_iter().flatten().collect();
    Some(section("Over time", &format!("{caption}{charts}")))
}

/// The scale of time must be round only at its ticks, and end with the run.
fn time_chart<'a>(
    document: &Document,
    title: &'a str,
    height: f64,
    x: Scale,
    y: Scale,
    y_label: fn(f64) -> String,
) -> Chart<'a> {
    let bands = if document.stages.is_empty() {
        let band = |phase: &crate::output::document::Phase| Band {
            name: phase.name.clone(),
            from: phase.start_seconds,
            to: phase.start_seconds + phase.seconds,
        };
        document.phases.iter().map(band).collect()
    } else {
        let band = |stage: &crate::output::document::Stage| Band {
            name: stage.name.clone(),
            from: stage.start_seconds,
            to: stage.start_seconds + stage.seconds,
        };
        let first = document.stages[0].start_seconds;
        let ramp = Band { name: "connecting".to_owned(), from: 0.0, to: first };
        let end = document.stages.last().map_or(0.0, |stage| stage.start_seconds + stage.seconds);
        let rest = Band { name: "settling".to_owned(), from: end, to: f64::MAX };
        [ramp].into_iter().chain(document.stages.iter().map(band)).chain([rest]).collect()
    };
    Chart {
        height,
        title,
        x,
        y,
        x_label: seconds_label,
        y_label,
        bands,
        lines: Vec::new(),
        bars: Vec::new(),
        marks: Vec::new(),
    }
}

fn rates(document: &Document, joined: &[Joined<'_>], x: Scale) -> Option<String> {
    const TITLE: &str = "Rates, a second";
    const SHOWN: [(&str, &str); 6] = [
        ("intended", "meant to be sent"),
        ("acked", "acknowledged"),
        ("received", "delivered"),
        ("room_received", "delivered in the room"),
        ("echoes", "echoed"),
        ("logins", "logins"),
    ];
    let mut series: Vec<(&str, Vec<f64>)> = SHOWN
        .iter()
        .map(|(counter, name)| (*name, joined.iter().map(|window| window.rate(counter)).collect()))
        .collect();
    series.retain(|(_, values): &(_, Vec<f64>)| values.iter().any(|value| *value > 0.0));
    let target: Vec<f64> =
        joined.iter().map(|window| window.worst(|window| window.target_per_second)).collect();
    let has_target = target.iter().any(|value| value.is_finite() && *value > 0.0);
    let all = series.iter().flat_map(|(_, values)| values).chain(&target).copied();
    let most = all.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if most == 0.0 {
        return None;
    }
    let tips: Vec<String> = joined
        .iter()
        .enumerate()
        .map(|(index, window)| {
            let values = series
                .iter()
                .map(|(name, values)| format!("{name} {}/s", significant(values[index])));
            format!("{}: {}", seconds_label(window.middle()), values.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let mut chart = time_chart(document, TITLE, 240.0, x, Scale::linear(most), number_label);
    let points = |values: &[f64]| {
        joined.iter().zip(values).map(|(window, value)| (window.middle(), *value)).collect()
    };
    if has_target {
        chart.lines.push(Line {
            name: "schedule".to_owned(),
            colour: 5,
            is_dashed: true,
            points: points(&target),
            tips: &[],
        });
    }
    for (index, (name, values)) in series.iter().enumerate().take(LINES_MAX - 1) {
        let tips: &[String] = if index == 0 { &tips } else { &[] };
        chart.lines.push(Line {
            name: (*name).to_owned(),
            colour: index,
            is_dashed: false,
            points: points(values),
            tips,
        });
    }
    Some(figure(TITLE, &chart))
}

fn latencies(document: &Document, joined: &[Joined<'_>], x: Scale) -> Option<String> {
    let has = |name: &str| {
        joined
            .iter()
            .any(|part| part.windows.iter().any(|window| window.latency_us.contains_key(name)))
    };
    let name = document.headline().filter(|name| has(name)).or_else(|| {
        ["delivery_single", "delivery_group", "delivery_room", "echo", "heartbeat", "login"]
            .into_iter()
            .find(|name| has(name))
    })?;
    let title = format!("Latency of {name}, by the moment it was meant to be sent");
    type Of = fn(&Latency) -> u64;
    let shown: [(&str, Of); 4] =
        [("p50", |l| l.p50), ("p99", |l| l.p99), ("p99.9", |l| l.p99_9), ("longest", |l| l.max)];
    let of = |part: &Joined<'_>, of: Of| {
        part.worst(|window| {
            let latency = window.latency_us.get(name).filter(|latency| latency.count > 0)?;
            Some((of(latency) as f64).max(1.0))
        })
    };
    let values: Vec<f64> = joined
        .iter()
        .flat_map(|part| shown.iter().map(move |(_, which)| of(part, *which)))
        .filter(|value| value.is_finite())
        .collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    if most == 0.0 {
        return None;
    }
    let tips: Vec<String> = joined
        .iter()
        .map(|part| {
            let values =
                shown.iter().map(|(label, which)| format!("{label} {}", micros(of(part, *which))));
            format!("{}: {}", seconds_label(part.middle()), values.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let mut chart =
        time_chart(document, &title, 260.0, x, Scale::log(least, most.max(10.0)), us_label);
    for (index, (label, which)) in shown.iter().enumerate() {
        let points = joined.iter().map(|part| (part.middle(), of(part, *which))).collect();
        let tips: &[String] = if index == 0 { &tips } else { &[] };
        chart.lines.push(Line {
            name: (*label).to_owned(),
            colour: index,
            is_dashed: false,
            points,
            tips,
        });
    }
    Some(figure(&title, &chart))
}

fn errors(document: &Document, joined: &[Joined<'_>], x: Scale) -> Option<String> {
    const TITLE: &str = "Errors in each point: refusals, losses, failures";
    let sums: Vec<(f64, f64, f64)> = joined
        .iter()
        .map(|part| {
            let from = part.windows[0].start_seconds;
            let errors: u64 = part.windows.iter().map(|window| window.errors).sum();
            (from, from + part.seconds(), errors as f64)
        })
        .filter(|(_, _, errors)| *errors > 0.0)
        .collect();
    let most = sums.iter().map(|(_, _, errors)| *errors).fold(0.0, f64::max);
    if most == 0.0 {
        return Some(format!("<h3>{TITLE}</h3><p>None.</p>"));
    }
    let mut chart =
        time_chart(document, TITLE, 160.0, x, Scale::linear(most.max(4.0)), number_label);
    chart.bars = sums;
    Some(figure(TITLE, &chart))
}

fn connections(document: &Document, joined: &[Joined<'_>], x: Scale) -> Option<String> {
    const TITLE: &str = "Connections up";
    let points: Vec<(f64, f64)> = joined
        .iter()
        .map(|part| (part.middle(), part.windows[part.windows.len() - 1].connections as f64))
        .collect();
    let most = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    if most == 0.0 {
        return None;
    }
    let tips: Vec<String> = points
        .iter()
        .map(|(at, value)| format!("{}: {} up", seconds_label(*at), count(*value as u64)))
        .collect();
    let mut chart = time_chart(document, TITLE, 180.0, x, Scale::linear(most), number_label);
    chart.lines.push(Line {
        name: "sessions that are up".to_owned(),
        colour: 0,
        is_dashed: false,
        points,
        tips: &tips,
    });
    Some(figure(TITLE, &chart))
}

fn generator(document: &Document, joined: &[Joined<'_>], x: Scale) -> Option<String> {
    const TITLE: &str = "The generator itself: lateness";
    const CPU_TITLE: &str = "The generator itself: processor, % of a core";
    let late = |part: &Joined<'_>, of: fn(&Window) -> u64| {
        part.worst(|window| Some(of(window)).filter(|us| *us > 0).map(|us| us as f64))
    };
    let mut figures = String::new();
    let p99: Vec<(f64, f64)> = joined
        .iter()
        .map(|part| (part.middle(), late(part, |window| window.late_p99_us)))
        .collect();
    let longest: Vec<(f64, f64)> = joined
        .iter()
        .map(|part| (part.middle(), late(part, |window| window.late_max_us)))
        .collect();
    let known: Vec<f64> =
        p99.iter().chain(&longest).map(|(_, us)| *us).filter(|us| us.is_finite()).collect();
    if !known.is_empty() {
        let least = known.iter().copied().fold(f64::INFINITY, f64::min);
        let most = known.iter().copied().fold(0.0, f64::max);
        let mut chart =
            time_chart(document, TITLE, 200.0, x, Scale::log(least, most.max(10.0)), us_label);
        chart.lines.push(Line {
            name: "p99".to_owned(),
            colour: 0,
            is_dashed: false,
            points: p99,
            tips: &[],
        });
        chart.lines.push(Line {
            name: "longest".to_owned(),
            colour: 1,
            is_dashed: false,
            points: longest,
            tips: &[],
        });
        figures.push_str(&figure(TITLE, &chart));
    }
    let cpu: Vec<(f64, f64)> = joined
        .iter()
        .map(|part| (part.middle(), part.worst(|window| Some(window.cpu_percent))))
        .collect();
    let most = cpu
        .iter()
        .map(|(_, percent)| *percent)
        .filter(|percent| percent.is_finite())
        .fold(0.0, f64::max);
    if most > 0.0 {
        let mut chart = time_chart(document, CPU_TITLE, 160.0, x, Scale::linear(most), |value| {
            format!("{} %", number_label(value))
        });
        chart.lines.push(Line {
            name: "processor".to_owned(),
            colour: 2,
            is_dashed: false,
            points: cpu,
            tips: &[],
        });
        figures.push_str(&figure(CPU_TITLE, &chart));
    }
    Some(figures).filter(|figures| !figures.is_empty())
}
