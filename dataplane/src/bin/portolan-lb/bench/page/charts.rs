//! Charts as SVG: bars, and lines over an axis.

use std::{collections::BTreeSet, fmt::Write};

use crate::bench::report::figure;

const COLOURS: [&str; 13] = [
    "#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#1b7c83", "#bc4c00", "#6e7781",
    "#bf3989", "#57606a", "#4d2d00", "#0a3069", "#953800",
];
/// Dashes tell lines apart on paper without colours.
const DASHES: [&str; 4] = ["none", "6 3", "2 3", "9 3 2 3"];

/// A bar.
pub struct Bar {
    pub label: String,
    pub value: f64,
    /// What stands behind it.
    pub note: String,
    /// Whether it may be quoted.
    pub is_valid: bool,
}

/// A line.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What the points of lines stand over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Numbers whose every point is named.
    Logarithmic,
    /// Time.
    Linear,
}

/// A bar for each value.
pub fn bars(body: &mut String, caption: &str, bars: &[Bar]) {
    let most = bars
        .iter()
        .map(|bar| bar.value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = bars.len() * 20 + 10;
    let _ = write!(
        body,
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 800 {height}\">",
        escape(caption)
    );
    for (index, bar) in bars.iter().enumerate() {
        let (y, width) = (index * 20 + 4, bar.value / most * 400.0);
        let colour = if bar.is_valid { COLOURS[0] } else { "#b6d4fe" };
        let _ = write!(
            body,
            "<text x=0 y={} >{}</text><rect x=140 y={y} width={width:.1} height=15 fill=\"{colour}\"/>\
             <text x={:.1} y={}>{}  {}</text>",
            y + 12,
            escape(&bar.label),
            146.0 + width,
            y + 12,
            figure(Some(bar.value)),
            escape(&bar.note),
        );
    }
    body.push_str("</svg></figure>");
}

/// A line for each series.
pub fn lines(body: &mut String, caption: &str, axis: Axis, series: &[Line]) {
    let all = || series.iter().flat_map(|line| &line.points);
    let least = all().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let greatest = all().map(|point| point.0).fold(0.0, f64::max);
    if !least.is_finite() {
        return;
    }
    let most = all().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: f64| match axis {
        Axis::Logarithmic => value.max(1.0).ln(),
        Axis::Linear => value,
    };
    let span = (scale(greatest) - scale(least)).max(1e-9);
    let x = |value: f64| 60.0 + (scale(value) - scale(least)) / span * 540.0;
    let y = |value: f64| 220.0 - value / most * 200.0;
    let height = 250.max(30 + series.len() * 16);
    let _ = write!(
        body,
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 800 {height}\">\
         <path d=\"M60 20V220H610\" fill=none stroke=\"#6e7781\"/>\
         <text x=54 y=26 text-anchor=end>{}</text><text x=54 y=224 text-anchor=end>0</text>",
        escape(caption),
        figure(Some(most)),
    );
    for (at, name) in ticks(axis, (least, greatest), all().map(|point| point.0)) {
        let _ = write!(
            body,
            "<text x={:.0} y=238 text-anchor=middle>{name}</text>",
            x(at)
        );
    }
    for (index, line) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let dash = DASHES[index / 4 % DASHES.len()];
        let path: Vec<String> = line
            .points
            .iter()
            .map(|&(at, value)| format!("{:.1} {:.1}", x(at), y(value)))
            .collect();
        let _ = write!(
            body,
            "<path d=\"M{}\" fill=none stroke=\"{colour}\" stroke-width=2 stroke-dasharray=\"{dash}\"/>",
            path.join("L")
        );
        if axis == Axis::Logarithmic {
            for &(at, value) in &line.points {
                let _ = write!(
                    body,
                    "<circle cx={:.1} cy={:.1} r=3 fill=\"{colour}\"/>",
                    x(at),
                    y(value)
                );
            }
        }
        let row = 20 + index * 16;
        let _ = write!(
            body,
            "<path d=\"M622 {0}H638\" stroke=\"{colour}\" stroke-width=3 stroke-dasharray=\"{dash}\"/>\
             <text x=644 y={1}>{2}</text>",
            row + 5,
            row + 9,
            escape(&line.name)
        );
    }
    body.push_str("</svg></figure>");
}

/// Where an axis is named, and how.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and seconds"
)]
fn ticks(
    axis: Axis,
    (least, greatest): (f64, f64),
    points: impl Iterator<Item = f64>,
) -> Vec<(f64, String)> {
    match axis {
        Axis::Logarithmic => {
            let points: BTreeSet<u64> = points.map(|point| point as u64).collect();
            let named = |point: u64| {
                u32::try_from(point).map_or((0.0, String::new()), |point| {
                    (f64::from(point), point.to_string())
                })
            };
            points.into_iter().map(named).collect()
        }
        Axis::Linear => (0..=6)
            .map(|part| least + (greatest - least) * f64::from(part) / 6.0)
            .map(|at| (at, format!("{at:.0} s")))
            .collect(),
    }
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
