//! Line charts as SVG for light and dark backgrounds, without scripts and without external fonts.

use std::fmt::Write;

use super::table::number;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 84.0;

/// CSS for charts: text, axes and eight line colours, for white and for black backgrounds.
pub const STYLE: &str = "\
.chart{font:12px system-ui,sans-serif;fill:#1f2328}.chart .axis{stroke:#8b949e}.chart .grid{stroke:#8b949e;\
stroke-opacity:.25}.chart path{fill:none;stroke-width:2}.chart .title{font-weight:600;font-size:14px}\
.s0{stroke:#0969da;fill:#0969da}.s1{stroke:#bc4c00;fill:#bc4c00}.s2{stroke:#1a7f37;fill:#1a7f37}\
.s3{stroke:#8250df;fill:#8250df}.s4{stroke:#bf3989;fill:#bf3989}.s5{stroke:#9a6700;fill:#9a6700}\
.s6{stroke:#1b7c83;fill:#1b7c83}.s7{stroke:#57606a;fill:#57606a}\
@media(prefers-color-scheme:dark){.chart{fill:#e6edf3}.s0{stroke:#58a6ff;fill:#58a6ff}\
.s1{stroke:#f0883e;fill:#f0883e}.s2{stroke:#3fb950;fill:#3fb950}.s3{stroke:#bc8cff;fill:#bc8cff}\
.s4{stroke:#f778ba;fill:#f778ba}.s5{stroke:#d29922;fill:#d29922}.s6{stroke:#39c5cf;fill:#39c5cf}\
.s7{stroke:#8b949e;fill:#8b949e}}";

/// The most that a logarithmic axis spans. Smaller values, and 0, are drawn at its begin.
const LOG_SPAN: f64 = 1e4;

/// How the values of an axis are placed.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// Linear, with 0 at the origin.
    Linear,
    /// Logarithmic; its label says so.
    Log,
    /// Linear, with labels at these values.
    Marked(Vec<(f64, String)>),
}

/// One line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points (x, y), by ascending x.
    pub points: Vec<(f64, f64)>,
}

/// A line chart of 640 by 320 units, and more where its legend needs several rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Title.
    pub title: String,
    /// Label of the y axis, with the unit; empty where the title has it.
    pub y_label: String,
    /// Label of the x axis.
    pub x_label: String,
    /// Scale of the x axis.
    pub x: Scale,
    /// Scale of the y axis.
    pub y: Scale,
    /// Lines, in the order of the legend.
    pub series: Vec<Series>,
}

impl Chart {
    /// An `<svg>` element for a page that includes [`STYLE`].
    #[must_use]
    pub fn svg(&self) -> String {
        self.drawn("")
    }

    /// A self-contained SVG file.
    #[must_use]
    pub fn svg_file(&self) -> String {
        self.drawn(&format!("<style>{STYLE}</style>"))
    }

    fn drawn(&self, style: &str) -> String {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(&self.x, all().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Axis::new(&self.y, all().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let legend = self.legend();
        let height = HEIGHT + legend.last().map_or(0.0, |entry| entry.1);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\
             <title>{title}</title>{style}<text class=\"title\" x=\"{LEFT}\" y=\"20\">{title}</text>",
            title = escaped(&self.title),
        );
        self.draw_axes(&x, &y, &mut out);
        for (index, (series, (across, down))) in self.series.iter().zip(legend).enumerate() {
            let class = format!("s{}", index % 8);
            draw_line(series, &class, &x, &y, &mut out);
            let (row, name) = (HEIGHT - 16.0 + down, escaped(&series.name));
            push(
                &mut out,
                format_args!(
                    "<circle class=\"{class}\" cx=\"{across:.0}\" cy=\"{:.0}\" r=\"5\"/><text x=\"{:.0}\" y=\"{row}\">{name}</text>",
                    row - 4.0,
                    across + 10.0
                ),
            );
        }
        out.push_str("</svg>");
        out
    }

    /// Where the name of each line stands: from the left, and below the first row.
    fn legend(&self) -> Vec<(f64, f64)> {
        let (mut across, mut down) = (LEFT, 0.0);
        let place = |series: &Series| {
            // A letter of this font size is about 6.6 units wide.
            let width = 30.0 + 6.6 * series.name.chars().count() as f64;
            if across > LEFT && across + width > WIDTH {
                (across, down) = (LEFT, down + 18.0);
            }
            let at = (across, down);
            across += width;
            at
        };
        self.series.iter().map(place).collect()
    }

    fn draw_axes(&self, x: &Axis, y: &Axis, out: &mut String) {
        let bottom = HEIGHT - BOTTOM;
        for (value, label) in &y.marks {
            let at = y.place(*value);
            push(
                out,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                     <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                    WIDTH - RIGHT,
                    LEFT - 6.0,
                    at + 4.0
                ),
            );
        }
        for (value, label) in &x.marks {
            let (at, label) = (x.place(*value), escaped(label));
            push(
                out,
                format_args!(
                    "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
                     <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    bottom + 4.0,
                    bottom + 18.0
                ),
            );
        }
        push(
            out,
            format_args!(
                "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                WIDTH - RIGHT,
                (LEFT + WIDTH - RIGHT) / 2.0,
                bottom + 38.0,
                x.labelled(&self.x_label)
            ),
        );
        let (across, middle) = (14.0, (TOP + bottom) / 2.0);
        push(
            out,
            format_args!(
                "<text x=\"{across}\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 {across} {middle})\">{}</text>",
                y.labelled(&self.y_label)
            ),
        );
    }
}

fn draw_line(series: &Series, class: &str, x: &Axis, y: &Axis, out: &mut String) {
    let mut path = String::new();
    for (index, point) in series.points.iter().enumerate() {
        let step = if index == 0 { 'M' } else { 'L' };
        let (across, up) = (x.place(point.0), y.place(point.1));
        push(&mut path, format_args!("{step}{across:.1} {up:.1}"));
        push(
            out,
            format_args!(
                "<circle class=\"{class}\" cx=\"{across:.1}\" cy=\"{up:.1}\" r=\"3\"><title>{}: {}</title></circle>",
                escaped(&series.name),
                number(point.1)
            ),
        );
    }
    push(
        out,
        format_args!("<path class=\"{class}\" style=\"fill:none\" d=\"{path}\"/>"),
    );
}

/// Maps values to positions in the drawing.
struct Axis {
    log: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    marks: Vec<(f64, String)>,
}

impl Axis {
    fn new(scale: &Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        let drawn = |value: &f64| value.is_finite() && (*scale != Scale::Log || *value > 0.0);
        for value in values.filter(drawn) {
            (low, high) = (low.min(value), high.max(value));
        }
        if *scale == Scale::Log {
            low = low.max(high / LOG_SPAN);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let log = *scale == Scale::Log && low > 0.0;
        let values = match scale {
            Scale::Marked(marks) => marks.iter().map(|mark| mark.0).collect(),
            _ if log => log_marks(low, high),
            _ => linear_marks(high),
        };
        for value in &values {
            (low, high) = (low.min(*value), high.max(*value));
        }
        let label = |value: f64| match scale {
            Scale::Marked(marks) => marks
                .iter()
                .find(|mark| mark.0 == value)
                .map_or(String::new(), |mark| mark.1.clone()),
            _ => short(value),
        };
        let marks = values.into_iter().map(|value| (value, label(value)));
        Axis {
            marks: marks.collect(),
            low,
            high,
            log,
            from,
            to,
        }
    }

    fn labelled(&self, label: &str) -> String {
        let scale = if self.log { " (logarithmic)" } else { "" };
        escaped(label) + scale
    }

    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.log { value.ln() } else { value };
        let span = scaled(self.high) - scaled(self.low);
        let part = match span > 0.0 {
            true => (scaled(value) - scaled(self.low)) / span,
            false => 0.5,
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }
}

/// Round numbers from 0 to at least `high`, up to six of them.
fn linear_marks(high: f64) -> Vec<f64> {
    if high <= 0.0 {
        return vec![0.0, 1.0];
    }
    let rough = high / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
    let step = steps
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power);
    (0..=6)
        .map(|index| f64::from(index) * step)
        .take_while(|mark| *mark < high + step)
        .collect()
}

/// Powers of ten around the values, with 2 and 5 times each of them if the values span at most four decades. Three or
/// more.
fn log_marks(low: f64, high: f64) -> Vec<f64> {
    // One decade more on each side, for values that are close to each other.
    let (first, last) = (
        low.log10().floor() as i32 - 1,
        high.log10().ceil() as i32 + 1,
    );
    let between: &[f64] = if last - first <= 6 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let all: Vec<f64> = (first..=last)
        .flat_map(|power| between.iter().map(move |step| step * 10_f64.powi(power)))
        .collect();
    let mut from = all
        .iter()
        .rposition(|mark| *mark <= low * 1.0001)
        .unwrap_or(0);
    let mut to = all
        .iter()
        .position(|mark| *mark >= high * 0.9999)
        .unwrap_or(all.len() - 1);
    to = to.max(from);
    if to - from < 2 {
        to = (to + 1).min(all.len() - 1);
        from = from.min(to.saturating_sub(2));
    }
    all[from..=to].to_vec()
}

fn short(value: f64) -> String {
    match value.abs() {
        million if million >= 1e6 => format!("{}M", value / 1e6),
        thousand if thousand >= 1e4 => format!("{}k", value / 1e3),
        _ => {
            // Three steps of 0.1 are 0.30000000000000004.
            let rounded = format!("{value:.6}");
            rounded
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
        }
    }
}

/// Escapes text for an element or an attribute.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// `write!` into a String, which cannot fail.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_marks_are_round_and_reach_the_highest_value() {
        assert_eq!(linear_marks(9.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(
            linear_marks(1.0),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(linear_marks(0.0), [0.0, 1.0]);
    }

    #[test]
    fn log_marks_enclose_the_values() {
        let three_decades = [
            10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
        ];
        assert_eq!(log_marks(16.0, 5000.0), three_decades);
        assert_eq!(log_marks(2.0, 3e5), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]);
        assert_eq!(log_marks(1.0, 16.0), [1.0, 2.0, 5.0, 10.0, 20.0]);
    }

    #[test]
    fn values_that_are_close_have_three_marks_all_the_same() {
        for (low, high) in [(3.0, 3.0), (2.0, 5.0), (1.0, 1.0), (2.1, 4.0), (0.3, 0.4)] {
            let marks = log_marks(low, high);
            assert!(marks.len() >= 3, "{low} {high}: {marks:?}");
            assert!(
                marks[0] <= low && marks[marks.len() - 1] >= high,
                "{marks:?}"
            );
        }
    }

    #[test]
    fn an_axis_is_logarithmic_with_a_zero_among_its_values_and_says_so() {
        let chart = Chart {
            title: String::new(),
            y_label: "milliseconds".to_owned(),
            x_label: String::new(),
            x: Scale::Linear,
            y: Scale::Log,
            series: vec![Series {
                name: String::new(),
                points: vec![(1.0, 0.0), (2.0, 1.5), (3.0, 80.0)],
            }],
        };
        let svg = chart.svg();
        assert!(svg.contains(">milliseconds (logarithmic)<"), "{svg}");
        for mark in [">1<", ">2<", ">5<", ">10<", ">20<", ">50<", ">100<"] {
            assert!(svg.contains(mark), "{mark}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_long_legend_has_several_rows_within_the_picture() {
        let series = (0..6).map(|index| Series {
            name: format!("127.0.0.1:30000, concurrency {index}"),
            points: vec![(1.0, 1.0)],
        });
        let chart = Chart {
            title: String::new(),
            y_label: "milliseconds".to_owned(),
            x_label: String::new(),
            x: Scale::Linear,
            y: Scale::Linear,
            series: series.collect(),
        };
        assert_eq!(chart.legend()[5], (LEFT + 30.0 + 6.6 * 30.0, 36.0));
        let svg = chart.svg();
        assert!(svg.contains("viewBox=\"0 0 640 356\"") && svg.contains(">milliseconds<"));
    }

    #[test]
    fn a_chart_without_points_with_one_or_with_zeros_has_only_finite_numbers() {
        for points in [vec![], vec![(1.0, 5.0)], vec![(0.0, 0.0), (1.0, 0.0)]] {
            for scale in [Scale::Linear, Scale::Log] {
                let chart = Chart {
                    title: "a < b".to_owned(),
                    y_label: String::new(),
                    x_label: "x".to_owned(),
                    x: scale.clone(),
                    y: scale,
                    series: vec![Series {
                        name: "\"one\"".to_owned(),
                        points: points.clone(),
                    }],
                };
                let svg = chart.svg_file();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(svg.contains("a &lt; b") && svg.contains("&quot;one&quot;"));
            }
        }
    }
}
