//! Conversions of the coordinator's advice.

use std::sync::Arc;

use domain::{Digest, Epoch, Guidance, Leased, NodeId};

use crate::internal as wire;

impl From<&Guidance> for wire::Guidance {
    fn from(guidance: &Guidance) -> Self {
        Self {
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

/// Whether the advice fits a model is seen by whoever follows it: it comes without one.
impl From<wire::Guidance> for Guidance {
    fn from(guidance: wire::Guidance) -> Self {
        Self {
            lease: guidance.lease.map(|lease| {
                let nodes = lease.nodes.into_iter().map(NodeId).collect();
                Arc::new(Leased { epoch: Epoch(lease.epoch), nodes })
            }),
            digest: guidance.digest.map(|digest| Digest { rows: digest.rows, pairs: digest.pairs }),
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
        assert_eq!(Guidance::from(wire::Guidance::from(&guidance)), guidance);
        assert_eq!(Guidance::from(wire::Guidance::from(&Guidance::default())), Guidance::default());
    }
}
