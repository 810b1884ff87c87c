//! The coordinator's answers as tables for people, and plans as JSON.

use std::fmt::Write;

use anyhow::{Context, Result};
use proto::v1::{
    DiffPlansResponse, ExpertNode, ExpertReplicas, LayerTable, PlanSummary, PlanTable,
    ShowPlanResponse,
};
use serde::{Deserialize, Serialize};

/// A plan as it is exported and imported.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Not looked at on import.
    #[serde(default)]
    pub(crate) epoch: u64,
    pub(crate) layers: Vec<Layer>,
}

/// One layer of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layer {
    pub(crate) layer: u32,
    /// Per expert, the names of the nodes that hold it.
    pub(crate) experts: Vec<Vec<String>>,
}

/// The state of the cluster's plans.
pub(super) fn show(shown: &ShowPlanResponse) -> String {
    let mut text = match shown.serving_epoch {
        0 => "no plan serves yet\n".to_owned(),
        epoch => format!("plan {epoch} serves\n"),
    };
    if shown.target_epoch > 0 {
        let waiting = match &shown.waiting_for[..] {
            [] => "nobody".to_owned(),
            nodes => nodes.join(", "),
        };
        line(
            &mut text,
            format_args!("plan {} is prepared, waiting for {waiting}", shown.target_epoch),
        );
    }
    let pinned = if shown.pinned { ", pinned" } else { "" };
    line(&mut text, format_args!("placement {}{pinned}, routing {}", shown.policy, shown.routing));
    line(&mut text, format_args!("{} MoE layers of {} experts", shown.moe_layers, shown.experts));
    let mut rows =
        vec![["node", "slots", "holds", "will hold", "runs", "slowdown"].map(String::from)];
    rows.extend(shown.nodes.iter().map(|node| {
        let target =
            if shown.target_epoch > 0 { node.target_replicas } else { node.serving_replicas };
        [
            node.name.clone(),
            node.slots.to_string(),
            node.serving_replicas.to_string(),
            target.to_string(),
            node.leased.to_string(),
            format!("{:.2}", node.slowdown),
        ]
    }));
    text + &align(&rows)
}

/// Plans, newest first.
pub(super) fn history(plans: &[PlanSummary]) -> String {
    let mut rows =
        vec![["plan", "of", "state", "replicas", "loaded", "made", "why"].map(String::from)];
    rows.extend(plans.iter().map(|plan| {
        [
            plan.epoch.to_string(),
            plan.parent.to_string(),
            plan.state.clone(),
            plan.replicas.to_string(),
            plan.loaded.to_string(),
            time(plan.made_at),
            plan.reason.clone(),
        ]
    }));
    align(&rows)
}

/// What moves.
pub(super) fn diff(diff: &DiffPlansResponse, nodes: &[ExpertNode]) -> String {
    let (from, to, moved) = (diff.from, diff.to, diff.moves.len());
    let mut text = format!("plan {from} → plan {to}: experts with other replicas: {moved}\n");
    let name = |id: &u32| {
        let node = nodes.iter().find(|node| node.id == *id);
        node.map_or_else(|| format!("n{id}"), |node| node.name.clone())
    };
    for change in &diff.moves {
        let added = change.added.iter().map(|id| format!(" +{}", name(id)));
        let removed = change.removed.iter().map(|id| format!(" -{}", name(id)));
        let nodes: String = added.chain(removed).collect();
        line(&mut text, format_args!("layer {}, expert {}:{nodes}", change.layer, change.expert));
    }
    text
}

/// A plan as JSON, a layer a line.
pub(super) fn json(plan: PlanTable) -> Result<String> {
    let layers = plan.layers.into_iter().map(|table| {
        let experts = table.experts.into_iter().map(|expert| expert.nodes).collect();
        serde_json::to_string(&Layer { layer: table.layer, experts })
    });
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    Ok(format!("{{\"epoch\":{},\"layers\":[\n{}\n]}}\n", plan.epoch, layers.join(",\n")))
}

/// Reads what [`json`] wrote, or somebody who knows the form.
pub(super) fn parse(text: &str) -> Result<PlanTable> {
    let plan: Plan = serde_json::from_str(text).context(
        "it is no plan, expected {\"layers\":[{\"layer\":0,\"experts\":[[\"node\", …], …]}, …]}",
    )?;
    let experts = |experts: Vec<Vec<String>>| {
        experts.into_iter().map(|nodes| ExpertReplicas { nodes }).collect()
    };
    let layers = plan.layers.into_iter();
    let layers = layers
        .map(|Layer { layer, experts: holders }| LayerTable { layer, experts: experts(holders) });
    Ok(PlanTable { epoch: plan.epoch, layers: layers.collect() })
}

/// Columns side by side; the last one is as wide as it likes.
fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            let gap = if column + 1 == N { 0 } else { 2 + width - cell.chars().count() };
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', gap));
        }
        text.push('\n');
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Seconds since 1970 as a date and time of day, in UTC.
fn time(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the Gregorian calendar, so many days after 1970 began.
fn date(days: u64) -> (u64, u64, u64) {
    // Years that begin in March end with their leap day.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_come_back_from_json_as_they_were() {
        let nodes = |names: &[&str]| ExpertReplicas {
            nodes: names.iter().map(ToString::to_string).collect(),
        };
        let plan = PlanTable {
            epoch: 7,
            layers: vec![
                LayerTable { layer: 1, experts: vec![nodes(&["a"]), nodes(&["a", "b"])] },
                LayerTable { layer: 3, experts: vec![nodes(&[]), nodes(&["b"])] },
            ],
        };
        assert_eq!(parse(&json(plan.clone()).unwrap()).unwrap(), plan);
        let error = format!("{:#}", parse("{\"layer\":[]}").unwrap_err());
        assert!(error.starts_with("it is no plan, expected {\"layers\":"), "{error}");
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_767_225_599), "2025-12-31T23:59:59Z");
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(String::from));
        assert_eq!(align(&rows), "a    bb\nccc  d\n");
    }
}
