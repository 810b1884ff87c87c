//! The site of a node: the device it computes on and the process it runs in, which other nodes may share.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use chassis::{
    engine::{DeviceThread, Engine, Wait},
    role::Process,
};
use domain::ClusterView;
use model::{Cpu, CpuOptions, Gpu};
use tokio::sync::watch;
use transport::{Doorbell, Hub};

use crate::{
    config::{Device, GpuConfig},
    gpu::open_gpu,
    stall,
};

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
    /// The GPU, where the nodes compute on one.
    pub gpu: Option<Arc<Gpu>>,
    /// Wakes the device's thread.
    pub bell: Doorbell,
    /// Whether the device's thread stands still.
    pub(crate) stalled: watch::Sender<bool>,
}

// === impl Site ===

impl Site {
    /// Opens the processor, and the GPU if `device` is one.
    ///
    /// # Errors
    /// The options do not fit the machine.
    pub fn open(
        processor: &CpuOptions,
        (device, gpu): (&Device, &GpuConfig),
        hub: Hub,
        process: Process,
    ) -> Result<Self> {
        let gpu = open_gpu(device, gpu, processor.compute)?;
        let cpu = Arc::new(Cpu::new(processor).context("section `device`")?);
        let (bell, stalled) = (Doorbell::new(), watch::Sender::new(false));
        Ok(Self { hub, process, cpu, gpu, bell, stalled })
    }

    /// How the device computes: two that say the same give the same bits.
    pub(crate) fn numerics(&self) -> String {
        match &self.gpu {
            None => self.cpu.isa().to_string(),
            Some(gpu) => {
                let (major, minor) = gpu.capability();
                format!("cuda-{major}.{minor}")
            }
        }
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
