//! A placement plan: which nodes hold a replica of which expert. Immutable once made.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::{Epoch, Expert, Layer, ModelShape, NodeId};

/// The nodes that hold a replica of one expert, ascending and without repetition.
pub type Replicas = Vec<NodeId>;

/// Where every expert lives from one epoch on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    epoch: Epoch,
    parent: Option<Epoch>,
    moe_layers: Vec<Layer>,
    experts: u16,
    /// `[moe layer][expert]`, flattened.
    replicas: Vec<Replicas>,
}

/// A plan whose table does not fit its own layers and experts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "a plan for {layers} MoE layers of {experts} experts needs {expected} replica lists, found {found}"
)]
pub struct PlanShapeError {
    /// MoE layers of the model.
    pub layers: usize,
    /// Experts per layer.
    pub experts: u16,
    /// Lists that were expected.
    pub expected: usize,
    /// Lists that were given.
    pub found: usize,
}

impl Plan {
    /// A plan from its table `[moe layer][expert]`, flattened in ascending order.
    ///
    /// Only the table's size is checked here; whether the plan is a good or even a legal one is
    /// the checker's question.
    pub fn new(
        epoch: Epoch,
        parent: Option<Epoch>,
        shape: &ModelShape,
        replicas: Vec<Replicas>,
    ) -> Result<Self, PlanShapeError> {
        let expected = shape.moe_layers.len() * usize::from(shape.experts);
        if replicas.len() != expected {
            return Err(PlanShapeError {
                layers: shape.moe_layers.len(),
                experts: shape.experts,
                expected,
                found: replicas.len(),
            });
        }
        let replicas = replicas
            .into_iter()
            .map(|nodes| nodes.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
            .collect();
        Ok(Self {
            epoch,
            parent,
            moe_layers: shape.moe_layers.clone(),
            experts: shape.experts,
            replicas,
        })
    }

    /// This plan's number.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The plan this one was made from.
    #[must_use]
    pub fn parent(&self) -> Option<Epoch> {
        self.parent
    }

    /// The layers that have experts, ascending.
    #[must_use]
    pub fn moe_layers(&self) -> &[Layer] {
        &self.moe_layers
    }

    /// Experts per MoE layer.
    #[must_use]
    pub fn experts(&self) -> u16 {
        self.experts
    }

    /// The nodes that hold `expert` of `layer`, ascending; empty for a layer without experts.
    #[must_use]
    pub fn replicas(&self, layer: Layer, expert: Expert) -> &[NodeId] {
        let Ok(row) = self.moe_layers.binary_search(&layer) else {
            return &[];
        };
        if expert.0 >= self.experts {
            return &[];
        }
        &self.replicas[row * usize::from(self.experts) + expert.index()]
    }

    /// The replica lists in row-major order `[moe layer][expert]`.
    pub fn table(&self) -> impl Iterator<Item = &[NodeId]> {
        self.replicas.iter().map(Vec::as_slice)
    }

    /// Every replica of the plan as (layer, expert, node), ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Layer, Expert, NodeId)> + '_ {
        self.moe_layers.iter().enumerate().flat_map(move |(row, &layer)| {
            (0..self.experts).flat_map(move |expert| {
                self.replicas[row * usize::from(self.experts) + usize::from(expert)]
                    .iter()
                    .map(move |&node| (layer, Expert(expert), node))
            })
        })
    }

    /// What `node` has to hold under this plan, ascending.
    pub fn resident_on(&self, node: NodeId) -> impl Iterator<Item = (Layer, Expert)> + '_ {
        self.iter()
            .filter(move |&(_, _, holder)| holder == node)
            .map(|(layer, expert, _)| (layer, expert))
    }
}
