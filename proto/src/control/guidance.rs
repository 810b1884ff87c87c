//! Conversions of the coordinator's advice.

use std::sync::Arc;

use domain::{Digest, Epoch, Guidance, Leased, NodeId};

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
    let lease = wire.lease.map(|lease| {
        let nodes = lease.nodes.into_iter().map(NodeId).collect();
        Arc::new(Leased { epoch: Epoch(lease.epoch), nodes })
    });
    Guidance {
        lease: if wire.same_lease { told.lease.clone() } else { lease },
        digest: wire.digest.map(|digest| Digest { rows: digest.rows, pairs: digest.pairs }),
    }
}

impl From<&Guidance> for wire::Guidance {
    fn from(guidance: &Guidance) -> Self {
        Self {
            same_lease: false,
            lease: guidance.lease.as_ref().map(|lease| wire::Lease {
                epoch: lease.epoch.0,
                nodes: lease.nodes.iter().map(|node| node.0).collect(),
            }),
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
        let guidance = Guidance {
            lease: Some(Arc::new(Leased { epoch: Epoch(3), nodes: vec![NodeId(4), NodeId(5)] })),
            digest: Some(Digest { rows: vec![1, 2, 3], pairs: vec![4, 5] }),
        };
        let nothing = Guidance::default();
        let first = next_guidance(&guidance, None);
        assert_eq!(super::guidance(first, &nothing), guidance);
        let again = next_guidance(&guidance, guidance.lease.as_ref());
        assert!(again.same_lease && again.lease.is_none());
        assert_eq!(super::guidance(again, &guidance), guidance);
        let none = next_guidance(&nothing, guidance.lease.as_ref());
        assert_eq!(super::guidance(none, &guidance), nothing);
    }
}
