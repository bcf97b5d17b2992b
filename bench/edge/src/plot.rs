//! Line and bar plots as SVG, small enough to be our own: white background, one font, no scripts,
//! legible at the width of a page. What is plotted, and what it means, is the report's business.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 46.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 92.0;
/// Colours that differ in lightness too, for those who do not see all of them.
const COLOURS: [&str; 6] = ["#0b4f8a", "#d1610a", "#2c7a3f", "#8b2fa0", "#b01030", "#555555"];

/// How numbers become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0.
    Linear,
    /// Ten times as much is as far again.
    Logarithmic,
}

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Where lines and numbers stand; empty: chosen by the data.
    pub ticks: Vec<(f64, String)>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, left to right.
    pub points: Vec<(f64, f64)>,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A number with as many digits as a person wants: `1,234`, `12.3`, `0.012`.
pub fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.1 {
        return format!("{value:.3}");
    }
    if value.abs() < 100.0 {
        let text = format!("{value:.1}");
        return text.strip_suffix(".0").map_or(text.clone(), str::to_owned);
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Axis {
    fn place(&self, value: f64, (low, high): (f64, f64)) -> f64 {
        match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value / low).ln() / (high / low).ln(),
        }
    }

    /// The range of the axis and its ticks for these values.
    fn fit(&self, values: impl Iterator<Item = f64>) -> ((f64, f64), Vec<(f64, String)>) {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.chain(self.ticks.iter().map(|(value, _)| *value)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high <= 0.0 {
            (low, high) = (1.0, 10.0);
        }
        if !self.ticks.is_empty() {
            return ((low, high), self.ticks.clone());
        }
        let named = |value: f64| (value, number(value));
        match self.scale {
            Scale::Logarithmic => {
                let low = 10_f64.powf(low.max(high / 1e9).log10().floor());
                let high = 10_f64.powf(high.log10().ceil()).max(low * 10.0);
                let decades = (high / low).log10().round() as i32;
                (
                    (low, high),
                    (0..=decades).map(|decade| named(low * 10_f64.powi(decade))).collect(),
                )
            }
            Scale::Linear => {
                let magnitude = 10_f64.powf(high.log10().floor());
                let steps = [0.1, 0.2, 0.25, 0.5, 1.0, 2.0].map(|step| step * magnitude);
                let step = steps.into_iter().find(|step| high / step <= 6.0).unwrap_or(magnitude);
                let count = (high / step).ceil() as u32;
                let ticks = (0..=count).map(|tick| named(f64::from(tick) * step)).collect();
                ((0.0, f64::from(count) * step), ticks)
            }
        }
    }
}

fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <title>{title}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n",
        title = escape(title)
    )
}

/// Lines over two axes, with a dot at each point and a legend below. What is not above 0 has no
/// place on a logarithmic axis and is left out.
pub fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series]) -> String {
    let mut series = series.to_vec();
    for one in &mut series {
        one.points.retain(|point| y.scale == Scale::Linear || point.1 > 0.0);
    }
    let points = || series.iter().flat_map(|one| &one.points);
    let (x_range, x_ticks) = x.fit(points().map(|point| point.0));
    let (y_range, y_ticks) = y.fit(points().map(|point| point.1));
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let across = |value: f64| LEFT + width * x.place(value, x_range);
    let up = |value: f64| TOP + height * (1.0 - y.place(value.max(y_range.0), y_range));
    let mut svg = open(WIDTH, HEIGHT, title);
    for (value, label) in &y_ticks {
        let at = up(*value);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.5,
            escape(label)
        );
    }
    for (value, label) in &x_ticks {
        let at = across(*value);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 19.0,
            escape(label)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        LEFT + width / 2.0,
        HEIGHT - BOTTOM + 42.0,
        escape(&x.label),
        TOP + height / 2.0,
        escape(&y.label)
    );
    let mut legend_at = LEFT;
    for (one, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<_> = one
            .points
            .iter()
            .map(|(right, high)| format!("{:.1},{:.1}", across(*right), up(*high)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.2\"/>",
            path.join(" ")
        );
        for (right, high) in &one.points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\" fill=\"{colour}\"/>",
                across(*right),
                up(*high)
            );
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{legend_at:.1}\" y=\"{:.1}\" width=\"18\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - 22.0,
            legend_at + 24.0,
            HEIGHT - 15.0,
            escape(&one.name)
        );
        legend_at += 48.0 + 7.2 * one.name.chars().count() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

/// A bar for each name, in the order given, with its value written beside it; `marked` names stand
/// out.
pub fn bars(title: &str, unit: &str, values: &[(String, f64, bool)]) -> String {
    const NAMES: f64 = 190.0;
    const ROW: f64 = 26.0;
    let height = TOP + 10.0 + ROW * values.len() as f64 + 28.0;
    let most = values.iter().map(|(_, value, _)| *value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let room = WIDTH - NAMES - 90.0;
    let mut svg = open(WIDTH, height, title);
    for (row, (name, value, marked)) in values.iter().enumerate() {
        let top = TOP + ROW * row as f64;
        let colour = if *marked { COLOURS[0] } else { "#9aa7b5" };
        let width = room * value / most;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            NAMES - 8.0,
            top + 14.0,
            escape(name),
            NAMES + width + 6.0,
            top + 14.0,
            number(*value)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{NAMES}\" y=\"{:.1}\">{}</text>\n</svg>",
        height - 12.0,
        escape(unit)
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::{Axis, Scale, number};

    #[test]
    fn numbers_are_written_for_people() {
        let written = [0.0, 0.0123, 3.0, 12.34, 123.4, 1_234_567.0].map(number);
        assert_eq!(written, ["0", "0.012", "3", "12.3", "123", "1,234,567"]);
    }

    #[test]
    fn an_axis_holds_all_of_its_values() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            for values in [vec![1.0], vec![0.3, 7.0], vec![999.0, 1_001.0], vec![5.0, 250_000.0]] {
                let axis = Axis { label: String::new(), scale, ticks: Vec::new() };
                let (range, ticks) = axis.fit(values.iter().copied());
                assert!(ticks.len() >= 2, "{scale:?} {values:?}");
                for value in values {
                    let place = axis.place(value, range);
                    assert!((-0.001..=1.001).contains(&place), "{scale:?} {value} {range:?}");
                }
            }
        }
    }
}
