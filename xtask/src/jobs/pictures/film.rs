//! Draws the screens of a terminal as an animated SVG.

use std::fmt::Write;

pub(super) struct Frame {
    /// The time since the start of the recording, in seconds.
    pub(super) at: f64,
    pub(super) lines: Vec<String>,
}

const CELL_WIDTH: f64 = 8.5;
const LINE_HEIGHT: f64 = 20.0;
const MARGIN: f64 = 18.0;
/// The time for which the animation shows the last screen, in seconds.
const LAST: f64 = 4.0;

/// Returns an image that shows one screen after another in an endless loop. If the reader has switched animations off, the image shows
/// the last screen.
///
/// All screens are on one vertical strip. The animation moves the strip behind a window of the size of one screen.
#[allow(clippy::cast_precision_loss, reason = "a terminal has few columns, rows and screens")]
pub(super) fn svg(frames: &[Frame], columns: usize, rows: usize, caption: &str) -> String {
    let (width, height) = (columns as f64 * CELL_WIDTH + 2.0 * MARGIN, rows as f64 * LINE_HEIGHT + 2.0 * MARGIN);
    let (start, end) = (frames.first().map_or(0.0, |frame| frame.at), frames.last().map_or(0.0, |frame| frame.at));
    let duration = end - start + LAST;
    let (mut steps, mut strip) = (String::new(), String::new());
    for (index, frame) in frames.iter().enumerate() {
        let top = index as f64 * height;
        let _ = writeln!(steps, "{:.2}%{{transform:translateY(-{top}px)}}", 100.0 * (frame.at - start) / duration);
        for (row, line) in frame.lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
            let y = top + MARGIN + (row as f64 + 0.75) * LINE_HEIGHT;
            let length = line.chars().count() as f64 * CELL_WIDTH;
            let text = line.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(strip, "<text x=\"{MARGIN}\" y=\"{y}\" textLength=\"{length}\">{text}</text>");
        }
    }
    let last = (frames.len() - 1) as f64 * height;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title">
<title id="title">{caption}</title>
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#dde3ee;white-space:pre}}
#strip{{transform:translateY(-{last}px)}}
@media (prefers-reduced-motion:no-preference){{#strip{{animation:film {duration:.2}s step-end infinite}}}}
@keyframes film{{
{steps}}}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#151a23"/>
<g id="strip">
{strip}</g>
</svg>
"##
    )
}
