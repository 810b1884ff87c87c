//! The parties of a cluster and how a certificate names them: `expert-node.amoe` among its DNS names.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// What a process is, as its certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// A public door.
    Gateway,
    /// The control plane.
    Coordinator,
    /// It owns sequences.
    AttentionNode,
    /// It owns experts.
    ExpertNode,
    /// A person or a program that looks after the cluster.
    Operator,
}

/// Who is on the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nobody had to prove anything: a connection without TLS, or within the process.
    Unchecked,
    /// A certificate of the cluster's authority says so.
    Certified(Vec<Party>),
}

// === impl Party ===

impl Party {
    /// All parties.
    pub const ALL: [Self; 5] =
        [Self::Gateway, Self::Coordinator, Self::AttentionNode, Self::ExpertNode, Self::Operator];

    /// As files and programs are called: `expert-node`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Coordinator => "coordinator",
            Self::AttentionNode => "attention-node",
            Self::ExpertNode => "expert-node",
            Self::Operator => "operator",
        }
    }

    /// As certificates say it. No host is called so: certificates name what a process is, not where
    /// it runs, and hold wherever it is started.
    #[must_use]
    pub fn dns_name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway.amoe",
            Self::Coordinator => "coordinator.amoe",
            Self::AttentionNode => "attention-node.amoe",
            Self::ExpertNode => "expert-node.amoe",
            Self::Operator => "operator.amoe",
        }
    }

    /// The party that a DNS name stands for, if any.
    pub(crate) fn of_dns_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|party| party.dns_name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Party {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|party| party.name() == name);
        known.ok_or_else(|| format!("{name:?} is no party of a cluster"))
    }
}

// === impl Peer ===

impl Peer {
    /// Whether it may act as `party`.
    #[must_use]
    pub fn is(&self, party: Party) -> bool {
        match self {
            Self::Unchecked => true,
            Self::Certified(parties) => parties.contains(&party),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchecked => f.write_str("somebody without a certificate"),
            Self::Certified(parties) if parties.is_empty() => {
                f.write_str("somebody whose certificate names no party of a cluster")
            }
            Self::Certified(parties) => {
                let names: Vec<_> = parties.iter().map(|party| party.name()).collect();
                write!(f, "the certificate of {}", names.join(" and "))
            }
        }
    }
}
