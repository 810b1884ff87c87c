//! Small pictures of a scenario's runs, as SVG: throughput and latency against load, and what devices did when.

use std::fmt::Write as _;

use crate::{
    meter::{Kind, Stretch},
    results::Measured,
};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 52.0;
const COLOURS: [&str; 8] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"];

/// Stretches that one timeline shows per device.
const STRETCHES_MAX: usize = 60;
const ROW: f64 = 14.0;

/// One line of a chart.
#[derive(Debug)]
struct Series<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// Throughput and mean inter-token latency against the load, a line for every run that was swept.
pub(crate) fn load(runs: &[Measured]) -> Option<String> {
    let mut names: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
    names.dedup();
    let series = |read: fn(&Measured) -> f64| -> Vec<Series<'_>> {
        let points = |name: &&str| Series {
            name: runs.iter().find(|run| run.id == **name).map_or("", |run| run.id.as_str()),
            points: runs
                .iter()
                .filter(|run| run.id == **name)
                .map(|run| (run.outcome.offered, read(run)))
                .collect(),
        };
        names.iter().map(points).filter(|series| series.points.len() > 1).collect()
    };
    let throughput = series(|run| run.outcome.throughput);
    if throughput.is_empty() {
        return None;
    }
    let latency = series(|run| run.outcome.itl_ms.mean);
    let mut svg = open(2.0 * WIDTH, HEIGHT);
    chart(&mut svg, 0.0, ("offered tokens/s", "tokens/s"), &throughput);
    chart(&mut svg, WIDTH, ("offered tokens/s", "mean inter-token latency, ms"), &latency);
    svg.push_str("</svg>\n");
    Some(svg)
}

fn chart(svg: &mut String, left: f64, (x, y): (&str, &str), series: &[Series<'_>]) {
    let all = || series.iter().flat_map(|series| &series.points);
    let right = all().map(|point| point.0).fold(1e-9, f64::max);
    let top = all().map(|point| point.1).fold(1e-9, f64::max);
    let (width, height) = (WIDTH - 1.5 * MARGIN, HEIGHT - 1.6 * MARGIN);
    let at = |point: &(f64, f64)| {
        (left + MARGIN + width * point.0 / right, MARGIN / 2.0 + height * (1.0 - point.1 / top))
    };
    let (floor, end) = (MARGIN / 2.0 + height, left + MARGIN + width);
    let begin = left + MARGIN;
    let _ = write!(
        svg,
        "<path d='M{begin:.1} {:.1}V{floor:.1}H{end:.1}' fill='none' stroke='#444'/>\
         <text x='{begin:.1}' y='{:.1}'>0</text><text x='{end:.1}' y='{:.1}' text-anchor='end'>{} {x}</text>\
         <text x='{begin:.1}' y='14'>{} {y}</text>",
        MARGIN / 2.0,
        floor + 14.0,
        floor + 14.0,
        figure(right),
        figure(top),
    );
    for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> =
            series.points.iter().map(at).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = write!(svg, "<path d='M{}' fill='none' stroke='{colour}'/>", path.join("L"));
        for (x, y) in series.points.iter().map(at) {
            let _ = write!(svg, "<circle cx='{x:.1}' cy='{y:.1}' r='2.5' fill='{colour}'/>");
        }
    }
    for ((series, colour), line) in series.iter().zip(COLOURS.iter().cycle()).zip(0_u8..) {
        let y = floor + 14.0 + 13.0 * (1.0 + f64::from(line % 3));
        let x = begin + WIDTH / 3.2 * f64::from(line / 3);
        let _ = write!(
            svg,
            "<text x='{x:.1}' y='{y:.1}' fill='{colour}'>{}</text>",
            escaped(series.name)
        );
    }
}

/// What every device did at the begin of the window: attention in blue, experts in orange, darker for
/// later layers, blank for standing still.
pub(crate) fn timeline(run: &Measured, stretches: &[Stretch]) -> Option<String> {
    let devices = stretches.iter().map(|stretch| stretch.device + 1).max()?;
    let begin = stretches.iter().map(|stretch| stretch.begin_ns).min()?;
    // As long as the device with the most short runs can be drawn.
    let end = (0..devices)
        .filter_map(|device| {
            let ends = stretches.iter().filter(|stretch| stretch.device == device);
            ends.map(|stretch| stretch.end_ns).take(STRETCHES_MAX).last()
        })
        .min()?
        .max(begin + 1);
    let layers = stretches.iter().map(|stretch| stretch.layer + 1).max()?;
    #[expect(clippy::cast_precision_loss, reason = "pixels")]
    let float = |number: usize| number as f64;
    #[expect(clippy::cast_precision_loss, reason = "pixels")]
    let x = |ns: u64| {
        MARGIN + (2.0 * WIDTH - 1.5 * MARGIN) * (ns - begin) as f64 / (end - begin) as f64
    };
    let mut svg = open(2.0 * WIDTH, ROW * (float(devices) + 3.0));
    #[expect(clippy::cast_precision_loss, reason = "a label")]
    let span_ms = (end - begin) as f64 / 1e6;
    let _ = write!(
        svg,
        "<text x='{MARGIN}' y='{ROW}'>{}: {} ms, attention blue, experts orange, later layers darker</text>",
        escaped(&run.name()),
        figure(span_ms)
    );
    for device in 0..devices {
        let y = ROW * (float(device) + 2.0) + 10.0;
        let _ = write!(svg, "<text x='4' y='{y:.1}'>{device}</text>");
    }
    for stretch in stretches.iter().filter(|stretch| stretch.begin_ns < end) {
        let (from, to) = (x(stretch.begin_ns), x(stretch.end_ns.min(end)));
        let hue = if stretch.kind == Kind::Attention { 210 } else { 28 };
        let light = 75.0 - 45.0 * float(stretch.layer) / float(layers);
        let _ = write!(
            svg,
            "<rect x='{from:.1}' y='{:.1}' width='{:.1}' height='{:.1}' fill='hsl({hue},70%,{light:.0}%)'/>",
            ROW * (float(stretch.device) + 2.0),
            (to - from).max(0.3),
            ROW - 2.0,
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
         font-family='sans-serif' font-size='11'><rect width='100%' height='100%' fill='white'/>"
    )
}

/// Three figures.
fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
