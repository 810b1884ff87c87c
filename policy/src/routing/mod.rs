//! Decides which replica of each activated expert computes its tokens, for one batch or for a lease.
//!
//! In decode an expert node's time follows the *number* of experts activated on it, because reading
//! their weights rules (METRO, section 3). So an expert runs on one of its hosts, and the hosts are
//! kept even by count ([`Policy::Metro`], [`Policy::Aebs`], [`Policy::Exact`]) or by the time that
//! their cost curves and backlogs predict ([`Policy::Time`]). [`Policy::EvenSplit`] is the usual
//! rival: an expert's tokens go to all of its replicas.

mod board;
mod count;
mod cut;
mod demand;
mod even;
mod greedy;
mod hosts;
mod lease;
mod search;
mod shares;
#[cfg(test)]
mod tests;
mod time;

use std::{fmt, str::FromStr};

use domain::CostCurve;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use board::{Board, Measure};
pub use demand::Demand;
pub use hosts::{BadHosts, Hosts};
pub use lease::Lease;
use search::Search;
pub use shares::{Assignment, Share};
use time::Timed;

/// How replicas are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// EPLB's routing: an expert's tokens are spread evenly over all of its replicas. A rival.
    EvenSplit,
    /// METRO's greedy (Algorithm 1) in ascending order of experts: the host with the fewest
    /// activated experts. A rival.
    Metro,
    /// JANUS' greedy: experts with one host first, then those with the fewest; the host with the
    /// fewest activated experts. A rival.
    Aebs,
    /// The true minimum of the largest number of activated experts on a node: `aebs`, improved
    /// along augmenting paths until none is left.
    Exact,
    /// The same on predicted time instead of counts. It counts experts like `exact` where reading
    /// weights rules, spares nodes that are slow or behind, and splits an expert only past the
    /// ridge of its host's curve.
    #[default]
    Time,
}

/// One decision: the tokens of a layer's experts, and the nodes that may take them.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// The hosts of each expert.
    pub hosts: &'a Hosts,
    /// Tokens per expert; an expert without any is not activated.
    pub tokens: &'a [u32],
    /// Per node, the time that one activated expert takes there for its tokens. Empty where
    /// nothing is known: an expert then takes 1 ns everywhere, so that counts decide.
    pub curves: &'a [CostCurve],
    /// Per node, nanoseconds of work it already has. Empty for none.
    pub backlog_ns: &'a [u64],
}

/// An instance that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unroutable {
    /// The token counts are not those of the hosts' experts.
    #[error("hosts are listed for {expected} experts, tokens for {found}")]
    Tokens {
        /// Experts with a list of hosts.
        expected: usize,
        /// Token counts.
        found: usize,
    },
    /// There are curves, but not one per node.
    #[error("{expected} nodes need as many cost curves or none, found {found}")]
    Curves {
        /// Nodes.
        expected: usize,
        /// Curves.
        found: usize,
    },
    /// There are backlogs, but not one per node.
    #[error("{expected} nodes need as many backlogs or none, found {found}")]
    Backlogs {
        /// Nodes.
        expected: usize,
        /// Backlogs.
        found: usize,
    },
    /// Somebody wants an expert that nobody has.
    #[error("expert {expert} has {tokens} tokens and no host")]
    NoHost {
        /// The expert.
        expert: usize,
        /// Its tokens.
        tokens: u32,
    },
    /// The hosts themselves make no sense.
    #[error(transparent)]
    Hosts(#[from] BadHosts),
}

/// A name that is no policy's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no routing policy, expected even-split, metro, aebs, exact or time")]
pub struct UnknownPolicy(String);

/// Routes one instance after the other; allocates only when an instance is larger than all before.
#[derive(Debug, Default)]
pub struct Router {
    policy: Policy,
    board: Board,
    search: Search,
    timed: Timed,
    assignment: Assignment,
}

// === impl Router ===

impl Router {
    /// A router that follows `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// The policy it follows.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Gives every token of every activated expert a host; equal instances get equal answers.
    ///
    /// # Errors
    /// The instance's lengths do not fit, or an expert with tokens has no host.
    pub fn route(&mut self, instance: &Instance<'_>) -> Result<&Assignment, Unroutable> {
        self.decide(instance, Measure::Count)
    }

    /// The same for a lease: what a node has already counts for every policy. For one that counts,
    /// the instance has no curves and that is a count.
    fn lease(&mut self, instance: &Instance<'_>) -> Result<&Assignment, Unroutable> {
        self.decide(instance, Measure::Time)
    }

    fn decide(
        &mut self,
        instance: &Instance<'_>,
        counted: Measure,
    ) -> Result<&Assignment, Unroutable> {
        instance.check()?;
        let Self { board, search, timed, .. } = self;
        match self.policy {
            Policy::EvenSplit => even::split(board, instance),
            Policy::Metro => count::metro(board, instance, counted),
            Policy::Aebs => count::aebs(board, instance, counted),
            Policy::Exact => count::exact(board, search, instance, counted),
            Policy::Time => timed.place(board, search, instance),
        }
        self.assignment.fill(instance, self.board.parts());
        Ok(&self.assignment)
    }
}

// === impl Instance ===

impl Instance<'_> {
    fn check(&self) -> Result<(), Unroutable> {
        let (experts, nodes) = (self.hosts.experts(), self.hosts.nodes());
        if self.tokens.len() != experts {
            return Err(Unroutable::Tokens { expected: experts, found: self.tokens.len() });
        }
        if !self.curves.is_empty() && self.curves.len() != nodes {
            return Err(Unroutable::Curves { expected: nodes, found: self.curves.len() });
        }
        if !self.backlog_ns.is_empty() && self.backlog_ns.len() != nodes {
            return Err(Unroutable::Backlogs { expected: nodes, found: self.backlog_ns.len() });
        }
        for (expert, &tokens) in self.tokens.iter().enumerate() {
            if tokens > 0 && self.hosts.of(expert).is_empty() {
                return Err(Unroutable::NoHost { expert, tokens });
            }
        }
        Ok(())
    }

    /// What `tokens` tokens of one expert take on `node`.
    fn cost_ns(&self, node: u16, tokens: u32) -> u64 {
        match self.curves.get(usize::from(node)) {
            Some(curve) => curve.ns(tokens).min(NS_MAX),
            None => u64::from(tokens > 0),
        }
    }

    fn backlog_ns(&self, node: usize) -> u64 {
        self.backlog_ns.get(node).map_or(0, |&ns| ns.min(NS_MAX))
    }
}

/// The longest time that is told apart: 39 hours, so that the sum over 2^16 experts and a backlog
/// fits its type.
const NS_MAX: u64 = (1 << 47) - 1;

// === impl Policy ===

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EvenSplit => "even-split",
            Self::Metro => "metro",
            Self::Aebs => "aebs",
            Self::Exact => "exact",
            Self::Time => "time",
        })
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        [Self::EvenSplit, Self::Metro, Self::Aebs, Self::Exact, Self::Time]
            .into_iter()
            .find(|policy| policy.to_string() == name)
            .ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}
