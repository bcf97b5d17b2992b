//! What the view shows, drawn from samples alone: connections, rates, latencies, errors, and the
//! generator's own health.

use std::collections::VecDeque;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Sparkline, Wrap},
};

use super::sample::Sample;
use crate::figures::{bytes, count, micros, significant};

/// Seconds kept for the little curves; wider than any terminal.
const HISTORY_MAX: usize = 512;
/// Lateness of a second's 99 % above which the generator is no longer called healthy: the default of
/// `generator.late_p99_max`, by which the whole run is judged.
const LATE_P99_US_MAX: u64 = 50_000;
/// Below this a terminal gets lines without frames.
const FRAMED_MIN: (u16, u16) = (72, 22);

/// The last samples, the newest at the end.
#[derive(Default)]
pub struct History {
    samples: VecDeque<Sample>,
}

impl History {
    /// Adds the newest; the oldest goes when there are too many.
    pub fn push(&mut self, sample: Sample) {
        if self.samples.len() == HISTORY_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    fn last(&self) -> Sample {
        self.samples.back().cloned().unwrap_or_default()
    }

    /// The newest values that fit, the newest at the right.
    fn curve(&self, width: u16, of: impl Fn(&Sample) -> f64) -> Vec<u64> {
        let skipped = self.samples.len().saturating_sub(usize::from(width));
        self.samples.iter().skip(skipped).map(|sample| of(sample).max(0.0).round() as u64).collect()
    }
}

/// Draws everything that fits.
pub fn draw(frame: &mut Frame<'_>, history: &History) {
    let area = frame.area();
    let sample = history.last();
    if area.width < FRAMED_MIN.0 || area.height < FRAMED_MIN.1 {
        draw_small(frame, area, &sample);
        return;
    }
    let [title, top, middle, bottom, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Min(5),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(title_line(&sample), title);
    let halves = |area: Rect| {
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
                .areas(area);
        (left, right)
    };
    let (left, right) = halves(top);
    panel(
        frame,
        left,
        "Connections",
        &connections(&sample),
        Some((history, &|s| s.up as f64, Color::Cyan)),
    );
    panel(
        frame,
        right,
        "Rates, a second",
        &rates(&sample),
        Some((history, &arrivals, Color::Green)),
    );
    let (left, right) = halves(middle);
    panel(
        frame,
        left,
        "Latency of this second",
        &latencies(&sample),
        Some((history, &|s| s.p99 as f64, Color::Yellow)),
    );
    panel(
        frame,
        right,
        "Generator",
        &generator(&sample),
        Some((history, &|s| s.cpu_percent, Color::Magenta)),
    );
    panel(frame, bottom, "Errors", &errors(&sample), None);
    frame.render_widget(
        Paragraph::new("q or Ctrl-C ends the run, twice at once. Curves: sessions up, arrivals, p99, processor.")
            .style(Style::new().add_modifier(Modifier::DIM)),
        foot,
    );
}

fn arrivals(sample: &Sample) -> f64 {
    sample.received + sample.room_received + sample.echoes
}

fn title_line(sample: &Sample) -> Paragraph<'static> {
    let clock = format!("{:02}:{:02}", sample.seconds as u64 / 60, sample.seconds as u64 % 60);
    let phase = if sample.phase.is_empty() { "starting" } else { sample.phase };
    Paragraph::new(Line::from(vec![
        Span::styled("millrace-loadgen", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {phase}  {clock}  ")),
        health(sample),
    ]))
}

/// One word about everything.
fn health(sample: &Sample) -> Span<'static> {
    if sample.late_p99 > LATE_P99_US_MAX {
        Span::styled("GENERATOR LATE", Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
    } else if sample.lost + sample.failures + sample.protocol_errors > 0 {
        Span::styled("errors", Style::new().fg(Color::Red))
    } else {
        Span::styled("healthy", Style::new().fg(Color::Green))
    }
}

/// What a little curve is drawn from.
type Curve<'a> = (&'a History, &'a dyn Fn(&Sample) -> f64, Color);

fn panel(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    lines: &[String],
    curve: Option<Curve<'_>>,
) {
    let block = Block::bordered().title(format!(" {title} "));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let height =
        if curve.is_some() { inside.height.saturating_sub(lines.len() as u16).min(2) } else { 0 };
    let [words, below] =
        Layout::vertical([Constraint::Min(0), Constraint::Length(height)]).areas(inside);
    let text: Vec<Line<'_>> = lines.iter().map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), words);
    if let Some((history, of, colour)) = curve {
        let data = history.curve(below.width, of);
        frame.render_widget(Sparkline::default().data(data).style(Style::new().fg(colour)), below);
    }
}

fn connections(sample: &Sample) -> Vec<String> {
    vec![
        format!("up {}   away {}", count(sample.up), count(sample.away)),
        format!("logins {}/s", significant(sample.logins)),
        format!("lost {}", count(sample.lost)),
    ]
}

fn rates(sample: &Sample) -> Vec<String> {
    let mut lines = vec![
        format!("meant {}   sent {}", significant(sample.intended), significant(sample.sent)),
        format!(
            "acknowledged {}   delivered {}",
            significant(sample.acked),
            significant(sample.received)
        ),
    ];
    let others = [
        ("room", sample.room_received),
        ("echoes", sample.echoes),
        ("heartbeats", sample.heartbeats),
    ];
    let others: Vec<String> = others
        .iter()
        .filter(|(_, rate)| *rate > 0.0)
        .map(|(name, rate)| format!("{name} {}", significant(*rate)))
        .collect();
    lines.push(others.join("   "));
    lines
}

fn latencies(sample: &Sample) -> Vec<String> {
    if sample.latencies == 0 {
        return vec![
            "nothing arrived".to_owned(),
            String::new(),
            format!("waiting {}", count(sample.waiting)),
        ];
    }
    let us = |us: u64| micros(us as f64);
    vec![
        format!("p50 {}   p90 {}", us(sample.p50), us(sample.p90)),
        format!("p99 {}   p99.9 {}", us(sample.p99), us(sample.p99_9)),
        format!("longest {}   waiting {}", us(sample.max), count(sample.waiting)),
    ]
}

fn generator(sample: &Sample) -> Vec<String> {
    let us = |us: u64| micros(us as f64);
    vec![
        format!("late p99 {}   longest {}", us(sample.late_p99), us(sample.late_max)),
        format!("processor {:.0} % of a core", sample.cpu_percent),
        format!("memory {}", bytes(sample.resident_bytes as f64)),
    ]
}

fn errors(sample: &Sample) -> Vec<String> {
    let mut lines = vec![format!(
        "lost {}   refusals {}   failed sends {}   failed connects {}   protocol {}",
        count(sample.lost),
        count(sample.refusals),
        count(sample.failures),
        count(sample.connect_failures),
        count(sample.protocol_errors)
    )];
    // Foreign text: a terminal must not obey it.
    let plain =
        |text: &String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    lines.extend(sample.errors.iter().map(plain));
    lines
}

fn draw_small(frame: &mut Frame<'_>, area: Rect, sample: &Sample) {
    let [title, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(title_line(sample), title);
    let lines: Vec<String> =
        [connections(sample), rates(sample), latencies(sample), generator(sample), errors(sample)]
            .concat()
            .into_iter()
            .filter(|line| !line.is_empty())
            .collect();
    let text: Vec<Line<'_>> = lines.iter().map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(text), rest);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{HISTORY_MAX, History, draw};
    use crate::live::sample::Sample;

    fn sample() -> Sample {
        Sample {
            seconds: 83.0,
            phase: "load",
            up: 12_345,
            lost: 7,
            acked: 4_999.0,
            received: 4_998.0,
            heartbeats: 61.0,
            latencies: 5_000,
            p50: 1_230,
            p99: 45_600,
            p99_9: 78_900,
            max: 81_000,
            late_p99: 150,
            late_max: 900,
            cpu_percent: 42.0,
            resident_bytes: 250_000_000,
            refusals: 3,
            errors: vec!["connect: \u{1b}[31mtimed out".to_owned()],
            ..Sample::default()
        }
    }

    fn drawn(width: u16, height: u16, history: &History) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend");
        terminal.draw(|frame| draw(frame, history)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn everything_one_wants_to_know_is_on_a_common_terminal() {
        let mut history = History::default();
        for _ in 0..HISTORY_MAX + 10 {
            history.push(sample());
        }
        let screen = drawn(80, 24, &history);
        for words in [
            "load  01:23",
            "up 12,345",
            "lost 7",
            "acknowledged 4,999",
            "p99 45.6 ms",
            "p99.9 78.9 ms",
            "longest 81.0 ms",
            "late p99 150 µs",
            "processor 42 %",
            "memory 250 MB",
            "refusals 3",
            "timed out",
            "errors",
        ] {
            assert!(screen.contains(words), "{words} is missing in\n{screen}");
        }
        assert!(!screen.contains('\u{1b}'), "an error's text must not steer the terminal");
        assert!(screen.contains('█'), "the little curves are drawn:\n{screen}");
    }

    #[test]
    fn no_size_of_terminal_and_no_beginning_breaks_the_drawing() {
        let mut history = History::default();
        for (width, height) in
            [(1, 1), (20, 5), (40, 12), (71, 21), (72, 22), (200, 60), (500, 100)]
        {
            drawn(width, height, &history);
        }
        history.push(sample());
        let small = drawn(40, 16, &history);
        assert!(small.contains("up 12,345") && small.contains("p99 45.6 ms"), "{small}");
    }

    #[test]
    fn a_late_generator_is_said_before_everything_else() {
        let mut history = History::default();
        history.push(Sample { late_p99: 60_000, ..sample() });
        assert!(drawn(100, 30, &history).contains("GENERATOR LATE"));
    }
}
