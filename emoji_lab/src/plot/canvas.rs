//! The card that all plots share: title, legend, axes with a grid, words at the foot.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;

use super::scale;
use crate::display::{escape_html, plain, wrap};
use crate::error::{Error, Result};

/// plotters places things on whole pixels; it draws at twice the size so that curves stay smooth.
pub(super) const SCALE: u32 = 2;
const WIDTH: u32 = 720;
const PLOT_HEIGHT: u32 = 330;
const FOOT_LINE: u32 = 19;
/// Characters that fit the card's width, in the wide fonts too.
const FOOT_COLUMNS: usize = 94;

pub(super) const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
pub(super) const MUTED: RGBColor = RGBColor(0x57, 0x60, 0x6a);
const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);
/// Blue, orange and green that people with any colour vision tell apart (after Okabe and Ito).
pub(super) const BLUE: RGBColor = RGBColor(0x00, 0x5f, 0xb8);
pub(super) const ORANGE: RGBColor = RGBColor(0xc8, 0x4b, 0x00);
pub(super) const GREEN: RGBColor = RGBColor(0x1a, 0x7f, 0x37);

type Backend<'a> = SVGBackend<'a>;
type Area<'a> = DrawingArea<Backend<'a>, plotters::coord::Shift>;
pub(super) type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;
/// A chart with its axes drawn, ready for series.
pub(super) type Chart<'a> = ChartContext<'a, Backend<'a>, Cartesian2d<Coordinates, Coordinates>>;

/// An axis' range with the places of its ticks, as plotters wants them.
pub(super) struct Coordinates {
    range: (f64, f64),
    ticks: Vec<f64>,
}

impl Ranged for Coordinates {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let (low, high) = self.range;
        // Halves before subtracting: the span of two huge numbers may not fit.
        let share = (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0);
        from + (f64::from(to - from) * share.clamp(-1.0, 2.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.0..self.range.1
    }
}

/// A name, a range and labelled positions.
pub(super) struct Axis {
    name: String,
    range: (f64, f64),
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis with at most `most` round ticks.
    pub(super) fn new(name: &str, range: (f64, f64), most: usize, whole: bool) -> Self {
        let places = scale::ticks(range, most, whole);
        let ticks = places.iter().map(|tick| (*tick, scale::label(*tick, &places))).collect();
        Self { name: name.to_string(), range, ticks }
    }

    /// An axis with ticks of the caller's choice.
    pub(super) fn with_ticks(name: &str, range: (f64, f64), ticks: Vec<(f64, String)>) -> Self {
        Self { name: name.to_string(), range, ticks }
    }

    fn coordinates(&self) -> Coordinates {
        Coordinates { range: self.range, ticks: self.ticks.iter().map(|(place, _)| *place).collect() }
    }

    fn label(&self, value: f64) -> String {
        self.ticks
            .iter()
            .find(|(place, _)| *place == value)
            .map(|(_, label)| label.clone())
            .unwrap_or_default()
    }
}

/// How a series looks, on the plot and in the legend.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    /// A line with discs.
    Disc(RGBColor),
    /// A line with squares.
    Square(RGBColor),
    /// A ring around a point.
    Ring(RGBColor),
    /// A vertical line.
    Rule(RGBColor),
    /// A filled bar.
    Bar(RGBColor),
}

/// Everything in the picture but the series.
pub(super) struct Card {
    pub title: String,
    pub legend: Vec<(Mark, String)>,
    pub x: Axis,
    pub y: Axis,
    /// Sentences below the plot.
    pub foot: Vec<String>,
}

impl Card {
    /// Draws the card; `series` draws on its chart. Gives a whole SVG document.
    pub(super) fn draw(&self, series: impl FnOnce(&mut Chart<'_>) -> Drawn) -> Result<String> {
        let foot: Vec<String> = self.foot.iter().flat_map(|line| wrap(line, FOOT_COLUMNS)).collect();
        let top = if self.legend.is_empty() { 44 } else { 68 };
        let plot_end = top + PLOT_HEIGHT;
        let height = plot_end + 12 + FOOT_LINE * foot.len() as u32 + if foot.is_empty() { 0 } else { 10 };

        let mut drawing = String::new();
        self.draw_on(&mut drawing, (top, plot_end, height), &foot, series).map_err(|e| {
            Error::training(
                format!("the plot \"{}\" could not be drawn: {e}", self.title),
                "Please report it.",
            )
        })?;
        // Names and sentences may be anyone's, and XML allows few control characters.
        Ok(plain(&self.on_card(&drawing, height)).into_owned())
    }

    fn draw_on(
        &self,
        drawing: &mut String,
        (top, plot_end, height): (u32, u32, u32),
        foot: &[String],
        series: impl FnOnce(&mut Chart<'_>) -> Drawn,
    ) -> Drawn {
        let root: Area<'_> =
            SVGBackend::with_string(drawing, (WIDTH * SCALE, height * SCALE)).into_drawing_area();
        root.draw(&Text::new(self.title.clone(), at(22, 18), font(17, INK).style(FontStyle::Bold)))?;
        self.draw_legend(&root)?;
        for (i, line) in foot.iter().enumerate() {
            let y = plot_end + 12 + FOOT_LINE * i as u32;
            root.draw(&Text::new(line.clone(), at(22, y), font(13, INK)))?;
        }

        let (_, lower) = root.split_vertically((top * SCALE) as i32);
        let (plot, _) = lower.split_vertically((PLOT_HEIGHT * SCALE) as i32);
        let (x, y) = (&self.x, &self.y);
        let mut chart = ChartBuilder::on(&plot)
            .margin_left((14 * SCALE) as i32)
            .margin_right((26 * SCALE) as i32)
            .margin_top((8 * SCALE) as i32)
            .x_label_area_size((48 * SCALE) as i32)
            .y_label_area_size((62 * SCALE) as i32)
            .build_cartesian_2d(x.coordinates(), y.coordinates())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(SCALE))
            .axis_style(MUTED.stroke_width(SCALE))
            .set_all_tick_mark_size((4 * SCALE) as i32)
            .label_style(font(12, INK))
            .axis_desc_style(font(13, INK))
            .x_label_formatter(&|value| x.label(*value))
            .y_label_formatter(&|value| y.label(*value))
            .x_desc(x.name.clone())
            .y_desc(y.name.clone())
            .draw()?;
        series(&mut chart)?;
        drop(chart);
        root.present()
    }

    fn draw_legend(&self, root: &Area<'_>) -> Drawn {
        let (mut left, y) = (22, 55);
        for (mark, name) in &self.legend {
            let (from, to, centre) = (at(left, y), at(left + 26, y), at(left + 13, y));
            let line = |color: RGBColor| PathElement::new(vec![from, to], color.stroke_width(2 * SCALE));
            match mark {
                Mark::Disc(color) => {
                    root.draw(&line(*color))?;
                    root.draw(&Circle::new(centre, 4 * SCALE, color.filled()))?;
                }
                Mark::Square(color) => {
                    root.draw(&line(*color))?;
                    root.draw(&square(centre, *color))?;
                }
                Mark::Ring(color) => {
                    root.draw(&Circle::new(centre, 7 * SCALE, color.stroke_width(2 * SCALE)))?;
                }
                Mark::Rule(color) => {
                    let (above, below) = (at(left + 13, y - 9), at(left + 13, y + 9));
                    root.draw(&PathElement::new(vec![above, below], color.stroke_width(2 * SCALE)))?;
                }
                Mark::Bar(color) => {
                    let corners = [at(left + 4, y - 6), at(left + 22, y + 6)];
                    root.draw(&Rectangle::new(corners, color.mix(0.75).filled()))?;
                }
            }
            let place = at(left + 33, y - 6);
            root.draw(&Text::new(name.clone(), place, font(13, INK)))?;
            // The viewer's font is not known; sans-serif digits and letters are about this wide.
            left += 33 + 24 + crate::display::display_width(name) as u32 * 73 / 10;
        }
        Ok(())
    }

    /// Replaces the root element: shown at half the size it was drawn in, with a name for screen
    /// readers, on a white card.
    fn on_card(&self, drawing: &str, height: u32) -> String {
        let inner = drawing.split_once(">\n").map_or(drawing, |(_, inner)| inner);
        let (drawn_width, drawn_height) = (WIDTH * SCALE, height * SCALE);
        let name = escape_html(&self.title);
        format!(
            "<svg width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {drawn_width} {drawn_height}\" \
             xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{name}\">\n\
             <title>{name}</title>\n\
             <rect x=\"1\" y=\"1\" width=\"{}\" height=\"{}\" rx=\"16\" fill=\"#FFFFFF\" stroke=\"#D0D7DE\" \
             stroke-width=\"2\"/>\n{inner}",
            drawn_width - 2,
            drawn_height - 2
        )
    }
}

/// Several cards, one below the other, as one document.
pub(super) fn stacked(title: &str, cards: &[String]) -> String {
    const BETWEEN: u32 = 12;
    let height_of = |card: &str| {
        let height = card.split_once(" height=\"").and_then(|(_, rest)| rest.split_once('"'));
        height.and_then(|(height, _)| height.parse::<u32>().ok()).unwrap_or(0)
    };
    let (mut inner, mut y) = (String::new(), 0);
    for card in cards {
        inner += &card.replacen("<svg ", &format!("<svg y=\"{y}\" "), 1);
        inner.push('\n');
        y += height_of(card) + BETWEEN;
    }
    let (height, name) = (y.saturating_sub(BETWEEN), escape_html(title));
    format!(
        "<svg width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{name}\">\n{inner}</svg>\n"
    )
}

/// A place in the picture, in the pixels it is shown with.
fn at(x: u32, y: u32) -> (i32, i32) {
    ((x * SCALE) as i32, (y * SCALE) as i32)
}

/// plotters divides SVG font sizes by 1.24.
fn font(pixels: u32, color: RGBColor) -> TextStyle<'static> {
    let mut style = TextStyle::from(("sans-serif", f64::from(pixels * SCALE) * 1.24).into_font());
    style.color = color.to_backend_color();
    style
}

trait Bold {
    fn style(self, style: FontStyle) -> Self;
}

impl Bold for TextStyle<'static> {
    fn style(mut self, style: FontStyle) -> Self {
        self.font = self.font.style(style);
        self
    }
}

fn square(centre: (i32, i32), color: RGBColor) -> Rectangle<(i32, i32)> {
    let half = (4 * SCALE) as i32;
    Rectangle::new([(centre.0 - half, centre.1 - half), (centre.0 + half, centre.1 + half)], color.filled())
}

/// A line through `points`, with markers where they are few enough to be seen one by one.
pub(super) fn curve(chart: &mut Chart<'_>, points: &[(f64, f64)], mark: Mark) -> Drawn {
    let color = match mark {
        Mark::Disc(color)
        | Mark::Square(color)
        | Mark::Ring(color)
        | Mark::Rule(color)
        | Mark::Bar(color) => color,
    };
    chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2 * SCALE)))?;
    if points.len() > 50 {
        return Ok(());
    }
    match mark {
        Mark::Square(color) => {
            chart.draw_series(points.iter().map(|point| EmptyElement::at(*point) + square((0, 0), color)))?;
        }
        _ => {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 4 * SCALE, color.filled())))?;
        }
    }
    Ok(())
}

/// A vertical line at `x`, from `low` to `high`.
pub(super) fn rule(chart: &mut Chart<'_>, x: f64, (low, high): (f64, f64), color: RGBColor) -> Drawn {
    chart.draw_series([PathElement::new(vec![(x, low), (x, high)], color.stroke_width(3))])?;
    Ok(())
}

/// A ring around a point.
pub(super) fn ring(chart: &mut Chart<'_>, point: (f64, f64), color: RGBColor) -> Drawn {
    chart.draw_series([Circle::new(point, 9 * SCALE, color.stroke_width(2 * SCALE))])?;
    Ok(())
}

/// Bars from zero, each between two places on the x axis.
pub(super) fn bars(chart: &mut Chart<'_>, bars: &[(f64, f64, f64)], color: RGBColor) -> Drawn {
    chart.draw_series(bars.iter().filter(|(_, _, height)| *height > 0.0).map(|(from, to, height)| {
        Rectangle::new([(*from, 0.0), (*to, *height)], color.mix(0.75).filled())
    }))?;
    Ok(())
}
