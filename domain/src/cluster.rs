//! The cluster as the coordinator last described it: its members and the plan they serve.

use std::{fmt, sync::Arc};

use crate::{ModelShape, NodeId, Plan};

/// What a process does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Owns sequences and their KV cache, runs attention and the layer loop.
    Attention,
    /// Holds experts and runs their feed-forward networks.
    Expert,
    /// The public door.
    Gateway,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attention => "attention",
            Self::Expert => "expert",
            Self::Gateway => "gateway",
        })
    }
}

/// Whether a member may be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Registered, but its weights for the serving plan are not loaded yet.
    Joining,
    /// Takes work.
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
}

/// What a node reported with its last heartbeat. Counts, not rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that are running (attention nodes).
    pub running: u32,
    /// Sequences that wait for admission (attention nodes).
    pub waiting: u32,
    /// KV blocks nobody uses (attention nodes).
    pub kv_blocks_free: u32,
    /// KV blocks in all (attention nodes).
    pub kv_blocks: u32,
    /// (token, expert) pairs queued (expert nodes).
    pub queued_pairs: u32,
}

/// One registered process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: NodeId,
    /// Its name, chosen by the operator, unique in the cluster.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where its peers reach it: `host:port`, or `memory:NAME` inside one process.
    pub address: String,
    /// Whether it takes work.
    pub health: Health,
    /// Its last reported load.
    pub load: Load,
}

/// A snapshot of the cluster. A node that loses the coordinator goes on with the last one it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Grows with every change; an older view is ignored.
    pub version: u64,
    /// All members, ascending by id.
    pub members: Vec<Member>,
    /// The served model; none before the first model node joined.
    pub shape: Option<ModelShape>,
    /// The plan tokens are routed by; none until enough expert nodes have joined.
    pub serving: Option<Arc<Plan>>,
    /// The next plan, which nodes prepare while they still serve the current one.
    pub target: Option<Arc<Plan>>,
}

impl ClusterView {
    /// The members of one role, ascending by id.
    pub fn role(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.role == role)
    }

    /// A member by its number.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }
}
