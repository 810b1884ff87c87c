//! Decides which node holds a replica of which expert, and when that has to be decided again.
//!
//! A [`Policy`] proposes, [`check`] validates without knowing how the proposal came about, and
//! [`adoption`] says when to plan again and when a checked plan may serve. Nothing here moves a weight.

pub mod adoption;
mod check;
mod linear;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use domain::{Epoch, ModelShape, NodeId, Plan};

pub use check::{Facts, Violation, check};

/// An expert node as a planner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// The node.
    pub id: NodeId,
    /// Replicas it has room for, over all layers.
    pub slots: u32,
}

/// How a plan is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Equal contiguous shares of every layer, in order of node number.
    #[default]
    Linear,
}

/// What to do with slots that are left when every expert has one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spare {
    /// Leave them empty.
    #[default]
    Leave,
    /// Fill them with further replicas, every expert in turn.
    Fill,
}

/// Everything a policy may look at.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The number of the plan to be made.
    pub epoch: Epoch,
    /// The plan that serves now; the new one becomes its child.
    pub serving: Option<&'a Plan>,
    /// The model whose experts are placed.
    pub shape: &'a ModelShape,
    /// The nodes that may hold experts. Order and repetition do not matter.
    pub hosts: &'a [Host],
    /// What to do with spare slots.
    pub spare: Spare,
}

/// A plan and why it looks as it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The plan; not yet checked.
    pub plan: Plan,
    /// For logs and goldens.
    pub explanation: Explanation,
}

/// What a policy has to say about its plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The policy that made it.
    pub policy: Policy,
    /// Per host, ascending.
    pub shares: Vec<Share>,
}

/// One host's part of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The host.
    pub host: Host,
    /// Experts whose first replica it holds, over all layers.
    pub first: u32,
    /// Further replicas it holds in spare slots.
    pub further: u32,
}

/// No legal plan exists for the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Infeasible {
    /// (layer, expert) pairs of the model.
    pub needed: u64,
    /// Slots of all hosts together.
    pub found: u64,
    /// How many hosts there are.
    pub hosts: usize,
}

/// Makes a plan.
///
/// Equal input gives an equal plan.
///
/// # Errors
/// The hosts together have fewer slots than the model has experts.
pub fn place(policy: Policy, input: &Input<'_>) -> Result<Proposal, Infeasible> {
    // A host that is named twice is one host; the larger number of slots counts.
    let unique: BTreeMap<NodeId, u32> = {
        let mut hosts = input.hosts.to_vec();
        hosts.sort_unstable();
        hosts.into_iter().map(|host| (host.id, host.slots)).collect()
    };
    let hosts: Vec<Host> = unique.into_iter().map(|(id, slots)| Host { id, slots }).collect();
    match policy {
        Policy::Linear => linear::place(input, &hosts),
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
        })
    }
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, found, hosts } = self;
        write!(f, "the model's {needed} experts need as many slots, {hosts} hosts have {found}")
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.policy)?;
        for Share { host, first, further } in &self.shares {
            write!(f, " {} {first}+{further} of {}", host.id, host.slots)?;
        }
        Ok(())
    }
}
