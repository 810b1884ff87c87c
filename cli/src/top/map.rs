//! Experts by layer: a letter for the load of each, and beside it what waits for the layer.

use std::collections::BTreeMap;

use proto::v1::{Overview, overview::Layer};
use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Style},
    widgets::Widget,
};

use super::words::number;

/// From nothing to the most.
const SHADES: [&str; 6] = ["·", "▁", "░", "▒", "▓", "█"];
/// The same on terminals with colours.
const COLORS: [u8; 6] = [238, 24, 31, 37, 150, 222];
/// Room for "layer 61 ".
const LABEL: u16 = 10;
/// Room for what stands to the right of the map.
const FIGURES: u16 = 26;

/// The map of an overview, as large as it is given room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map<'a>(pub(super) &'a Overview);

impl Map<'_> {
    /// Lines it wants: one per layer, and its head.
    pub(super) fn height(self) -> u16 {
        u16::try_from(self.0.layers.len()).unwrap_or(u16::MAX).saturating_add(1)
    }
}

impl Widget for Map<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Self(overview) = self;
        let (Some(first), Some(room)) =
            (overview.layers.first(), area.width.checked_sub(LABEL + FIGURES))
        else {
            let none = "no plan serves yet";
            buffer.set_stringn(area.x, area.y, none, area.width.into(), Style::new().dim());
            return;
        };
        let columns = room.min(u16::try_from(first.experts.len()).unwrap_or(u16::MAX));
        let rows = usize::from(area.height.saturating_sub(1)).min(overview.layers.len());
        let right = area.x + LABEL + columns + 1;
        let heads = format!("{:>8} {:>8} {:>7}", "rows", "pairs", "uneven");
        buffer.set_string(right, area.y, heads, Style::new().dim());
        let experts = format!("load of experts 0–{}", first.experts.len().saturating_sub(1));
        buffer.set_stringn(area.x + LABEL, area.y, experts, columns.into(), Style::new().dim());
        let most = overview.layers.iter().flat_map(|layer| &layer.experts);
        let most = most.map(|expert| expert.tokens_per_s).fold(0.0, f32::max);
        for (row, y) in (0..rows).zip(area.y + 1..) {
            let layers = part(&overview.layers, row, rows);
            label(layers, area.x, y, buffer);
            for (column, x) in (0..usize::from(columns)).zip(area.x + LABEL..) {
                let load =
                    layers.iter().flat_map(|layer| part(&layer.experts, column, columns.into()));
                let load = load.map(|expert| expert.tokens_per_s).fold(0.0, f32::max);
                let shade = shade(load, most);
                let style = Style::new().fg(Color::Indexed(COLORS[shade]));
                buffer.set_string(x, y, SHADES[shade], style);
            }
            let (rows, pairs) = waiting(overview, layers);
            let uneven = layers.iter().map(uneven).fold(0.0, f64::max);
            let uneven = if uneven > 0.0 { format!("{uneven:.2}×") } else { "–".to_owned() };
            let figures = format!("{:>8} {:>8} {uneven:>7}", number(rows), number(pairs));
            buffer.set_string(right, y, figures, Style::new());
        }
    }
}

fn label(layers: &[Layer], x: u16, y: u16, buffer: &mut Buffer) {
    let label = match layers {
        [] => return,
        [one] => format!("layer {}", one.layer),
        [first, .., last] => format!("{}–{}", first.layer, last.layer),
    };
    buffer.set_stringn(x, y, format!("{label:>8}"), LABEL.into(), Style::new().dim());
}

/// The elements of `all` that fall on the `nth` of so many `parts`, at least one.
fn part<T>(all: &[T], nth: usize, parts: usize) -> &[T] {
    &all[nth * all.len() / parts..((nth + 1) * all.len() / parts).max(nth * all.len() / parts + 1)]
}

fn shade(load: f32, most: f32) -> usize {
    if load <= 0.0 || most <= 0.0 {
        return 0;
    }
    let part = (load / most).sqrt();
    // From 1, because it is asked for at all.
    [0.2, 0.4, 0.6, 0.8].iter().filter(|&&bound| part > bound).count() + 1
}

/// Rows and pairs that wait for these layers, over all nodes.
fn waiting(overview: &Overview, layers: &[Layer]) -> (f64, f64) {
    let of = |role: &str| -> f64 {
        let nodes = overview.nodes.iter().filter(|node| node.role == role);
        let queues = nodes.flat_map(|node| {
            layers.iter().filter_map(|layer| node.queued.get(layer.layer as usize))
        });
        queues.copied().map(f64::from).sum()
    };
    (of("attention"), of("expert"))
}

/// How much more the busiest node is to run of a layer than the mean one of those that hold a part of it.
fn uneven(layer: &Layer) -> f64 {
    let mut loads: BTreeMap<u32, f64> = BTreeMap::new();
    for expert in &layer.experts {
        for (nth, &node) in expert.nodes.iter().enumerate() {
            let percent = expert.percent.get(nth).copied().unwrap_or(100);
            let load = f64::from(expert.tokens_per_s) * f64::from(percent) / 100.0;
            *loads.entry(node).or_default() += load;
        }
    }
    let all: f64 = loads.values().sum();
    let most = loads.values().copied().fold(0.0, f64::max);
    if all > 0.0 { most * loads.len() as f64 / all } else { 0.0 }
}
