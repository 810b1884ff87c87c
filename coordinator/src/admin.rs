//! The gRPC face for operators: shows, compares, exports and imports plans, and asks for new ones.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::{Epoch, Expert, Layer, ModelShape, NodeId, Plan, Replicas, Role};
use futures::{Stream, stream, stream::BoxStream, stream::StreamExt};
use policy::placement::adoption::{Observed, Readiness};
use proto::v1::{self as wire, admin_server::Admin};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{Request, Response, Status};

use crate::{
    ask::{change, look},
    cluster::{Cluster, Effect},
    console::{Console, EVERY},
    reconcile::{Made, Step},
    service::{Message, Standing},
};

/// A new plan that is not stored by then is not stored soon.
const STORED_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The service; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct AdminService {
    standing: watch::Receiver<Standing>,
    console: Console,
}

impl AdminService {
    pub(crate) fn new(standing: watch::Receiver<Standing>, console: Console) -> Self {
        Self { standing, console }
    }

    fn inbox(&self) -> Result<mpsc::Sender<Message>, Status> {
        self.standing.borrow().inbox()
    }

    async fn look<T: Send + 'static>(
        &self,
        at: impl FnOnce(&Cluster) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        look(&self.inbox()?, |cluster, _| at(cluster)).await?.map(Response::new)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type WatchOverviewStream = BoxStream<'static, Result<wire::Overview, Status>>;

    async fn watch_overview(
        &self,
        _: Request<wire::WatchOverviewRequest>,
    ) -> Result<Response<Self::WatchOverviewStream>, Status> {
        // Whoever asks the wrong one is told so at once.
        self.console.overview().await?;
        Ok(Response::new(watched(self.console.clone()).boxed()))
    }

    async fn show_plan(
        &self,
        _: Request<wire::ShowPlanRequest>,
    ) -> Result<Response<wire::ShowPlanResponse>, Status> {
        let shown = look(&self.inbox()?, show).await?;
        Ok(Response::new(shown))
    }

    async fn list_plans(
        &self,
        request: Request<wire::ListPlansRequest>,
    ) -> Result<Response<wire::ListPlansResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        self.look(move |cluster| {
            let history = cluster.plans().history();
            let newest_first = history.iter().rev().take(limit);
            let plans = newest_first.map(|made| summary(cluster, made)).collect();
            Ok(wire::ListPlansResponse { plans })
        })
        .await
    }

    async fn diff_plans(
        &self,
        request: Request<wire::DiffPlansRequest>,
    ) -> Result<Response<wire::DiffPlansResponse>, Status> {
        let wire::DiffPlansRequest { from, to } = request.into_inner();
        self.look(move |cluster| {
            let target = cluster.plans().target().map_or(0, |plan| plan.epoch().0);
            let to = if to == 0 { target } else { to };
            let (from, to) = (plan(cluster, from)?, plan(cluster, to)?);
            let moves = moves(&from, &to);
            Ok(wire::DiffPlansResponse { from: from.epoch().0, to: to.epoch().0, moves })
        })
        .await
    }

    async fn rebalance(
        &self,
        _: Request<wire::RebalanceRequest>,
    ) -> Result<Response<wire::PlanChange>, Status> {
        let inbox = self.inbox()?;
        let draft = look(&inbox, |cluster, now| {
            if cluster.plans().is_pinned() {
                let why = "the plan is pinned: `amoe plan pin --off` gives planning free";
                return Err(Status::failed_precondition(why));
            }
            cluster.draft(now).ok_or_else(no_model)
        })
        .await??;
        let drafted = tokio::task::spawn_blocking(|| draft.plan()).await;
        let drafted = drafted.map_err(|error| Status::internal(error.to_string()))?;
        let step = change(&inbox, |cluster, now| reported(cluster.adopt(now, drafted))).await?;
        let moved_on = || Status::aborted("another plan was made meanwhile: try again");
        let step = step.ok_or_else(moved_on)?;
        stored(&inbox, &step).await?;
        outcome(step).map(Response::new)
    }

    async fn pin_plan(
        &self,
        request: Request<wire::PinPlanRequest>,
    ) -> Result<Response<wire::PinPlanResponse>, Status> {
        let pinned = request.into_inner().pinned;
        change(&self.inbox()?, move |cluster, _| (cluster.pin(pinned), Vec::new())).await?;
        Ok(Response::new(wire::PinPlanResponse { pinned }))
    }

    async fn export_plan(
        &self,
        request: Request<wire::ExportPlanRequest>,
    ) -> Result<Response<wire::PlanTable>, Status> {
        let epoch = request.into_inner().epoch;
        self.look(move |cluster| {
            let plan = plan(cluster, epoch)?;
            Ok(wire::PlanTable { epoch: plan.epoch().0, layers: layers(cluster, &plan) })
        })
        .await
    }

    async fn import_plan(
        &self,
        request: Request<wire::PlanTable>,
    ) -> Result<Response<wire::PlanChange>, Status> {
        let table = request.into_inner();
        let inbox = self.inbox()?;
        let step = change(&inbox, move |cluster, now| match import(cluster, now, &table) {
            Ok(step) => {
                let (step, effects) = reported(Some(step));
                (step.ok_or_else(no_model), effects)
            }
            Err(status) => (Err(status), Vec::new()),
        })
        .await??;
        stored(&inbox, &step).await?;
        outcome(step).map(Response::new)
    }
}

/// How it goes, again and again, for as long as this coordinator leads.
fn watched(console: Console) -> impl Stream<Item = Result<wire::Overview, Status>> + Send {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold(Some((console, ticks)), |watching| async {
        let (mut console, mut ticks) = watching?;
        tokio::select! {
            _ = ticks.tick() => {}
            () = console.changed() => {}
        }
        match console.overview().await {
            Ok(overview) => Some((Ok((*overview).clone()), Some((console, ticks)))),
            Err(status) => Some((Err(status), None)),
        }
    })
}

/// Waits until a new plan is stored: no node hears of it before.
async fn stored(inbox: &mpsc::Sender<Message>, step: &Step) -> Result<(), Status> {
    let &Step::Target { epoch, .. } = step else { return Ok(()) };
    let published = async {
        while !look(inbox, move |cluster, _| cluster.published().reached(epoch)).await? {
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    timeout(STORED_TIMEOUT, published).await.unwrap_or_else(|_| {
        Err(Status::unavailable(format!(
            "the state store does not take plan {} in: no node hears of it before it is stored",
            epoch.0
        )))
    })
}

/// A step for whoever asked for it, and for the log.
fn reported(step: Option<Step>) -> (Option<Step>, Vec<Effect>) {
    let effects = step.clone().into_iter().map(Effect::Plans).collect();
    (step, effects)
}

fn no_model() -> Status {
    Status::failed_precondition("no node with a model has joined yet")
}

/// A plan by its number, 0 for the one that serves.
fn plan(cluster: &Cluster, epoch: u64) -> Result<Arc<Plan>, Status> {
    if epoch == 0 {
        let none = || Status::failed_precondition("no plan serves yet");
        return cluster.plans().serving().cloned().ok_or_else(none);
    }
    let history = cluster.plans().history();
    let made = history.iter().find(|made| made.plan.epoch() == Epoch(epoch));
    made.map(|made| Arc::clone(&made.plan)).ok_or_else(|| {
        let known: Vec<_> = history.iter().map(|made| made.plan.epoch().0.to_string()).collect();
        Status::not_found(format!(
            "no plan {epoch} is remembered, expected one of {}",
            known.join(", ")
        ))
    })
}

// === answers ===

fn show(cluster: &Cluster, now: Duration) -> wire::ShowPlanResponse {
    let (plans, registry) = (cluster.plans(), cluster.registry());
    let epoch = |plan: Option<&Arc<Plan>>| plan.map_or(0, |plan| plan.epoch().0);
    let waiting = match cluster.waiting_for() {
        Readiness::Ready => Vec::new(),
        Readiness::Waiting(nodes) => nodes,
    };
    let shape = registry.shape();
    wire::ShowPlanResponse {
        serving_epoch: epoch(plans.serving()),
        target_epoch: epoch(plans.target()),
        waiting_for: waiting.iter().map(|&id| cluster.registry().called(id)).collect(),
        pinned: plans.is_pinned(),
        policy: plans.intent().policy.to_string(),
        routing: cluster.guide().policy().to_string(),
        nodes: expert_nodes(cluster, now),
        moe_layers: shape.map_or(0, |shape| count(shape.moe_layers.len())),
        experts: shape.map_or(0, |shape| u32::from(shape.experts)),
    }
}

fn expert_nodes(cluster: &Cluster, now: Duration) -> Vec<wire::ExpertNode> {
    let (plans, leases) = (cluster.plans(), cluster.leases());
    let replicas = |plan: Option<&Arc<Plan>>, id: NodeId| {
        plan.map_or(0, |plan| count(plan.resident_on(id).count()))
    };
    let observed = cluster.registry().observed();
    let experts = observed.iter().filter(|node| node.role == Role::Expert);
    experts
        .map(|&Observed { id, slots, .. }| wire::ExpertNode {
            id: id.0,
            name: cluster.registry().called(id),
            slots,
            serving_replicas: replicas(plans.serving(), id),
            target_replicas: replicas(plans.target(), id),
            leased: leases.get(&id).copied().unwrap_or(0),
            slowdown: cluster.observations().slowdown(now, id),
        })
        .collect()
}

pub(crate) fn summary(cluster: &Cluster, made: &Made) -> wire::PlanSummary {
    let plans = cluster.plans();
    let is = |plan: Option<&Arc<Plan>>| plan.is_some_and(|plan| Arc::ptr_eq(plan, &made.plan));
    let state = if is(plans.serving()) {
        "serving"
    } else if is(plans.target()) {
        "target"
    } else {
        "past"
    };
    let history = plans.history().iter();
    let parent =
        history.map(|made| &made.plan).find(|plan| Some(plan.epoch()) == made.plan.parent());
    let replicas = made.plan.table().map(<[_]>::len).sum();
    let loaded = parent.map_or(replicas, |parent| {
        let slots = made.plan.table().zip(parent.table());
        let new = |(now, before): (&[NodeId], &[NodeId])| {
            now.iter().filter(|node| !before.contains(node)).count()
        };
        slots.map(new).sum()
    });
    wire::PlanSummary {
        epoch: made.plan.epoch().0,
        parent: made.plan.parent().map_or(0, |epoch| epoch.0),
        reason: made.reason.clone(),
        made_at: made.at,
        replicas: count(replicas),
        loaded: count(loaded),
        state: state.to_owned(),
    }
}

pub(crate) fn moves(from: &Plan, to: &Plan) -> Vec<wire::Move> {
    let slots = to
        .moe_layers()
        .iter()
        .flat_map(|&layer| (0..to.experts()).map(move |expert| (layer, Expert(expert))));
    let less = |a: &[NodeId], b: &[NodeId]| -> Vec<u32> {
        a.iter().filter(|node| !b.contains(node)).map(|node| node.0).collect()
    };
    slots
        .map(|(layer, expert)| {
            let (before, after) = (from.replicas(layer, expert), to.replicas(layer, expert));
            wire::Move {
                layer: layer.0.into(),
                expert: expert.0.into(),
                added: less(after, before),
                removed: less(before, after),
            }
        })
        .filter(|change| !change.added.is_empty() || !change.removed.is_empty())
        .collect()
}

fn layers(cluster: &Cluster, plan: &Plan) -> Vec<wire::LayerTable> {
    let experts = |layer: Layer| {
        let nodes = move |expert| plan.replicas(layer, Expert(expert)).iter();
        let names = move |expert| nodes(expert).map(|&id| cluster.registry().called(id)).collect();
        (0..plan.experts()).map(move |expert| wire::ExpertReplicas { nodes: names(expert) })
    };
    let table = |&layer: &Layer| wire::LayerTable {
        layer: layer.0.into(),
        experts: experts(layer).collect(),
    };
    plan.moe_layers().iter().map(table).collect()
}

/// What became of a wish, in a sentence; an error if it was refused.
fn outcome(step: Step) -> Result<wire::PlanChange, Status> {
    match step {
        Step::Target { epoch, .. } => Ok(wire::PlanChange {
            epoch: epoch.0,
            outcome: format!("plan {} is being prepared", epoch.0),
        }),
        Step::Serving { epoch } => {
            Ok(wire::PlanChange { epoch: epoch.0, outcome: format!("plan {} serves", epoch.0) })
        }
        Step::Kept { .. } => Ok(wire::PlanChange {
            epoch: 0,
            outcome: "the plan would look the same and stays".to_owned(),
        }),
        Step::Infeasible { why, .. } => Err(Status::failed_precondition(why.to_string())),
        Step::Refused { violations, .. } => {
            let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
            Err(Status::invalid_argument(format!(
                "the checker refuses the plan: {}",
                violations.join("; ")
            )))
        }
    }
}

// === import ===

fn import(cluster: &mut Cluster, now: Duration, table: &wire::PlanTable) -> Result<Step, Status> {
    let nodes: BTreeMap<String, NodeId> = cluster
        .registry()
        .observed()
        .iter()
        .filter(|node| node.role == Role::Expert)
        .map(|node| (cluster.registry().called(node.id), node.id))
        .collect();
    let shape = cluster.registry().shape().ok_or_else(no_model)?;
    let replicas = replicas(table, shape, &nodes).map_err(Status::invalid_argument)?;
    let step = cluster.import(now, replicas).ok_or_else(no_model)?;
    step.map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The table `[moe layer][expert]`, flattened; an error says where it does not fit the cluster.
fn replicas(
    table: &wire::PlanTable,
    shape: &ModelShape,
    nodes: &BTreeMap<String, NodeId>,
) -> Result<Vec<Replicas>, String> {
    let found: Vec<u32> = table.layers.iter().map(|table| table.layer).collect();
    let expected: Vec<u32> = shape.moe_layers.iter().map(|layer| layer.0.into()).collect();
    if found != expected {
        return Err(format!("the table has layers {found:?}, expected {expected:?}"));
    }
    let mut replicas = Vec::with_capacity(expected.len() * usize::from(shape.experts));
    for wire::LayerTable { layer, experts } in &table.layers {
        if experts.len() != usize::from(shape.experts) {
            let (found, expected) = (experts.len(), shape.experts);
            return Err(format!("layer {layer} has {found} experts, expected {expected}"));
        }
        for (expert, holders) in experts.iter().enumerate() {
            let holders = holders.nodes.iter().map(|name| {
                nodes.get(name).copied().ok_or_else(|| {
                    let known: Vec<_> = nodes.keys().map(String::as_str).collect();
                    let known = known.join(", ");
                    format!(
                        "layer {layer}, expert {expert}: no expert node is called {name}, expected \
                         one of {known}"
                    )
                })
            });
            replicas.push(holders.collect::<Result<_, _>>()?);
        }
    }
    Ok(replicas)
}

pub(crate) fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
