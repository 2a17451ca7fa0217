//! Draws a plot of the jobs per second at each depth of the queue.

use crate::contender::Contender as _;
use crate::depth::{Curve, Panel};
use crate::durable::Durable;
use crate::samples::number;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const WIDTH: u32 = 960;
const PANEL: u32 = 420;
const LEGEND: u32 = 260;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// Durable jobs are black. Readers with red-green colour blindness can distinguish the other colours.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 0, 0), RGBColor(0, 114, 178), RGBColor(213, 94, 0)];

pub fn draw(panels: &[Panel], file: &Path) -> Drawn {
    let root = SVGBackend::new(file, (WIDTH, PANEL * u32::try_from(panels.len())?)).into_drawing_area();
    root.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
        lines(panel, &area)?;
    }
    root.present()?;
    Ok(())
}

fn lines(panel: &Panel, area: &Area) -> Drawn {
    let all = || panel.curves.iter().flat_map(Curve::rates).filter(|rate| *rate > 0.0);
    let (least, most) = (all().fold(f64::MAX, f64::min).max(0.1), all().fold(1.0, f64::max));
    let depths: Vec<_> = panel.depths.iter().map(|&depth| depth as f64).collect();
    let (plot, legend) = area.split_horizontally(WIDTH - LEGEND);
    let mut chart = ChartBuilder::on(&plot);
    chart.caption(panel.title, (FONT, 18).into_font().color(&INK)).margin(12).x_label_area_size(44).y_label_area_size(72);
    let x = (depths[0] * 0.8..depths[depths.len() - 1] * 1.25).log_scale();
    let y = (10_f64.powf(least.log10().floor())..10_f64.powf(most.log10().ceil())).log_scale();
    let mut chart = chart.build_cartesian_2d(x, y)?;
    let tens = |value: &f64| if (value.log10() - value.log10().round()).abs() < 1e-6 { label(*value) } else { String::new() };
    let mut mesh = chart.configure_mesh();
    mesh.x_labels(depths.len() + 2).x_label_formatter(&tens).y_labels(12).y_label_formatter(&tens);
    mesh.x_desc("due jobs").y_desc("jobs/s, log scale").bold_line_style(FAINT).light_line_style(WHITE);
    mesh.label_style((FONT, 13)).draw()?;
    for curve in &panel.curves {
        let points: Vec<_> = depths.iter().copied().zip(curve.rates()).filter(|point| point.1 > 0.0).collect();
        let style = colour(panel, curve).stroke_width(if curve.contender == Durable::NAME { 3 } else { 2 });
        if curve.analyzed {
            chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        } else {
            chart.draw_series(DashedLineSeries::new(points.iter().copied(), 5, 4, style))?;
        }
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, style.filled())))?;
    }
    for (place, curve) in panel.curves.iter().enumerate() {
        let y = 60 + 24 * i32::try_from(place)?;
        let colour = colour(panel, curve);
        for left in if curve.analyzed { vec![4, 12, 20] } else { vec![4, 20] } {
            legend.draw(&Rectangle::new([(left, y), (left + 8, y + 4)], colour.filled()))?;
        }
        legend.draw_text(&curve.name(), &(FONT, 13).into_font().color(&INK), (36, y - 4))?;
    }
    Ok(())
}

fn label(value: f64) -> String {
    number(value).trim_end_matches(".0").to_owned()
}

fn colour(panel: &Panel, curve: &Curve) -> RGBColor {
    let place = panel.curves.iter().position(|other| other.contender == curve.contender).unwrap_or_default();
    COLOURS[place % COLOURS.len()]
}
