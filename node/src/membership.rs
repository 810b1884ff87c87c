//! A node's place in its cluster: registered under a name, numbered by the coordinator, told of every view.

use std::sync::Arc;

use anyhow::Result;
use domain::{ClusterView, Curves, Epoch, Guidance, Health, Load, ModelShape, Role};
use proto::control::{Beat, Registration};
use tokio::{sync::watch, task::JoinHandle};
use transport::{
    control::{ControlClient, ControlSettings},
    link::Identity,
};

use crate::{Reports, Site, reports, stall};

/// What a node says of itself when it joins.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Unique in the cluster.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where peers reach it.
    pub address: String,
    /// Weights and the precision of rows.
    pub model_fingerprint: String,
    /// The model's sizes.
    pub shape: ModelShape,
    /// Experts it has room for; 0 for an attention node.
    pub expert_slots: u32,
    /// Experts it holds at most at once, those of two plans together.
    pub experts_max: Option<u32>,
    /// What work costs on an expert node, if it was measured.
    pub curves: Option<Curves>,
}

/// A node that is a member. Dropping it ends the session with the coordinator.
#[derive(Debug)]
pub struct Membership {
    /// This node to its peers.
    pub identity: Identity,
    /// What it reports at every heartbeat.
    pub beats: watch::Sender<Beat>,
    /// The coordinator's last view.
    pub views: watch::Receiver<Arc<ClusterView>>,
    /// The coordinator's last advice.
    pub guidance: watch::Receiver<Arc<Guidance>>,
    /// What it reports in between.
    pub reports: Reports,
    _control: ControlClient,
    tasks: [JoinHandle<()>; 3],
}

impl Membership {
    /// Registers with a coordinator and waits until it has numbered the node. None if a stop was
    /// asked for meanwhile. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A coordinator's address cannot be used.
    pub async fn join(
        newcomer: Newcomer,
        coordinators: &[String],
        site: &Site,
    ) -> Result<Option<Self>> {
        let (beats, beats_seen) = watch::channel(Beat {
            health: Health::Joining,
            load: Load::default(),
            epoch_ready: Epoch::default(),
        });
        let model_fingerprint = newcomer.model_fingerprint.clone();
        let registration = Registration {
            name: newcomer.name,
            role: newcomer.role,
            address: newcomer.address,
            model_fingerprint: newcomer.model_fingerprint,
            numerics: site.numerics(),
            shape: Some(newcomer.shape),
            expert_slots: newcomer.expert_slots,
            experts_max: newcomer.experts_max,
            epoch: Epoch::default(),
            node: None,
            curves: newcomer.curves,
        };
        let (reports, taken) = reports::channel();
        let settings = ControlSettings::new(coordinators.to_vec());
        let hub = site.hub.clone();
        let control = ControlClient::start(settings, registration, beats_seen, taken, hub)?;
        let mut welcome = control.welcome();
        let node = tokio::select! {
            welcome = welcome.wait_for(Option::is_some) => welcome?.map(|welcome| welcome.node_id),
            () = site.process.shutdown.requested() => None,
        };
        let Some(node) = node else { return Ok(None) };
        let views = control.view();
        let tasks = [
            tokio::spawn(site.clone().wake_on_news(views.clone())),
            tokio::spawn(stall::confess(beats.clone(), site.stalled.subscribe())),
            tokio::spawn(reports.clone().ask(control.welcome(), site.bell.clone())),
        ];
        let identity = Identity { node, model_fingerprint };
        let guidance = control.guidance();
        Ok(Some(Self { identity, beats, views, guidance, reports, _control: control, tasks }))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
