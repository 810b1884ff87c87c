//! The cluster at one moment, as [`wire::Overview`]: what the page, `amoe top` and scripts show is made from it.

use std::{collections::BTreeMap, time::Duration};

use domain::{Health, Leased, Member, NodeId, Plan, Role};
use policy::placement::adoption::Readiness;
use proto::v1::{self as wire, overview as part};

use super::{
    journal::{About, Entry, Level, legible},
    live::{Doing, Link, Sample},
};
use crate::{
    admin::{count, moves, summary},
    cluster::Cluster,
};

/// Moves that are told in full; of all others there is a count.
const MOVES_MAX: usize = 64;
/// Plans that are told of.
const PLANS_MAX: usize = 12;

/// The cluster at `now`.
pub(crate) fn overview(cluster: &Cluster, now: Duration) -> wire::Overview {
    let live = cluster.live();
    wire::Overview {
        at: cluster.clock(now),
        leads_since: cluster.clock(Duration::ZERO),
        report_ms: cluster.report_ms(),
        model: model(cluster),
        nodes: nodes(cluster, now),
        links: live.links(now).map(link).collect(),
        layers: layers(cluster, now),
        history: live.history().map(sample).collect(),
        placement: Some(placement(cluster)),
        routing: Some(routing(cluster)),
        decisions: cluster.journal().entries().map(decision).collect(),
    }
}

fn model(cluster: &Cluster) -> Option<part::Model> {
    let model = cluster.registry().model()?;
    let shape = &model.shape;
    Some(part::Model {
        fingerprint: model.fingerprint.clone(),
        layers: shape.layers.into(),
        moe_layers: shape.moe_layers.iter().map(|layer| layer.0.into()).collect(),
        experts: shape.experts.into(),
        top_k: shape.top_k.into(),
        expert_bytes: shape.expert_bytes,
    })
}

// === nodes and links ===

fn nodes(cluster: &Cluster, now: Duration) -> Vec<part::Node> {
    let (plans, leases) = (cluster.plans(), cluster.leases());
    let serving = replicas(plans.serving().map(|plan| &**plan));
    let target = replicas(plans.target().map(|plan| &**plan));
    let seats = cluster.registry().observed();
    let seats: BTreeMap<_, _> = seats.into_iter().map(|node| (node.id, node)).collect();
    let node = |member: Member| {
        let (id, seen) = (member.id, cluster.observations());
        let (since, silent) = cluster.registry().standing(now, id).unwrap_or((now, false));
        let Doing { busy, rows_per_s, rows_per_run, tokens_per_s } = cluster.live().doing(now, id);
        let expert = member.role == Role::Expert;
        part::Node {
            id: id.0,
            role: role(member.role).to_owned(),
            state: if silent { "silent" } else { state(member.health) }.to_owned(),
            since: cluster.clock(since),
            epoch_ready: seats.get(&id).map_or(0, |node| node.epoch_ready.0),
            running: member.load.running,
            waiting: member.load.waiting,
            kv_blocks: member.load.kv_blocks,
            kv_blocks_free: member.load.kv_blocks_free,
            queued: seen.queued(now, id).to_vec(),
            busy: rounded(busy, 1e3),
            rows_per_s: rounded(rows_per_s, 10.0),
            rows_per_run: rounded(rows_per_run, 10.0),
            tokens_per_s: rounded(tokens_per_s, 10.0),
            slots: seats.get(&id).map_or(0, |node| node.slots),
            serving_replicas: serving.get(&id).copied().unwrap_or(0),
            target_replicas: target.get(&id).copied().unwrap_or(0),
            leased: leases.get(&id).copied().unwrap_or(0),
            slowdown: if expert { rounded(seen.slowdown(now, id), 100.0) } else { 1.0 },
            name: member.name,
            address: member.address,
        }
    };
    cluster.registry().snapshot().into_iter().map(node).collect()
}

fn replicas(plan: Option<&Plan>) -> BTreeMap<NodeId, u32> {
    let mut replicas = BTreeMap::new();
    for &node in plan.into_iter().flat_map(Plan::table).flatten() {
        *replicas.entry(node).or_default() += 1;
    }
    replicas
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Attention => "attention",
        Role::Expert => "expert",
        Role::Gateway => "gateway",
    }
}

fn state(health: Health) -> &'static str {
    match health {
        Health::Joining => "joining",
        Health::Ready => "ready",
        Health::Draining => "draining",
    }
}

fn link(link: Link) -> part::Link {
    part::Link {
        attention: link.attention.0,
        expert: link.expert.0,
        answers_per_s: rounded(link.answers_per_s, 10.0),
        answer_ms: rounded(link.answer_ms, 100.0),
    }
}

fn sample(sample: &Sample) -> part::Sample {
    part::Sample {
        at: sample.at,
        tokens_per_s: rounded(sample.tokens_per_s, 10.0),
        first_token_ms: rounded(sample.first_token_ms, 100.0),
        next_token_ms: rounded(sample.next_token_ms, 100.0),
        running: sample.totals.running,
        waiting: sample.totals.waiting,
        rows: sample.totals.rows,
        pairs: sample.totals.pairs,
    }
}

// === experts ===

/// The serving plan's layers, with what every expert is asked for.
fn layers(cluster: &Cluster, now: Duration) -> Vec<part::Layer> {
    let Some(plan) = cluster.plans().serving() else { return Vec::new() };
    let lease = cluster.guide().lease().filter(|lease| lease.epoch == plan.epoch());
    let mut rates = cluster.live().experts_per_s(now);
    let mut experts = plan.table().enumerate().map(|(slot, holders)| part::Expert {
        nodes: holders.iter().map(|node| node.0).collect(),
        percent: parts(holders, lease.map(|lease| &**lease), slot),
        tokens_per_s: rounded(rates.next().unwrap_or(0.0), 10.0),
    });
    let layer = |&layer: &domain::Layer| part::Layer {
        layer: layer.0.into(),
        experts: experts.by_ref().take(plan.experts().into()).collect(),
    };
    plan.moe_layers().iter().map(layer).collect()
}

/// Of each of several holders, the part that it is to run; without a lease that is all for the first.
fn parts(holders: &[NodeId], lease: Option<&Leased>, slot: usize) -> Vec<u32> {
    if holders.len() < 2 {
        return Vec::new();
    }
    let leased = lease.and_then(|lease| lease.holders.get(slot)).map_or(&[][..], Vec::as_slice);
    let all: u64 = leased.iter().map(|holder| u64::from(holder.part)).sum();
    let part = |(nth, node): (usize, &NodeId)| {
        let leased = leased.iter().find(|holder| holder.node == *node);
        match all {
            0 => {
                if nth == 0 {
                    100
                } else {
                    0
                }
            }
            all => leased.map_or(0, |holder| (100 * u64::from(holder.part) + all / 2) / all),
        }
    };
    let part = holders.iter().enumerate().map(part);
    part.map(|percent| u32::try_from(percent).unwrap_or(100)).collect()
}

// === decisions ===

fn placement(cluster: &Cluster) -> part::Placement {
    let plans = cluster.plans();
    let epoch = |plan: Option<&std::sync::Arc<Plan>>| plan.map_or(0, |plan| plan.epoch().0);
    let waiting = match cluster.waiting_for() {
        Readiness::Ready => Vec::new(),
        Readiness::Waiting(nodes) => nodes,
    };
    let moves = match (plans.serving(), plans.target()) {
        (Some(from), Some(to)) => moves(from, to),
        _ => Vec::new(),
    };
    let (reviewed_at, review) = cluster.journal().review();
    part::Placement {
        policy: plans.intent().policy.to_string(),
        pinned: plans.is_pinned(),
        serving: epoch(plans.serving()),
        target: epoch(plans.target()),
        waiting_for: waiting.iter().map(|node| node.0).collect(),
        adds: count(moves.iter().map(|change| change.added.len()).sum()),
        removes: count(moves.iter().map(|change| change.removed.len()).sum()),
        moves: moves.into_iter().take(MOVES_MAX).collect(),
        plans: plans
            .history()
            .iter()
            .rev()
            .take(PLANS_MAX)
            .map(|made| plan(cluster, made))
            .collect(),
        review: review.to_owned(),
        reviewed_at,
    }
}

fn plan(cluster: &Cluster, made: &crate::reconcile::Made) -> wire::PlanSummary {
    let summary = summary(cluster, made);
    let reason = legible(&summary.reason, &|id| cluster.registry().called(id));
    wire::PlanSummary { reason, ..summary }
}

fn routing(cluster: &Cluster) -> part::Routing {
    let leases = cluster.journal().leases();
    part::Routing {
        policy: cluster.guide().policy().to_string(),
        leases: leases.count,
        leased_at: leases.at,
        changed: count(leases.changed),
        shared: count(leases.shared),
        why: leases.why.clone(),
    }
}

fn decision(entry: &Entry) -> part::Decision {
    part::Decision {
        at: entry.at,
        about: match entry.about {
            About::Plan => "plan",
            About::Node => "node",
        }
        .to_owned(),
        level: match entry.level {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
        .to_owned(),
        what: entry.what.clone(),
        why: entry.why.clone(),
    }
}

/// A figure to the nearest of `parts` parts, so that it is short as JSON.
fn rounded(figure: f64, parts: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "figures are read by people")]
    {
        ((figure * parts).round() / parts) as f32
    }
}
