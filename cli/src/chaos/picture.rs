//! The picture of a run, as SVG: tokens per second over time, and when which fault struck.

use std::fmt::Write as _;

use super::effect::{Effect, Mark, Throughput};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const FLOOR: f64 = 214.0;
/// Who is hit, and its colour.
const COLOURS: [(&str, &str); 5] = [
    ("expert", "#d62728"),
    ("attention", "#ff7f0e"),
    ("gateway", "#2ca02c"),
    ("coordinator", "#9467bd"),
    ("etcd", "#7f7f7f"),
];

/// Draws a run.
pub(super) fn draw(throughput: &Throughput, effects: &[Effect]) -> String {
    let points: Vec<(f64, f64)> = throughput.seconds().collect();
    let most = points.iter().map(|point| point.1).fold(1.0, f64::max);
    let end = points.last().map_or(1.0, |point| point.0 + 1.0);
    let x = |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * seconds / end;
    let y = |tokens: f64| FLOOR - (FLOOR - TOP) * tokens / most;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' \
         viewBox='0 0 {WIDTH} {HEIGHT}' font-family='sans-serif' font-size='11'>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='{LEFT}' y='14' font-weight='bold'>Tokens per second; a line where a fault struck, shaded until \
         everybody was ready again</text>\n"
    );
    for effect in effects {
        let (from, to) = (x(effect.mark.struck.as_secs_f64()), x(effect.mark.whole.as_secs_f64()));
        let colour = colour(&effect.mark);
        let _ = writeln!(
            svg,
            "<g fill='{colour}'><title>{}: {}</title>\
             <rect x='{from:.1}' y='{TOP}' width='{:.1}' height='{:.1}' opacity='0.15'/>\
             <rect x='{from:.1}' y='{TOP}' width='1.2' height='{:.1}'/></g>",
            effect.mark.cause.sentence(),
            effect.mark.whom,
            (to - from).max(0.5),
            FLOOR - TOP,
            FLOOR - TOP,
        );
    }
    let line: Vec<String> =
        points.iter().map(|&(at, tokens)| format!("{:.1} {:.1}", x(at + 0.5), y(tokens))).collect();
    let _ = writeln!(
        svg,
        "<path d='M{}' fill='none' stroke='#1f4e9c' stroke-width='1.2'/>\n\
         <path d='M{LEFT} {TOP}V{FLOOR}H{:.1}' fill='none' stroke='#444'/>\n\
         <text x='{:.1}' y='{TOP}' text-anchor='end'>{most:.0}</text>\
         <text x='{:.1}' y='{FLOOR}' text-anchor='end'>0</text>\
         <text x='{:.1}' y='{:.1}' text-anchor='end'>{end:.0} s</text>",
        line.join("L"),
        WIDTH - RIGHT,
        LEFT - 4.0,
        LEFT - 4.0,
        WIDTH - RIGHT,
        FLOOR + 15.0,
    );
    for ((role, colour), place) in COLOURS.iter().zip(0_u8..) {
        let left = LEFT + 110.0 * f64::from(place);
        let _ = writeln!(
            svg,
            "<rect x='{left:.1}' y='{:.1}' width='10' height='10' fill='{colour}'/>\
             <text x='{:.1}' y='{:.1}'>{role}</text>",
            FLOOR + 26.0,
            left + 14.0,
            FLOOR + 35.0,
        );
    }
    svg + "</svg>\n"
}

fn colour(mark: &Mark) -> &'static str {
    let known = COLOURS.iter().find(|(role, _)| mark.whom.starts_with(role));
    known.map_or("#444", |(_, colour)| colour)
}
