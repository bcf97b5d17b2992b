//! Charts as SVG text, drawn without a browser: axes with round ticks, lines, bars, bands.
//!
//! It knows numbers and not what they mean. Colours come from the page's style sheet by class, so
//! one drawing is legible in light and dark.

use std::fmt::Write as _;

use super::escape;

/// Width of every chart in its own units; the page scales it.
pub const WIDTH: f64 = 920.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 18.0;
const BOTTOM: f64 = 34.0;
/// Room above the plot for the names of bands.
const TOP: f64 = 24.0;
/// Roughly, of the style sheet's 12 px font: never too little, so that no label meets another.
const CHARACTER: f64 = 7.4;

/// How an axis maps numbers to places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// From 0 or above to a round number.
    Linear {
        /// First number.
        from: f64,
        /// Last number.
        to: f64,
    },
    /// Powers of ten.
    Log {
        /// First number, above 0.
        from: f64,
        /// Last number.
        to: f64,
    },
    /// Quantiles, as HdrHistogram plots them: each further nine as wide as the one before.
    Quantile {
        /// Nines at the right end.
        nines: f64,
    },
}

impl Scale {
    /// From 0 to a round number at or above `most`.
    pub fn linear(most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_step(most / 4.0);
        Self::Linear { from: 0.0, to: (most / step).ceil() * step }
    }

    /// The powers of ten around `least` to `most`.
    pub fn log(least: f64, most: f64) -> Self {
        let least = least.max(1e-3);
        let from = 10_f64.powf(least.log10().floor());
        let to = 10_f64.powf(most.max(least * 1.01).log10().ceil());
        Self::Log { from, to }
    }

    /// The place of a value, 0 to 1.
    pub fn place(&self, value: f64) -> f64 {
        let place = match *self {
            Self::Linear { from, to } => (value - from) / (to - from),
            Self::Log { from, to } => (value.max(from) / from).ln() / (to / from).ln(),
            Self::Quantile { nines } => {
                if value >= 1.0 {
                    1.0
                } else {
                    (1.0 / (1.0 - value)).log10() / nines
                }
            }
        };
        place.clamp(0.0, 1.0)
    }

    /// Numbers to write at the axis.
    fn ticks(&self) -> Vec<f64> {
        match *self {
            Self::Linear { from, to } => {
                let step = round_step((to - from) / 4.0);
                let count = ((to - from) / step).round() as usize;
                (0..=count).map(|index| from + index as f64 * step).collect()
            }
            Self::Log { from, to } => {
                let decades = (to / from).log10().round() as i32;
                let parts: &[f64] = if decades <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let all = (0..=decades).flat_map(|decade| {
                    parts.iter().map(move |part| from * part * 10_f64.powi(decade))
                });
                all.filter(|tick| *tick <= to * 1.001).collect()
            }
            Self::Quantile { nines } => {
                let mut ticks = vec![0.0, 0.5];
                ticks.extend((1..=nines.floor() as i32).map(|nine| 1.0 - 10_f64.powi(-nine)));
                ticks
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at or above `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1e-12).log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| times * power >= step * 0.999);
    times.unwrap_or(10.0) * power
}

/// `99.9 %` for 0.999.
pub fn percent(quantile: f64) -> String {
    let text = format!("{:.6}", quantile * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A line through points.
pub struct Line<'a> {
    /// Name in the legend.
    pub name: String,
    /// Class of its colour: 0 to 5.
    pub colour: usize,
    /// Drawn with gaps: what was asked for and not what was.
    pub is_dashed: bool,
    /// X and Y; a point whose Y is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
    /// What a pointer on a point is told; empty for nothing.
    pub tips: &'a [String],
}

/// A part of the X axis with a name.
pub struct Band {
    /// Name, written where there is room.
    pub name: String,
    /// From and to, in X.
    pub from: f64,
    /// See above.
    pub to: f64,
}

/// A chart in the making.
pub struct Chart<'a> {
    /// Of the whole drawing.
    pub height: f64,
    /// What a screen reader says.
    pub title: &'a str,
    /// The horizontal axis.
    pub x: Scale,
    /// The vertical axis.
    pub y: Scale,
    /// Writes a number of the X axis.
    pub x_label: fn(f64) -> String,
    /// Writes a number of the Y axis.
    pub y_label: fn(f64) -> String,
    /// Shaded by turns, behind everything.
    pub bands: Vec<Band>,
    /// In order of drawing.
    pub lines: Vec<Line<'a>>,
    /// X from, X to and Y of bars.
    pub bars: Vec<(f64, f64, f64)>,
    /// Horizontal lines with a text: limits.
    pub marks: Vec<(f64, String)>,
}

impl Chart<'_> {
    fn x_at(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y_at(&self, value: f64) -> f64 {
        let bottom = self.height - BOTTOM;
        bottom - self.y.place(value) * (bottom - TOP)
    }

    /// The drawing.
    pub fn draw(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let title = escape(self.title);
        write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{title}\">",
            self.height
        )?;
        self.write_bands(out)?;
        self.write_axes(out)?;
        let bottom = self.height - BOTTOM;
        for (from, to, value) in &self.bars {
            let (left, right) = (self.x_at(*from), self.x_at(*to));
            let top = self.y_at(*value);
            write!(
                out,
                "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                (right - left).max(1.0),
                (bottom - top).max(0.0)
            )?;
        }
        for (value, text) in &self.marks {
            let y = self.y_at(*value);
            write!(
                out,
                "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"><title>{}</title></line>",
                WIDTH - RIGHT,
                escape(text)
            )?;
        }
        self.lines.iter().try_for_each(|line| self.write_line(out, line))?;
        out.push_str("</svg>");
        Ok(())
    }

    fn write_bands(&self, out: &mut String) -> std::fmt::Result {
        for (index, band) in self.bands.iter().enumerate() {
            let (left, right) = (self.x_at(band.from), self.x_at(band.to));
            if right - left < 0.5 {
                continue;
            }
            if index % 2 == 1 {
                write!(
                    out,
                    "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                    right - left,
                    self.height - BOTTOM - TOP
                )?;
            }
            let needed = band.name.chars().count() as f64 * CHARACTER + 6.0;
            if right - left >= needed {
                write!(
                    out,
                    "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    (left + right) / 2.0,
                    TOP - 8.0,
                    escape(&band.name)
                )?;
            }
        }
        Ok(())
    }

    fn write_axes(&self, out: &mut String) -> std::fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, self.height - BOTTOM);
        for tick in self.y.ticks() {
            let y = self.y_at(tick);
            write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(&(self.y_label)(tick))
            )?;
        }
        let mut free_from = 0.0;
        for tick in self.x.ticks() {
            let (x, text) = (self.x_at(tick), (self.x_label)(tick));
            write!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"
            )?;
            let half = text.chars().count() as f64 * CHARACTER / 2.0;
            // Within the drawing, and not upon the label before.
            let middle = x.min(WIDTH - half - 1.0);
            if middle - half >= free_from {
                write!(
                    out,
                    "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    bottom + 20.0,
                    escape(&text)
                )?;
                free_from = middle + half + CHARACTER;
            }
        }
        write!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>")
    }

    fn write_line(&self, out: &mut String, line: &Line<'_>) -> std::fmt::Result {
        let mut path = String::new();
        let mut pen_is_down = false;
        for (x, y) in &line.points {
            if !y.is_finite() {
                pen_is_down = false;
                continue;
            }
            let step = if pen_is_down { 'L' } else { 'M' };
            write!(path, "{step}{:.1} {:.1}", self.x_at(*x), self.y_at(*y))?;
            pen_is_down = true;
        }
        let dashed = if line.is_dashed { " dashed" } else { "" };
        let colour = line.colour;
        write!(
            out,
            "<path class=\"line c{colour}{dashed}\" d=\"{path}\"><title>{}</title></path>",
            escape(&line.name)
        )?;
        for ((x, y), tip) in line.points.iter().zip(line.tips).filter(|((_, y), _)| y.is_finite()) {
            write!(
                out,
                "<circle class=\"tip\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{}</title></circle>",
                self.x_at(*x),
                self.y_at(*y),
                escape(tip)
            )?;
        }
        Ok(())
    }

    /// The legend, outside of the drawing, where it can wrap.
    pub fn legend(&self) -> String {
        let mut out = String::from("<div class=\"legend\">");
        for line in &self.lines {
            let dashed = if line.is_dashed { " dashed" } else { "" };
            write!(
                out,
                "<span><i class=\"swatch c{}{dashed}\"></i>{}</span>",
                line.colour,
                escape(&line.name)
            )
            .expect("writing to a string does not fail");
        }
        out.push_str("</div>");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{Band, Chart, Line, Scale, percent};

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        for most in [0.003, 1.0, 7.0, 99.0, 101.0, 123_456.0] {
            let scale = Scale::linear(most);
            let ticks = scale.ticks();
            let last = *ticks.last().expect("some");
            assert!(last >= most && last <= most * 2.5, "{most}: {ticks:?}");
            assert!((3..=9).contains(&ticks.len()), "{most}: {ticks:?}");
        }
        assert_eq!(Scale::log(3.0, 4_000.0), Scale::Log { from: 1.0, to: 10_000.0 });
        assert_eq!(Scale::log(1.0, 1_000.0).ticks(), [1.0, 10.0, 100.0, 1_000.0]);
    }

    #[test]
    fn each_nine_of_a_quantile_is_as_wide_as_the_last() {
        let scale = Scale::Quantile { nines: 4.0 };
        for (quantile, place) in [(0.0, 0.0), (0.9, 0.25), (0.99, 0.5), (0.999, 0.75), (1.0, 1.0)] {
            assert!((scale.place(quantile) - place).abs() < 1e-9, "{quantile}");
        }
        assert_eq!([percent(0.999), percent(0.5), percent(0.0)], ["99.9 %", "50 %", "0 %"]);
    }

    #[test]
    fn everything_that_is_drawn_lies_within_the_drawing_and_foreign_text_is_no_markup() {
        let chart = Chart {
            height: 200.0,
            title: "a <b>",
            x: Scale::linear(10.0),
            y: Scale::linear(5.0),
            x_label: |value| format!("{value} s"),
            y_label: |value| format!("{value}"),
            bands: vec![
                Band { name: "short".into(), from: 0.0, to: 0.1 },
                Band { name: "long <i>".into(), from: 0.1, to: 10.0 },
            ],
            lines: vec![Line {
                name: "x & y".into(),
                colour: 0,
                is_dashed: false,
                points: vec![(0.0, 1.0), (5.0, f64::NAN), (10.0, 99.0), (1e9, 1.0)],
                tips: &[],
            }],
            bars: vec![(0.0, 1.0, 7.0)],
            marks: vec![(3.0, "limit".into())],
        };
        let drawing = chart.draw();
        assert!(!drawing.contains("<b>") && !drawing.contains("<i>"), "{drawing}");
        assert!(drawing.contains("x &amp; y") && !drawing.contains("short"), "{drawing}");
        let outside = drawing
            .split([' ', '"', 'M', 'L', 'V', 'H'])
            .filter_map(|word| word.parse::<f64>().ok())
            .find(|number| !(0.0..=super::WIDTH).contains(number));
        assert_eq!(outside, None, "{drawing}");
        assert_eq!(drawing.matches('M').count() - 1, 2, "the gap interrupts the line: {drawing}");
    }
}
