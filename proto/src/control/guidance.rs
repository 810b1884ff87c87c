//! Conversions of the coordinator's advice.

use std::sync::Arc;

use domain::{Digest, Epoch, Guidance, Holder, Leased, NodeId};

use crate::internal as wire;

/// What a session is told next: a lease that it was told before is not sent again.
#[must_use]
pub fn next_guidance(guidance: &Guidance, told: Option<&Arc<Leased>>) -> wire::Guidance {
    let same = |(lease, told)| Arc::ptr_eq(lease, told);
    if guidance.lease.as_ref().zip(told).is_some_and(same) {
        let digest_only = Guidance { lease: None, digest: guidance.digest.clone() };
        return wire::Guidance { same_lease: true, ..wire::Guidance::from(&digest_only) };
    }
    guidance.into()
}

/// What a session was told, which may refer to what it was `told` before.
///
/// Whether the advice fits a model is seen by whoever follows it: it comes without one.
#[must_use]
pub fn guidance(wire: wire::Guidance, told: &Guidance) -> Guidance {
    let lease = wire
        .lease
        .map(|lease| Arc::new(Leased { epoch: Epoch(lease.epoch), holders: holders(lease) }));
    Guidance {
        lease: if wire.same_lease { told.lease.clone() } else { lease },
        digest: wire.digest.map(|digest| Digest { rows: digest.rows, pairs: digest.pairs }),
    }
}

/// Nodes that are missing at the end hold nothing.
fn holders(lease: wire::Lease) -> Vec<Vec<Holder>> {
    let whole = |&node: &u32| vec![Holder { node: NodeId(node), part: 1 }];
    if lease.counts.is_empty() {
        return lease.nodes.iter().map(whole).collect();
    }
    let holder = |(node, part)| Holder { node: NodeId(node), part };
    let mut all = lease.nodes.into_iter().zip(lease.parts).map(holder);
    lease.counts.iter().map(|&count| all.by_ref().take(count as usize).collect()).collect()
}

fn lease(leased: &Leased) -> wire::Lease {
    let all = || leased.holders.iter().flatten();
    let nodes = all().map(|holder| holder.node.0).collect();
    if leased.holders.iter().all(|holders| holders.len() == 1) {
        return wire::Lease { epoch: leased.epoch.0, nodes, ..wire::Lease::default() };
    }
    let count = |holders: &Vec<Holder>| u32::try_from(holders.len()).unwrap_or(u32::MAX);
    wire::Lease {
        epoch: leased.epoch.0,
        counts: leased.holders.iter().map(count).collect(),
        nodes,
        parts: all().map(|holder| holder.part).collect(),
    }
}

impl From<&Guidance> for wire::Guidance {
    fn from(guidance: &Guidance) -> Self {
        Self {
            same_lease: false,
            lease: guidance.lease.as_deref().map(lease),
            digest: guidance.digest.as_ref().map(|digest| wire::Digest {
                rows: digest.rows.clone(),
                pairs: digest.pairs.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_survives_the_wire() {
        let whole = |node| vec![Holder { node: NodeId(node), part: 1 }];
        let shared = [4, 5].map(|node| Holder { node: NodeId(node), part: node }).to_vec();
        let guidance = |holders| Guidance {
            lease: Some(Arc::new(Leased { epoch: Epoch(3), holders })),
            digest: Some(Digest { rows: vec![1, 2, 3], pairs: vec![4, 5] }),
        };
        there_and_back(&guidance(vec![whole(4), whole(5)]));
        there_and_back(&guidance(vec![whole(4), Vec::new(), shared]));
    }

    fn there_and_back(guidance: &Guidance) {
        let nothing = Guidance::default();
        let first = next_guidance(guidance, None);
        assert_eq!(super::guidance(first, &nothing), *guidance);
        let again = next_guidance(guidance, guidance.lease.as_ref());
        assert!(again.same_lease && again.lease.is_none());
        assert_eq!(super::guidance(again, guidance), *guidance);
        let none = next_guidance(&nothing, guidance.lease.as_ref());
        assert_eq!(super::guidance(none, guidance), nothing);
    }
}
