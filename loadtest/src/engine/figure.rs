//! Figures: what they show, and how they are drawn as SVG.

use std::ops::Range;

use anyhow::anyhow;
use hdrhistogram::Histogram;
use plotters::chart::ChartBuilder;
pub(crate) use plotters::chart::SeriesLabelPosition;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::PathElement;
use plotters::series::LineSeries;
use plotters::style::{Color as _, RGBColor, ShapeStyle, WHITE};
use plotters_svg::SVGBackend;

/// Lines over two axes.
pub(crate) struct Figure {
    pub(crate) title: &'static str,
    /// How to read it.
    pub(crate) caption: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
    /// A moment on the x axis, and what happened then.
    pub(crate) mark: Option<(f64, String)>,
    /// Where no line is.
    pub(crate) legend: SeriesLabelPosition,
}

pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) scale: Scale,
    /// The text at a tick.
    pub(crate) show: fn(f64) -> String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// To the base of 10; for values above 0.
    Log,
}

pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The part of an axis that is seen, as it is drawn: a logarithm if the axis is one.
#[derive(Debug, Clone)]
struct Span {
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

const SIZE: (u32, u32) = (860, 400);

/// Told apart also by those who see fewer colours (Okabe and Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
const GREY: RGBColor = RGBColor(110, 110, 110);

/// The share of calls, in percent, that a latency distribution goes up to: beyond it single calls are seen.
const LAST_PERCENTILE: f64 = 99.99;

/// How latencies, in nanoseconds, are distributed; title and caption are to be filled in.
pub(crate) fn latencies<'a>(of: impl IntoIterator<Item = (&'a str, &'a Histogram<u64>)>) -> Figure {
    // Percentiles by how rare the calls beyond them are: 90 % at 10, 99 % at 100. Tails get as much room as the middle.
    let last = rarity(LAST_PERCENTILE).log10();
    let steps = (0..=80).map(|step| 10_f64.powf(last * f64::from(step) / 80.0));
    let line = |(name, latency): (&str, &Histogram<u64>)| {
        let at = |rarity: f64| latency.value_at_quantile(1.0 - 1.0 / rarity) as f64 / 1e3;
        Line { name: name.into(), points: steps.clone().map(|rarity| (rarity, at(rarity))).collect() }
    };
    Figure {
        title: "",
        caption: String::new(),
        x: Axis { label: "percentile", scale: Scale::Log, show: percentile },
        y: Axis { label: "latency, us", scale: Scale::Log, show: |value| format!("{value}") },
        lines: of.into_iter().map(line).collect(),
        mark: None,
        legend: SeriesLabelPosition::LowerRight,
    }
}

/// One of so many calls is beyond a percentile.
fn rarity(percentile: f64) -> f64 {
    1.0 / (1.0 - percentile / 100.0)
}

/// The percentile that one of so many calls is beyond, without more digits than it has.
fn percentile(rarity: f64) -> String {
    let text = format!("{:.4}", 100.0 - 100.0 / rarity);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

// === impl Figure ===

impl Figure {
    /// Draws it, without its title and caption.
    ///
    /// # Errors
    /// If there is nothing to draw.
    pub(crate) fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.draw(SVGBackend::with_string(&mut text, SIZE))
            .map_err(|error| anyhow!("cannot draw `{}`: {error}", self.title))?;
        Ok(text)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Span::over(&self.x, points().map(|(x, _)| *x)).ok_or("there are no points")?;
        let y = Span::over(&self.y, points().map(|(_, y)| *y)).ok_or("there are no points")?;
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(14)
            // Half of the last label.
            .margin_right(30)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x.clone(), y.clone())?;
        let style = ("sans-serif", 13);
        chart
            .configure_mesh()
            .label_style(style)
            .axis_desc_style(style)
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .x_label_formatter(&|at| (self.x.show)(self.x.scale.value(*at)))
            .y_label_formatter(&|at| (self.y.show)(self.y.scale.value(*at)))
            .x_labels(x.ticks.len().max(2))
            .y_labels(y.ticks.len().max(2))
            .max_light_lines(0)
            .axis_style(GREY)
            .bold_line_style(GREY.mix(0.25))
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let stroke = colour.stroke_width(2);
            let points = line.points.iter().map(|(x, y)| (self.x.scale.place(*x), self.y.scale.place(*y)));
            let points = points.filter(|(x, y)| x.is_finite() && y.is_finite());
            chart.draw_series(LineSeries::new(points, stroke))?.label(&line.name).legend(sample_of(stroke));
        }
        if let Some((at, what)) = &self.mark {
            let at = self.x.scale.place(*at);
            let stroke = GREY.stroke_width(1);
            let line = PathElement::new([(at, y.from), (at, y.to)], stroke);
            chart.draw_series([line])?.label(what).legend(sample_of(stroke));
        }
        chart
            .configure_series_labels()
            .position(self.legend.clone())
            .background_style(WHITE.mix(0.85))
            .border_style(GREY.mix(0.4))
            .label_font(style)
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// A line's sample in the legend.
fn sample_of(stroke: ShapeStyle) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], stroke)
}

// === impl Scale ===

impl Scale {
    /// Where a value is drawn.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.log10(),
        }
    }

    /// The value that is drawn at a place.
    fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            // Ticks are round numbers; the logarithm is not.
            Self::Log => (10_f64.powf(place) * 1e6).round() / 1e6,
        }
    }
}

// === impl Span ===

impl Span {
    /// What shows all values: whole decades or round steps. `None` if there is no value.
    fn over(axis: &Axis, values: impl Iterator<Item = f64>) -> Option<Self> {
        let places: Vec<f64> = values.map(|value| axis.scale.place(value)).filter(|place| place.is_finite()).collect();
        let least = places.iter().copied().reduce(f64::min)?;
        let most = places.iter().copied().reduce(f64::max)?;
        let step = match axis.scale {
            Scale::Log => 1.0,
            Scale::Linear => round_step((most - least.min(0.0)) / 8.0),
        };
        let from =
            if axis.scale == Scale::Log { (least + 1e-9).floor() } else { (least.min(0.0) / step).floor() * step };
        let to = ((most - 1e-9) / step).ceil() * step;
        let to = if to > from { to } else { from + step };
        let ticks = std::iter::successors(Some(from), |tick| Some(tick + step));
        Some(Self { from, to, ticks: ticks.take_while(|tick| *tick <= to + step / 2.0).collect() })
    }
}

impl Ranged for Span {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "pixels are few")]
    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (place - self.from) / (self.to - self.from);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // It is asked again for finer lines between the ticks: there are none.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

/// The next greater one of 1, 2 or 5 times a power of ten.
fn round_step(at_least: f64) -> f64 {
    let power = 10_f64.powf(at_least.max(1e-6).log10().floor());
    let fits = |step: &f64| *step >= at_least;
    [1.0, 2.0, 5.0].map(|step| step * power).into_iter().find(fits).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis { label: "x", scale, show: |value| format!("{value}") }
    }

    #[test]
    fn axes_show_all_values_and_end_at_round_ones() {
        let cases = [
            (Scale::Log, vec![10.0, 10_000.0], (1.0, 4.0), 4),
            (Scale::Log, vec![12.0, 850.0], (1.0, 3.0), 3),
            (Scale::Log, vec![5.0], (0.0, 1.0), 2),
            (Scale::Linear, vec![0.2, 5.9], (0.0, 6.0), 7),
            (Scale::Linear, vec![3.0, 99.7], (0.0, 100.0), 6),
        ];
        for (scale, values, range, ticks) in cases {
            let span = Span::over(&axis(scale), values.iter().copied()).unwrap();
            assert_eq!(
                ((span.from, span.to), span.ticks.len()),
                (range, ticks),
                "{scale:?} {values:?} {:?}",
                span.ticks
            );
        }
        assert!(Span::over(&axis(Scale::Log), [f64::NAN, 0.0].into_iter()).is_none());
    }

    #[test]
    fn percentiles_have_the_digits_they_need() {
        for (text, value) in [("0 %", 1.0), ("90 %", 10.0), ("99.9 %", 1_000.0), ("99.99 %", 10_000.0)] {
            assert_eq!(percentile(value), text);
        }
        assert!((rarity(99.0) - 100.0).abs() < 1e-6);
    }

    #[test]
    fn a_figure_becomes_an_svg_with_its_words() {
        let mut latency = Histogram::new(3).unwrap();
        (1..1_000).for_each(|value| latency.record(value * 1_000).unwrap());
        let figure = Figure { title: "t", mark: Some((10.0, "push".into())), ..latencies([("floor", &latency)]) };
        let svg = figure.svg().unwrap();
        for word in ["<svg", "percentile", "latency, us", "99.9 %", "floor", "push", "</svg>"] {
            assert!(svg.contains(word), "no {word} in {svg}");
        }
        let empty = Figure { lines: Vec::new(), ..figure };
        assert!(empty.svg().unwrap_err().to_string().contains("no points"));
    }
}
