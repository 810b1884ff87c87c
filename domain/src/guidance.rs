//! What the coordinator advises from moment to moment, between two views of the cluster.

use std::sync::Arc;

use crate::{Epoch, NodeId};

/// Advice to nodes. Whatever is missing a node decides for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guidance {
    /// Who runs which expert.
    pub lease: Option<Arc<Leased>>,
    /// What waits in the whole cluster.
    pub digest: Option<Digest>,
}

/// Who runs each expert under one plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The plan whose replicas these are.
    pub epoch: Epoch,
    /// `[moe layer][expert]`, flattened: one node mostly, several share an expert that is too hot for
    /// one, and none has it where no replica is alive.
    pub holders: Vec<Vec<Holder>>,
}

/// A node that runs an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Its part of the expert's tokens, in relation to the other holders' parts.
    pub part: u32,
}

/// What waits per layer, over all nodes that reported lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Rows on attention nodes, per stage: the decoder layers, then the LM head.
    pub rows: Vec<u32>,
    /// (token, expert) pairs on expert nodes, per decoder layer.
    pub pairs: Vec<u32>,
}
