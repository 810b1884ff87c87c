//! Decides which node holds a replica of which expert, and when that has to be decided again.
//!
//! A [`Policy`] proposes, [`check()`] validates without knowing how the proposal came about, and
//! [`adoption`] says when to plan again and when a checked plan may serve. Nothing here moves a weight.
//!
//! A policy turns its [`Input`] into small integers (`problem`): hosts become 0, 1, 2 …, each with a
//! number of slots per layer, and layers do not know one another. What comes out is judged by
//! [`cost()`], which is also how rivals are compared.

pub mod adoption;
mod board;
mod check;
mod cost;
mod drift;
mod eplb;
mod gem;
mod incremental;
mod linear;
mod problem;
mod rooms;
#[cfg(test)]
mod tests;
mod times;

use std::{fmt, str::FromStr};

use domain::{CostCurve, Epoch, ModelShape, NodeId, Plan, Trace};
use serde::{Deserialize, Serialize};

pub use check::{Facts, Violation, check, fits};
pub use cost::cost;
pub use drift::{Basis, Trigger};
pub use incremental::{Limits, Move, Revision};
use problem::Problem;

/// An expert node as a planner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// The node.
    pub id: NodeId,
    /// Replicas it has room for, over all layers.
    pub slots: u32,
}

/// How a plan is made. Read and written by name: `linear`, `eplb`, `gem`,
/// `incremental` (with the limits that are the default).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// Equal contiguous shares of every layer, in order of node number.
    #[default]
    Linear,
    /// DeepSeek's EPLB: further replicas for the experts with most tokens, then replicas packed so
    /// that all nodes get equally many tokens. Knows no speeds.
    Eplb,
    /// Equal slots, and every node as many tokens as it does in the time of the others.
    Gem,
    /// The serving plan with few changes, if any.
    Incremental(Limits),
}

/// What to do with slots that are left when every expert has one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spare {
    /// Leave them empty.
    #[default]
    Leave,
    /// Hold this many further replicas per layer, as far as they fit.
    UpTo(u32),
    /// Fill them with further replicas.
    Fill,
}

/// How experts and nodes are grouped, for the hierarchical form of [`Policy::Eplb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Groups of consecutive experts that are to stay on one machine together.
    pub groups: u16,
    /// Machines, each with equally many consecutive hosts.
    pub machines: u16,
}

/// Everything a policy may look at. [`Input::new`] gives the parts that most callers leave alone.
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
    /// What routing did lately. None or one without steps: every expert counts alike.
    pub trace: Option<&'a Trace>,
    /// Time of a host's whole MoE layer against all its (token, expert) pairs, one curve per entry
    /// of `hosts`. Empty: all hosts are equal, and time is in proportion to tokens.
    pub curves: &'a [CostCurve],
    /// How experts and hosts are grouped.
    pub grouping: Grouping,
    /// What the serving plan was made for, for [`Policy::Incremental`]. None: that is not known.
    pub basis: Option<&'a Basis>,
    /// Seed of random starts. Equal seeds give equal plans.
    pub seed: u64,
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
    /// What [`cost()`] predicts over the input's trace; none without a trace.
    pub cost_ns: Option<u64>,
    /// What [`Policy::Incremental`] changed in the serving plan; none if there was none.
    pub revision: Option<Revision>,
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

/// A name that no policy has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy(String);

/// Makes a plan.
///
/// Equal input gives an equal plan.
///
/// # Errors
/// The hosts together have fewer slots than the model has experts.
///
/// # Panics
/// The trace is for other layers or experts than the shape, or there are curves for some hosts only.
pub fn place(policy: Policy, input: &Input<'_>) -> Result<Proposal, Infeasible> {
    let problem = Problem::new(input)?;
    let (tables, revision) = match policy {
        Policy::Linear => (linear::place(&problem), None),
        Policy::Eplb => (eplb::place(&problem), None),
        Policy::Gem => (gem::place(&problem), None),
        Policy::Incremental(limits) => incremental::place(&problem, &limits),
    };
    Ok(problem.proposal(policy, &tables, revision))
}

impl Default for Grouping {
    fn default() -> Self {
        Self { groups: 1, machines: 1 }
    }
}

impl<'a> Input<'a> {
    /// What a first plan looks at: no trace, equal hosts, spare slots left empty.
    #[must_use]
    pub fn new(epoch: Epoch, shape: &'a ModelShape, hosts: &'a [Host]) -> Self {
        Self {
            epoch,
            serving: None,
            shape,
            hosts,
            spare: Spare::Leave,
            trace: None,
            curves: &[],
            grouping: Grouping::default(),
            basis: None,
            seed: 0,
        }
    }
}

impl Policy {
    /// Whether its plans fill all nodes' slots equally, as far as the nodes have them.
    #[must_use]
    pub fn equal_slots(self) -> bool {
        matches!(self, Self::Eplb | Self::Gem)
    }

    /// How a serving plan is changed while no node joins. A whole plan of [`Policy::Gem`] would move most replicas
    /// for little: lost ones are repaired, and few swaps made, as `limits` say.
    #[must_use]
    pub fn revising(self, limits: Limits) -> Self {
        match self {
            Self::Gem => Self::Incremental(limits),
            Self::Linear | Self::Eplb | Self::Incremental(_) => self,
        }
    }

    fn all() -> [Self; 4] {
        [Self::Linear, Self::Eplb, Self::Gem, Self::Incremental(Limits::default())]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Eplb => "eplb",
            Self::Gem => "gem",
            Self::Incremental(_) => "incremental",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let known = Self::all().into_iter().find(|policy| policy.name() == name);
        known.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

impl TryFrom<String> for Policy {
    type Error = UnknownPolicy;

    fn try_from(name: String) -> Result<Self, UnknownPolicy> {
        name.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.name().to_owned()
    }
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Policy::all().map(Policy::name).join(", ");
        write!(f, "`{}` is no placement policy, expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownPolicy {}

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
        if let Some(cost) = self.cost_ns {
            write!(f, "; predicted {cost} ns")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "; {revision}")?;
        }
        Ok(())
    }
}
