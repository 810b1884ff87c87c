//! Joins a cluster: the coordinator's view of it, and sequences on its attention nodes over gRPC.

use std::sync::Arc;

use domain::{ClusterView, Epoch, Health, Load, Role};
use proto::control::{Beat, Registration};
use tokio::sync::{mpsc, watch};
use transport::{
    AddressError, Hub, KeepAlive,
    control::{ControlClient, ControlSettings},
    sequences::Sequences,
};

use crate::config::Config;

/// The attention nodes as a gateway sees them.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The coordinator's last view.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Runs sequences on the view's attention nodes.
    pub sequences: Sequences,
}

/// The gateway's membership; it ends when this is dropped.
#[derive(Debug)]
pub struct Membership {
    control: ControlClient,
    beat: watch::Sender<Beat>,
    hub: Hub,
}

impl Membership {
    /// Registers with the coordinators and keeps on trying while they are away.
    pub fn join(config: &Config, hub: Hub) -> Result<Self, AddressError> {
        let registration = Registration {
            name: config.cluster.name.clone(),
            role: Role::Gateway,
            address: config.server.address.to_string(),
            model_fingerprint: String::new(),
            numerics: String::new(),
            shape: None,
            expert_slots: 0,
            experts_max: None,
            epoch: Epoch(0),
            node: None,
            curves: None,
        };
        let beat = Beat { health: Health::Ready, load: Load::default(), epoch_ready: Epoch(0) };
        let (beat, beats) = watch::channel(beat);
        let settings = ControlSettings::new(config.cluster.coordinators.clone());
        // A gateway sees nothing that decisions are made from.
        let (_, reports) = mpsc::channel(1);
        let control = ControlClient::start(settings, registration, beats, reports, hub.clone())?;
        Ok(Self { control, beat, hub })
    }

    /// The cluster as this member sees it.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        Cluster {
            view: self.control.view(),
            sequences: Sequences::new(self.hub.clone(), KeepAlive::default()),
        }
    }

    /// Tells the cluster that this gateway takes nothing new.
    pub fn leave(&self) {
        self.beat.send_modify(|beat| beat.health = Health::Draining);
    }
}
