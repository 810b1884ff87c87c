//! The site of a node: the device it computes on and the process it runs in, which other nodes may share.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use chassis::{
    engine::{DeviceThread, Engine, Wait},
    role::Process,
};
use domain::ClusterView;
use model::{Cpu, CpuOptions};
use tokio::sync::watch;
use transport::{Doorbell, Hub};

use crate::stall;

/// One device with the thread that will drive it, in one process.
///
/// Nodes that share a site take turns on its thread, so what one hands to the other is picked up
/// without a thread being woken.
#[derive(Clone, Debug)]
pub struct Site {
    /// Names within the process.
    pub hub: Hub,
    /// Registry, readiness, shutdown.
    pub process: Process,
    /// The processor.
    pub cpu: Arc<Cpu>,
    /// Wakes the device's thread.
    pub bell: Doorbell,
    /// Whether the device's thread stands still.
    pub(crate) stalled: watch::Sender<bool>,
}

// === impl Site ===

impl Site {
    /// Opens the device.
    ///
    /// # Errors
    /// The options do not fit the machine.
    pub fn open(device: &CpuOptions, hub: Hub, process: Process) -> Result<Self> {
        let cpu = Arc::new(Cpu::new(device).context("section `device`")?);
        Ok(Self { hub, process, cpu, bell: Doorbell::new(), stalled: watch::Sender::new(false) })
    }

    /// Drives engines on this site's thread until all have finished.
    ///
    /// # Errors
    /// The thread cannot be started, or an engine died.
    pub async fn drive(&self, engines: Vec<Box<dyn Engine + Send>>) -> Result<()> {
        let bell = Bell(self.bell.clone());
        let thread = DeviceThread::spawn("device", bell, engines).context("starting a thread")?;
        let (readiness, stalled) = (self.process.readiness.clone(), self.stalled.clone());
        let noticing = stall::notice(thread.turns(), stall::LOOK, readiness, stalled);
        tokio::select! {
            finished = thread.finished() => Ok(finished?),
            () = noticing => Ok(()),
        }
    }

    /// Rings the bell for what comes to engines without a mailbox: views and the stop.
    pub(crate) async fn wake_on_news(self, mut views: watch::Receiver<Arc<ClusterView>>) {
        loop {
            let more = tokio::select! {
                changed = views.changed() => changed.is_ok(),
                () = self.process.shutdown.requested() => false,
            };
            self.bell.ring();
            if !more {
                return;
            }
        }
    }
}

/// The doorbell as the device's thread waits on it.
#[derive(Debug)]
struct Bell(Doorbell);

impl Wait for Bell {
    fn ready(&self) -> bool {
        self.0.ready()
    }

    fn wait(&self, until: Option<Instant>) {
        self.0.wait(until);
    }
}
