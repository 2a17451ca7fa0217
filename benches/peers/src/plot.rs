//! Draws the plots of the sections.

use crate::caption::Caption;
use crate::report::{Section, Table};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const WIDTH: u32 = 960;
const PANEL: u32 = 460;
const FOOT: u32 = 42;
const LEGEND: u32 = 250;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// The registry has the first colour. Readers with red-green colour blindness can distinguish these colours.
const COLOURS: [RGBColor; 11] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 86, 75),
    RGBColor(150, 150, 150),
    RGBColor(148, 103, 189),
    RGBColor(188, 189, 34),
];

/// Draws the plot of the section, if the section has a plot.
pub fn draw(section: &Section, caption: &Caption, folder: &Path) -> Drawn {
    let panel: fn(&Table, &Area) -> Drawn = match section.name {
        "tokens" | "signals" => lines,
        "tasks" | "fan-out" => bars,
        _ => return Ok(()),
    };
    let tables = section.tables();
    if tables.is_empty() {
        return Ok(());
    }
    let file = folder.join(section.name).with_extension("svg");
    let height = PANEL * u32::try_from(tables.len())?;
    let root = SVGBackend::new(&file, (WIDTH, height + FOOT)).into_drawing_area();
    root.fill(&WHITE)?;
    let (panels, foot) = root.split_vertically(height);
    for (table, area) in tables.iter().zip(panels.split_evenly((tables.len(), 1))) {
        panel(table, &area)?;
    }
    for (line, y) in caption.to_string().lines().zip([4, 20]) {
        foot.draw_text(line, &(FONT, 12).into_font().color(&INK), (12, y))?;
    }
    root.present()?;
    Ok(())
}

/// Draws the throughput for each number of threads.
fn lines(table: &Table, area: &Area) -> Drawn {
    let rates: Vec<Vec<_>> = medians(table).map(|row| row.map(|(x, nanos)| (x, 1e3 / nanos)).collect()).collect();
    let all = || rates.iter().flatten().map(|point| point.1);
    let (least, most) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
    let (plot, legend) = area.split_horizontally(WIDTH - LEGEND);
    let mut chart = builder(&plot, table.title)
        .build_cartesian_2d(categories(table), (10_f64.powf(least.log10().floor())..most * 1.5).log_scale())?;
    let name = |x: &f64| name_at(table, *x);
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .x_labels(2 * table.columns.len())
        .x_label_formatter(&name)
        .y_labels(30)
        .y_label_formatter(&|value| round_ones(*value));
    mesh.y_desc("million operations per second (log scale)")
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .label_style((FONT, 13))
        .draw()?;
    for (number, points) in rates.iter().enumerate() {
        let style = colour(table, number).stroke_width(if table.rows[number].name == table.ours { 3 } else { 2 });
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, style.filled())))?;
    }
    draw_legend(table, &legend)
}

/// Draws a group of bars for each column. A group has one bar for each contender.
fn bars(table: &Table, area: &Area) -> Drawn {
    let most = medians(table).flatten().map(|point| point.1).fold(0.0, f64::max);
    let (plot, legend) = area.split_horizontally(WIDTH - LEGEND);
    let mut chart = builder(&plot, table.title).build_cartesian_2d(categories(table), 0.0..most * 1.1)?;
    let name = |x: &f64| name_at(table, *x);
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(2 * table.columns.len()).x_label_formatter(&name).y_label_formatter(&|value| decimals(*value));
    mesh.y_desc(format!("{} (lower is better)", table.unit))
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .label_style((FONT, 13))
        .draw()?;
    let width = 0.8 / f64::from(u32::try_from(table.rows.len())?);
    let mut left = -0.4;
    for (number, row) in medians(table).enumerate() {
        let style = colour(table, number).filled();
        let bar = |(x, value)| Rectangle::new([(x + left, 0.0), (x + left + 0.9 * width, value)], style);
        chart.draw_series(row.map(bar))?;
        left += width;
    }
    draw_legend(table, &legend)
}

fn builder<'a, 'b>(plot: &'a Area<'b>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(plot);
    chart.caption(title, (FONT, 18).into_font().color(&INK)).margin(12).x_label_area_size(34).y_label_area_size(64);
    chart
}

/// For each row, returns the medians and their positions on the x axis.
fn medians(table: &Table) -> impl Iterator<Item = impl Iterator<Item = (f64, f64)> + '_> + '_ {
    table.rows.iter().map(|row| (0u32..).map(f64::from).zip(&row.cells).filter_map(|(x, cell)| Some((x, cell.as_ref()?.median()))))
}

fn categories(table: &Table) -> std::ops::Range<f64> {
    -0.5..table.columns.iter().map(|_| 1.0).sum::<f64>() - 0.5
}

fn name_at(table: &Table, x: f64) -> String {
    let mut names = (0u32..).map(f64::from).zip(&table.columns);
    names.find(|(at, _)| (at - x).abs() < 0.01).map(|(_, name)| name.clone()).unwrap_or_default()
}

/// Labels only the values of a logarithmic axis whose first digit is 1, 2 or 5.
fn round_ones(value: f64) -> String {
    let leading = value / 10_f64.powf((value.log10() + 1e-9).floor());
    let is_round = [1.0, 2.0, 5.0].iter().any(|round| (leading - round).abs() < 0.01);
    if is_round { decimals(value) } else { String::new() }
}

fn decimals(value: f64) -> String {
    ((value * 1000.0).round() / 1000.0).to_string()
}

/// Returns the colour of a row. The registry always has the first colour.
fn colour(table: &Table, number: usize) -> RGBColor {
    let ours = table.rows.iter().position(|row| row.name == table.ours).unwrap_or_default();
    match number {
        _ if number == ours => COLOURS[0],
        _ if number < ours => COLOURS[number + 1],
        _ => COLOURS[number % COLOURS.len()],
    }
}

fn draw_legend(table: &Table, area: &Area) -> Drawn {
    let mut y = 60;
    for (number, row) in table.rows.iter().enumerate() {
        area.draw(&Rectangle::new([(4, y), (24, y + 8)], colour(table, number).filled()))?;
        area.draw_text(row.name, &(FONT, 13).into_font().color(&INK), (32, y - 2))?;
        y += 24;
    }
    Ok(())
}
