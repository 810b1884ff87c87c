//! The faults: what each does to the cluster, how it is made good again, and in which order they come.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::time::timeout;

use super::{
    cluster::{self, BROKEN, Cluster, SPARE},
    load::Load,
    processes::{Signal, Throttle},
};

/// A node with broken weights has said so by then.
const REFUSAL: Duration = Duration::from_secs(60);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL of an expert node.
    ExpertKilled,
    /// SIGKILL of an attention node.
    AttentionKilled,
    /// SIGKILL of a gateway.
    GatewayKilled,
    /// SIGKILL of a coordinator, the leader or the other one.
    CoordinatorKilled,
    /// SIGKILL of a member of etcd.
    EtcdMemberKilled,
    /// SIGTERM to an expert node.
    ExpertDrained,
    /// SIGTERM to an attention node.
    AttentionDrained,
    /// SIGTERM to a gateway.
    GatewayDrained,
    /// SIGTERM to a coordinator.
    CoordinatorDrained,
    /// An expert node stands still and then goes on.
    ExpertHung,
    /// An attention node stands still and then goes on.
    AttentionHung,
    /// A gateway stands still and then goes on.
    GatewayHung,
    /// A coordinator stands still and then goes on.
    CoordinatorHung,
    /// An expert node runs for a hundredth of the time.
    ExpertSlow,
    /// All of etcd is killed, and started later.
    EtcdStopped,
    /// Two of etcd's three members are killed.
    EtcdQuorumLost,
    /// All of etcd is killed, and started later without what it had stored.
    EtcdEmptied,
    /// Another expert node joins and leaves again.
    ExpertAdded,
    /// A node starts with weights that are cut off.
    WeightsCorrupt,
}

/// What is done to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(super) kind: Kind,
    pub(super) victims: Vec<String>,
}

/// What a fault left behind that has to be ended.
#[derive(Debug, Default)]
pub(super) struct Harm {
    throttle: Option<Throttle>,
}

/// Faults in an order that the seed gives: every kind comes once before any comes again.
#[derive(Debug)]
pub(super) struct Deck {
    kinds: Vec<Kind>,
    left: Vec<Kind>,
    random: StdRng,
}

// === impl Kind ===

impl Kind {
    /// Which processes it may hit, and how many of them.
    fn targets(self) -> (&'static str, usize) {
        match self {
            Self::ExpertKilled | Self::ExpertDrained | Self::ExpertHung | Self::ExpertSlow => {
                ("expert", 1)
            }
            Self::AttentionKilled | Self::AttentionDrained | Self::AttentionHung => {
                ("attention", 1)
            }
            Self::GatewayKilled | Self::GatewayDrained | Self::GatewayHung => ("gateway", 1),
            Self::CoordinatorKilled | Self::CoordinatorDrained | Self::CoordinatorHung => {
                ("coordinator", 1)
            }
            Self::EtcdMemberKilled => ("etcd", 1),
            Self::EtcdQuorumLost => ("etcd", 2),
            Self::EtcdStopped | Self::EtcdEmptied => ("etcd", 3),
            Self::ExpertAdded | Self::WeightsCorrupt => ("expert", 0),
        }
    }

    /// For people.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::ExpertKilled => "expert node killed",
            Self::AttentionKilled => "attention node killed",
            Self::GatewayKilled => "gateway killed",
            Self::CoordinatorKilled => "coordinator killed",
            Self::EtcdMemberKilled => "one of three etcd members killed",
            Self::ExpertDrained => "expert node drained by SIGTERM",
            Self::AttentionDrained => "attention node drained by SIGTERM",
            Self::GatewayDrained => "gateway drained by SIGTERM",
            Self::CoordinatorDrained => "coordinator drained by SIGTERM",
            Self::ExpertHung => "expert node stands still",
            Self::AttentionHung => "attention node stands still",
            Self::GatewayHung => "gateway stands still",
            Self::CoordinatorHung => "coordinator stands still",
            Self::ExpertSlow => "expert node gets a hundredth of the time",
            Self::EtcdStopped => "all of etcd killed",
            Self::EtcdQuorumLost => "two of three etcd members killed",
            Self::EtcdEmptied => "all of etcd killed, restarted empty",
            Self::ExpertAdded => "expert node added and removed",
            Self::WeightsCorrupt => "node started with broken weights",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

// === impl Deck ===

impl Deck {
    /// A deck of these kinds, of all if none are named.
    pub(super) fn new(kinds: &[Kind], seed: u64) -> Self {
        let kinds = if kinds.is_empty() { Kind::value_variants() } else { kinds };
        Self { kinds: kinds.to_vec(), left: Vec::new(), random: StdRng::seed_from_u64(seed) }
    }

    /// The next fault.
    pub(super) fn draw(&mut self) -> Fault {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            self.left.shuffle(&mut self.random);
        }
        // Just filled; a deck without kinds is one of all kinds.
        let kind = self.left.pop().unwrap_or(Kind::ExpertKilled);
        let (role, count) = kind.targets();
        let mut victims = cluster::names(role);
        while victims.len() > count {
            victims.swap_remove(self.random.random_range(0..victims.len()));
        }
        Fault { kind, victims }
    }
}

// === impl Fault ===

impl Fault {
    /// Who is hit, for people.
    pub(super) fn whom(&self) -> String {
        match self.kind {
            Kind::ExpertAdded => SPARE.to_owned(),
            Kind::WeightsCorrupt => BROKEN.to_owned(),
            _ => self.victims.join(" "),
        }
    }

    /// Does the harm.
    pub(super) async fn strike(&self, cluster: &mut Cluster, load: &Load) -> Result<Harm> {
        let processes = &mut cluster.processes;
        match self.kind {
            Kind::ExpertKilled
            | Kind::AttentionKilled
            | Kind::GatewayKilled
            | Kind::CoordinatorKilled
            | Kind::EtcdMemberKilled
            | Kind::EtcdStopped
            | Kind::EtcdQuorumLost
            | Kind::EtcdEmptied => {
                for name in &self.victims {
                    load.is_killed(name);
                    processes.kill(name).await.with_context(|| name.clone())?;
                }
            }
            Kind::ExpertDrained
            | Kind::AttentionDrained
            | Kind::GatewayDrained
            | Kind::CoordinatorDrained => {
                for name in &self.victims {
                    load.is_leaving(name);
                    processes.drain(name).await?;
                }
            }
            Kind::ExpertHung | Kind::AttentionHung | Kind::GatewayHung | Kind::CoordinatorHung => {
                for name in &self.victims {
                    processes.signal(name, Signal::Stop).await?;
                }
            }
            Kind::ExpertSlow => {
                let throttle = Some(processes.throttle(&self.victims[0])?);
                return Ok(Harm { throttle });
            }
            Kind::ExpertAdded => {
                processes.start(SPARE)?;
                processes.ready(SPARE).await?;
            }
            Kind::WeightsCorrupt => {
                processes.start(BROKEN)?;
                let (status, said) = timeout(REFUSAL, processes.ended(BROKEN))
                    .await
                    .context("a node goes on with weights that are cut off")??;
                ensure!(
                    !status.success() && said.contains("safetensors"),
                    "a node with weights that are cut off ended with {status} and said: {said}"
                );
            }
        }
        Ok(Harm::default())
    }

    /// Makes the harm good again, and waits until everybody who was hit is ready.
    pub(super) async fn heal(&self, harm: Harm, cluster: &mut Cluster, load: &Load) -> Result<()> {
        if let Some(throttle) = harm.throttle {
            throttle.end().await?;
        }
        for name in &self.victims {
            if self.kind == Kind::EtcdEmptied {
                let data = cluster.data(name);
                std::fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
            }
            match self.kind {
                Kind::ExpertHung
                | Kind::AttentionHung
                | Kind::GatewayHung
                | Kind::CoordinatorHung
                | Kind::ExpertSlow => cluster.processes.signal(name, Signal::Cont).await?,
                _ => cluster.processes.start(name)?,
            }
        }
        for name in &self.victims {
            cluster.processes.ready(name).await?;
            load.is_back(name);
        }
        if self.kind == Kind::ExpertAdded {
            cluster.processes.drain(SPARE).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::{Deck, Kind};

    #[test]
    fn every_kind_comes_once_before_any_comes_again_and_a_seed_gives_one_order() {
        let kinds = Kind::value_variants();
        let (mut deck, mut same, mut other) =
            (Deck::new(&[], 7), Deck::new(&[], 7), Deck::new(&[], 8));
        let mut differ = false;
        for _ in 0..3 {
            let mut round: Vec<_> = kinds
                .iter()
                .map(|_| {
                    let fault = deck.draw();
                    assert_eq!(fault, same.draw());
                    differ |= fault != other.draw();
                    fault.kind
                })
                .collect();
            round.sort_unstable();
            assert_eq!(round, kinds);
        }
        assert!(differ, "two seeds give one order");
    }

    #[test]
    fn victims_are_as_many_as_the_kind_says() {
        let mut deck = Deck::new(&[Kind::EtcdQuorumLost, Kind::ExpertKilled], 1);
        for _ in 0..20 {
            let fault = deck.draw();
            let expected = if fault.kind == Kind::EtcdQuorumLost { 2 } else { 1 };
            assert_eq!(fault.victims.len(), expected, "{fault:?}");
        }
    }
}
