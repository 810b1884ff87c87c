//! An overview on a screen: figures of the last minutes, nodes, experts, decisions.

use proto::v1::{
    Overview,
    overview::{Decision, Node, Sample},
};
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, Widget, Wrap},
};

use super::{
    map::Map,
    words::{self, milliseconds, number, percent, span},
};

/// Lines of the head and of the sparklines.
const HEAD: u16 = 2;
const SPARKS: u16 = 4;
/// Lines that decisions get at least.
const DECISIONS: u16 = 8;
const NODE_WIDTHS: [Constraint; 7] = [
    Constraint::Min(14),
    Constraint::Length(18),
    Constraint::Length(6),
    Constraint::Length(24),
    Constraint::Length(18),
    Constraint::Length(16),
    Constraint::Length(7),
];

/// A figure's name, its last value, and what a line is drawn of.
type Panel = (&'static str, String, fn(&Sample) -> f64);

/// What is on the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen<'a> {
    overview: &'a Overview,
    /// Why there is no newer one.
    trouble: Option<&'a str>,
}

impl<'a> Screen<'a> {
    pub(super) fn new(overview: &'a Overview, trouble: Option<&'a str>) -> Self {
        Self { overview, trouble }
    }

    /// All of it as plain text.
    pub(super) fn text(self, width: u16) -> String {
        let nodes = u16::try_from(self.overview.nodes.len()).unwrap_or(u16::MAX);
        let wanted = HEAD + SPARKS + DECISIONS + 4;
        let height = wanted.saturating_add(nodes).saturating_add(Map(self.overview).height());
        let area = Rect::new(0, 0, width.max(80), height);
        let mut buffer = Buffer::empty(area);
        self.render(area, &mut buffer);
        let mut text = String::new();
        for y in 0..area.height {
            let line: String = (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
            text += line.trim_end();
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text + "\n"
    }

    fn head(self, area: Rect, buffer: &mut Buffer) {
        let overview = self.overview;
        if let Some(trouble) = self.trouble {
            let line = Line::from(vec!["amoe  ".bold(), trouble.red(), "; q ends".dim()]);
            Paragraph::new(line).wrap(Wrap { trim: true }).render(area, buffer);
            return;
        }
        let placement = overview.placement.clone().unwrap_or_default();
        let mut line = vec!["amoe  ".bold()];
        line.push(match placement.serving {
            0 => "no plan serves yet".yellow(),
            epoch => format!("plan {epoch} serves").green(),
        });
        if placement.target > 0 {
            let moves = format!(
                ", plan {} is prepared (+{} -{} replicas, waits for {})",
                placement.target,
                placement.adds,
                placement.removes,
                words::nodes(placement.waiting_for.len())
            );
            line.push(moves.yellow());
        }
        if placement.pinned {
            line.push(", pinned".yellow());
        }
        if let Some(model) = &overview.model {
            let (layers, experts, top_k) = (model.moe_layers.len(), model.experts, model.top_k);
            line.push(format!(" · {layers} MoE layers × {experts} experts, top {top_k}").into());
        }
        let uptime = span(overview.at.saturating_sub(overview.leads_since));
        line.push(format!(" · leads for {uptime}").dim());
        Paragraph::new(Line::from(line)).wrap(Wrap { trim: true }).render(area, buffer);
    }

    fn sparks(self, area: Rect, buffer: &mut Buffer) {
        let history = &self.overview.history;
        let last = history.last().copied().unwrap_or_default();
        let sequences =
            format!("{} + {}", number(last.running.into()), number(last.waiting.into()));
        let panels: [Panel; 5] = [
            ("tokens/s", number(last.tokens_per_s.into()), |s| s.tokens_per_s.into()),
            ("per token", milliseconds(last.next_token_ms.into()), |s| s.next_token_ms.into()),
            ("first token", milliseconds(last.first_token_ms.into()), |s| s.first_token_ms.into()),
            ("run + wait", sequences, |s| s.running.into()),
            ("queued pairs", number(last.pairs.into()), |s| s.pairs.into()),
        ];
        let areas = Layout::horizontal([Constraint::Fill(1); 5]).spacing(1).areas::<5>(area);
        for ((title, value, of), area) in panels.into_iter().zip(areas) {
            let title = Line::from(vec![format!("{title} ").dim(), value.bold()]);
            let block = Block::new().title(title);
            let inner = block.inner(area);
            block.render(area, buffer);
            let shown = history.len().saturating_sub(inner.width.into());
            // As many parts of the most as a bar has heights.
            let most = history.iter().map(of).fold(0.0, f64::max);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a part of a thousand"
            )]
            let heights = history[shown..].iter().map(|s| (1e3 * of(s) / most.max(1e-9)) as u64);
            let style = Style::new().fg(Color::Cyan);
            Sparkline::default().data(heights).max(1_000).style(style).render(inner, buffer);
        }
    }

    fn nodes(self, area: Rect, buffer: &mut Buffer) {
        let mut nodes: Vec<_> = self.overview.nodes.iter().collect();
        let rank = |node: &Node| ["gateway", "attention"].iter().position(|r| *r == node.role);
        nodes.sort_by_key(|node| (rank(node).unwrap_or(2), node.name.len(), &node.name));
        let hidden = nodes.len().saturating_sub(area.height.saturating_sub(1).into());
        let heads = ["node", "state", "busy", "work", "holds", "waits", "slower"];
        let shown = nodes.len() - hidden;
        let rows = nodes[..shown].iter().map(|node| row(node, self.overview.at));
        let title = if hidden > 0 { format!("node ({hidden} more)") } else { heads[0].to_owned() };
        let heads = std::iter::once(title).chain(heads[1..].iter().map(ToString::to_string));
        let header = Row::new(heads.map(Cell::from)).style(Style::new().dim());
        Widget::render(Table::new(rows, NODE_WIDTHS).header(header), area, buffer);
    }

    fn decisions(self, area: Rect, buffer: &mut Buffer) {
        let overview = self.overview;
        let routing = overview.routing.clone().unwrap_or_default();
        let placement = overview.placement.clone().unwrap_or_default();
        let ago = |at: u64| span(overview.at.saturating_sub(at));
        let mut lines = Vec::new();
        if routing.leases > 0 {
            let text = format!(
                "{} leases, the last {} ago, of {} experts; {}",
                routing.leases,
                ago(routing.leased_at),
                routing.changed,
                routing.why
            );
            lines.push(Line::from(vec!["routing    ".dim(), text.into()]));
        }
        if !placement.review.is_empty() {
            let text = format!("{}, {} ago", placement.review, ago(placement.reviewed_at));
            lines.push(Line::from(vec!["placement  ".dim(), text.into()]));
        }
        lines.extend(overview.decisions.iter().map(|decision| sentence(decision, overview.at)));
        Paragraph::new(lines).render(area, buffer);
    }
}

impl Widget for Screen<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let nodes = u16::try_from(self.overview.nodes.len()).unwrap_or(u16::MAX).saturating_add(1);
        let [head, sparks, nodes, map, decisions] = Layout::vertical([
            Constraint::Length(HEAD),
            Constraint::Length(SPARKS),
            Constraint::Length(nodes.min(area.height / 2).saturating_add(1)),
            Constraint::Length(Map(self.overview).height().saturating_add(1)),
            Constraint::Min(DECISIONS),
        ])
        .areas(area);
        self.head(head, buffer);
        self.sparks(sparks, buffer);
        let below = |area: Rect| Rect { height: area.height.saturating_sub(1), ..area };
        self.nodes(below(nodes), buffer);
        Map(self.overview).render(below(map), buffer);
        self.decisions(decisions, buffer);
    }
}

fn row(node: &Node, now: u64) -> Row<'_> {
    let since = span(now.saturating_sub(node.since));
    let color = match &*node.state {
        "ready" => Color::Green,
        "silent" => Color::Red,
        _ => Color::Yellow,
    };
    let state = Line::from(vec![Span::styled(&*node.state, color), format!(" {since}").dim()]);
    let waits: u64 = node.queued.iter().copied().map(u64::from).sum();
    let busy = percent(node.busy.into());
    let [work, holds, waits, slower] = match &*node.role {
        "attention" => {
            let used = node.kv_blocks.saturating_sub(node.kv_blocks_free);
            let used = percent(f64::from(used) / f64::from(node.kv_blocks.max(1)));
            let (tokens, rows) =
                (number(node.tokens_per_s.into()), number(node.rows_per_run.into()));
            [
                format!("{tokens} tokens/s, {rows}/run"),
                format!("{} seqs, KV {used}", node.running),
                format!("{} rows, {} seqs", number(waits as f64), node.waiting),
                String::new(),
            ]
        }
        "expert" => [
            format!(
                "{} pairs/s, {}/run",
                number(node.rows_per_s.into()),
                number(node.rows_per_run.into())
            ),
            format!("runs {} of {}", node.leased, node.serving_replicas),
            format!("{} pairs", number(waits as f64)),
            format!("{:.2}×", node.slowdown),
        ],
        _ => return Row::new([Cell::from(&*node.name), Cell::from(state)]),
    };
    let slow = if node.slowdown >= 1.5 { Style::new().fg(Color::Yellow) } else { Style::new() };
    Row::new([
        Cell::from(&*node.name),
        Cell::from(state),
        Cell::from(busy),
        Cell::from(work),
        Cell::from(holds),
        Cell::from(waits),
        Cell::from(slower).style(slow),
    ])
}

fn sentence(decision: &Decision, now: u64) -> Line<'_> {
    let color = match &*decision.level {
        "info" => Color::Reset,
        "warning" => Color::Yellow,
        _ => Color::Red,
    };
    let ago = format!("{:>9}  ", span(now.saturating_sub(decision.at)));
    let why = if decision.why.is_empty() { String::new() } else { format!(": {}", decision.why) };
    Line::from(vec![ago.dim(), Span::styled(&*decision.what, color), why.dim()])
}

#[cfg(test)]
mod tests;
