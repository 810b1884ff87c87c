//! What the coordinator keeps in the state store, as JSON that an operator can read.

use std::collections::BTreeMap;

use domain::{Epoch, Health, Layer, ModelShape, NodeId, Plan, PlanShapeError, Role};
use serde::{Deserialize, Serialize};

use crate::reconcile::Made;

/// The key of the [`Record`].
pub(crate) const CLUSTER: &str = "cluster";
/// Plans lie under this prefix, by epoch.
pub(crate) const PLANS: &str = "plans/";

/// The cluster's durable state, but for the plans' tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Grows with every change of the leader; part of the version of every view.
    pub(crate) term: u64,
    /// The newest epoch anybody in the cluster has heard of.
    pub(crate) epoch_newest: u64,
    /// The plan that serves.
    pub(crate) serving: Option<u64>,
    /// The plan that nodes prepare.
    pub(crate) target: Option<u64>,
    /// The number the next new node gets.
    pub(crate) next_node: u32,
    /// What all nodes serve.
    pub(crate) model: Option<Model>,
    /// Nodes by name, those that are gone too: a name keeps its number.
    pub(crate) nodes: BTreeMap<String, Node>,
    /// The plans that are stored, oldest first.
    #[serde(default)]
    pub(crate) history: Vec<Past>,
    /// Whether an operator wants the plan to stay as it is.
    #[serde(default)]
    pub(crate) pinned: bool,
}

/// How a stored plan came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) epoch: u64,
    pub(crate) reason: String,
    /// Seconds since 1970.
    pub(crate) made_at: u64,
}

/// The model that all nodes serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Model {
    pub(crate) fingerprint: String,
    pub(crate) shape: Shape,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: u32,
    #[serde(with = "RoleName")]
    pub(crate) role: Role,
    pub(crate) address: String,
    /// How its device computes.
    #[serde(default)]
    pub(crate) numerics: String,
    #[serde(with = "HealthName")]
    pub(crate) health: Health,
    pub(crate) slots: u32,
    #[serde(default)]
    pub(crate) experts_max: Option<u32>,
    /// Whether it is a member now; its lease starts anew when a coordinator takes over.
    pub(crate) member: bool,
}

impl Record {
    /// How the plan under this key came about; none if the record does not name it.
    pub(crate) fn plan_at(&self, key: &str) -> Option<Past> {
        let named = |epoch: &u64| plan_key(Epoch(*epoch)) == key;
        let past = self.history.iter().find(|past| named(&past.epoch)).cloned();
        // A record of before there was a history names the plans in use only.
        past.or_else(|| {
            let mut in_use = self.serving.into_iter().chain(self.target);
            let epoch = in_use.find(named)?;
            Some(Past { epoch, reason: "nobody wrote down why".to_owned(), made_at: 0 })
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Role", rename_all = "lowercase")]
pub(crate) enum RoleName {
    Attention,
    Expert,
    Gateway,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Health", rename_all = "lowercase")]
pub(crate) enum HealthName {
    Joining,
    Ready,
    Draining,
}

/// [`ModelShape`] in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    layers: u16,
    moe_layers: Vec<u16>,
    experts: u16,
    top_k: u8,
    hidden: u32,
    expert_bytes: u64,
    vocab: u32,
    positions_max: u32,
}

/// A plan: `replicas` is the table `[moe layer][expert]`, flattened.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredPlan {
    epoch: u64,
    parent: Option<u64>,
    replicas: Vec<Vec<u32>>,
}

/// The key of the plan with this number.
pub(crate) fn plan_key(epoch: Epoch) -> String {
    // Twenty digits, so that keys sort like numbers.
    format!("{PLANS}{:020}", epoch.0)
}

impl From<&Made> for Past {
    fn from(made: &Made) -> Self {
        Self { epoch: made.plan.epoch().0, reason: made.reason.clone(), made_at: made.at }
    }
}

impl From<&Plan> for StoredPlan {
    fn from(plan: &Plan) -> Self {
        let replicas = plan.table().map(|nodes| nodes.iter().map(|node| node.0).collect());
        Self {
            epoch: plan.epoch().0,
            parent: plan.parent().map(|epoch| epoch.0),
            replicas: replicas.collect(),
        }
    }
}

impl StoredPlan {
    pub(crate) fn into_plan(self, shape: &ModelShape) -> Result<Plan, PlanShapeError> {
        let replicas = self.replicas.into_iter();
        let table = replicas.map(|nodes| nodes.into_iter().map(NodeId).collect());
        Plan::new(Epoch(self.epoch), self.parent.map(Epoch), shape, table.collect())
    }
}

impl From<&ModelShape> for Shape {
    fn from(shape: &ModelShape) -> Self {
        Self {
            layers: shape.layers,
            moe_layers: shape.moe_layers.iter().map(|layer| layer.0).collect(),
            experts: shape.experts,
            top_k: shape.top_k,
            hidden: shape.hidden,
            expert_bytes: shape.expert_bytes,
            vocab: shape.vocab,
            positions_max: shape.positions_max,
        }
    }
}

impl From<&Shape> for ModelShape {
    fn from(shape: &Shape) -> Self {
        Self {
            layers: shape.layers,
            moe_layers: shape.moe_layers.iter().copied().map(Layer).collect(),
            experts: shape.experts,
            top_k: shape.top_k,
            hidden: shape.hidden,
            expert_bytes: shape.expert_bytes,
            vocab: shape.vocab,
            positions_max: shape.positions_max,
        }
    }
}
