//! The picture of a plan, as SVG: per layer which node holds which expert, and when each node finishes.
//!
//! Columns are experts, those with most tokens first; a square is a replica, darker the more tokens it
//! gets. The bar beside a node is its predicted time over all steps: equal bars are what a placement is for.

use std::{cmp::Reverse, fmt::Write};

use domain::{CostCurve, Expert, Layer, NodeId, Plan};

use super::Cluster;

/// Light to dark.
const SHADES: [&str; 5] = ["#dce9f5", "#a9cce8", "#64a3d4", "#2b74b3", "#123e70"];
const BAR: &str = "#f0a04b";
const SLOWEST: &str = "#c8452f";
/// Width of a layer's squares, and of its bars.
const SQUARES: usize = 512;
const BARS: usize = 96;
const GAP: usize = 10;
const TEXT: usize = 14;

/// The sizes of a layer's panel.
#[derive(Clone, Copy, Debug)]
struct Panel {
    column: usize,
    row: usize,
    /// Left edge of the squares: room for the names of nodes.
    left: usize,
    experts: usize,
    nodes: usize,
}

/// Draws all layers, two beside each other.
pub(super) fn draw(cluster: &Cluster, plan: &Plan, headline: &str) -> String {
    let experts = usize::from(plan.experts());
    let longest = cluster.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let panel = Panel {
        column: (SQUARES / experts).clamp(2, 16),
        row: (160 / cluster.names.len()).clamp(4, 14),
        left: GAP + 7 * longest.min(16) + 4,
        experts,
        nodes: cluster.names.len(),
    };
    let layers = plan.moe_layers().len();
    let across = layers.min(2);
    let (width, height) =
        (across * panel.width(), TEXT * 3 + layers.div_ceil(across) * panel.height());
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' \
         font-family='sans-serif' font-size='11'>\n<rect width='100%' height='100%' fill='#fff'/>\n\
         <text x='{GAP}' y='{TEXT}' font-weight='bold'>{}</text>\n",
        escaped(headline)
    );
    for (at, &layer) in plan.moe_layers().iter().enumerate() {
        let (x, y) = (at % across * panel.width(), TEXT * 2 + at / across * panel.height());
        let _ = write!(svg, "<g transform='translate({x} {y})'>");
        panel.draw(&mut svg, cluster, plan, (at, layer));
        svg.push_str("</g>\n");
    }
    let _ = writeln!(
        svg,
        "<text x='{GAP}' y='{}' fill='#777'>Columns: experts, most tokens first, darker with more. \
         Bars: predicted time of each node, the slowest red.</text>",
        height - 6
    );
    svg + "</svg>\n"
}

// === impl Panel ===

impl Panel {
    fn width(self) -> usize {
        self.left + self.column * self.experts + GAP + BARS + GAP
    }

    fn height(self) -> usize {
        TEXT + self.row * self.nodes + GAP
    }

    fn draw(self, svg: &mut String, cluster: &Cluster, plan: &Plan, (at, layer): (usize, Layer)) {
        let totals = cluster.trace.totals(at);
        let mut order: Vec<usize> = (0..self.experts).collect();
        order.sort_by_key(|&expert| Reverse(totals[expert]));
        let hottest = totals.iter().copied().max().unwrap_or(0).max(1);
        let mut paths = [const { String::new() }; SHADES.len()];
        for (column, &expert) in order.iter().enumerate() {
            let nodes = plan.replicas(layer, Expert(u16::try_from(expert).unwrap_or(u16::MAX)));
            let tokens = totals[expert] / nodes.len().max(1) as u64;
            let shade = shade(tokens, hottest);
            for node in nodes {
                let (x, y) = (self.left + column * self.column, TEXT + node.0 as usize * self.row);
                let (wide, high) = (self.column - 1, self.row - 1);
                let _ = write!(paths[shade], "M{x} {y}h{wide}v{high}h-{wide}z");
            }
        }
        let _ = write!(svg, "<text x='{}' y='{}'>layer {}</text>", self.left, TEXT - 4, layer.0);
        let (x, high) = (self.left, self.row * self.nodes);
        let wide = self.column * self.experts;
        let _ =
            write!(svg, "<rect x='{x}' y='{TEXT}' width='{wide}' height='{high}' fill='#f5f5f3'/>");
        for (path, shade) in paths.iter().zip(SHADES).filter(|(path, _)| !path.is_empty()) {
            let _ = write!(svg, "<path d='{path}' fill='{shade}'/>");
        }
        self.bars(svg, cluster, &times(cluster, plan, (at, layer)));
    }

    fn bars(self, svg: &mut String, cluster: &Cluster, times: &[u64]) {
        let slowest = times.iter().copied().max().unwrap_or(0).max(1);
        let left = self.left + self.column * self.experts + GAP;
        for (node, &time) in times.iter().enumerate() {
            let y = TEXT + node * self.row;
            let colour = if time == slowest { SLOWEST } else { BAR };
            let wide = u128::from(time) * BARS as u128 / u128::from(slowest);
            let high = self.row - 1;
            let _ = write!(
                svg,
                "<rect x='{left}' y='{y}' width='{wide}' height='{high}' fill='{colour}'/>"
            );
            if self.row >= 9 {
                let name = escaped(&cluster.names[node].chars().take(16).collect::<String>());
                let base = y + self.row - 3;
                let _ = write!(
                    svg,
                    "<text x='{}' y='{base}' text-anchor='end'>{name}</text>",
                    self.left - 4
                );
            }
        }
    }
}

/// Predicted time of each node in one layer, over all steps.
fn times(cluster: &Cluster, plan: &Plan, (at, layer): (usize, Layer)) -> Vec<u64> {
    let hosts: Vec<NodeId> = cluster.hosts.iter().map(|host| host.id).collect();
    let ns = |node: usize, tokens: u32| {
        cluster.curves.get(node).map_or(u64::from(tokens), |curve: &CostCurve| curve.ns(tokens))
    };
    let mut times = vec![0; hosts.len()];
    for step in 0..cluster.trace.steps() {
        let mut tokens = vec![0_u32; hosts.len()];
        for (expert, &count) in (0..).zip(cluster.trace.counts(step, at)) {
            let nodes = plan.replicas(layer, Expert(expert));
            for node in nodes {
                tokens[node.0 as usize] += count.div_ceil(u32::try_from(nodes.len()).unwrap_or(1));
            }
        }
        for (node, time) in times.iter_mut().enumerate() {
            *time += ns(node, tokens[node]);
        }
    }
    times
}

/// Which shade a share of the hottest expert's tokens gets; the steps are finer where tokens are few.
fn shade(tokens: u64, hottest: u64) -> usize {
    let reaches = |part: u64| tokens.saturating_mul(100) >= hottest.saturating_mul(part);
    [4, 16, 36, 64].into_iter().filter(|&part| reaches(part)).count()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
