//! The table of the ways as a picture.

use crate::path::Mode;
use std::fmt::Write;

/// Bars of one measure, by the order of [`Mode::ALL`].
pub struct Panel {
    pub title: &'static str,
    pub figures: Vec<f64>,
    pub digits: usize,
}

const WIDTH: f64 = 720.0;
const LABELS: f64 = 170.0;
const BARS: f64 = 440.0;
const LINE: f64 = 24.0;
const TITLE: f64 = 40.0;

pub fn svg(panels: &[Panel]) -> String {
    let each = TITLE + LINE * Mode::ALL.len() as f64 + 12.0;
    let height = each * panels.len() as f64 + 8.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (n, panel) in panels.iter().enumerate() {
        let top = each * n as f64;
        writeln!(text, "<text x=\"12\" y=\"{}\" font-weight=\"bold\">{}</text>", top + 26.0, panel.title).unwrap();
        let most = panel.figures.iter().copied().fold(0.0, f64::max);
        for (line, (mode, figure)) in Mode::ALL.iter().zip(&panel.figures).enumerate() {
            let y = top + TITLE + LINE * line as f64;
            let width = BARS * figure / most;
            let colour = match mode {
                Mode::Ours { fast: true, .. } => "#0b6e4f",
                Mode::Ours { fast: false, .. } => "#6bb392",
                _ => "#b8b8b8",
            };
            writeln!(
                text,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{figure:.*}</text>",
                LABELS - 8.0,
                y + 14.0,
                mode.name(),
                LINE - 6.0,
                LABELS + width + 6.0,
                y + 14.0,
                panel.digits,
            )
            .unwrap();
        }
    }
    text.push_str("</svg>\n");
    text
}
