//! A GPU that every machine has: the driver is an emulator that runs the kernels' own source on the processor.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::{process::Command, time::timeout};

use super::{PATIENCE, Processes, address, binary, example};
use crate::checkpoint;

/// An emulated GPU, of which each node has one.
#[derive(Clone, Debug)]
pub(super) struct Emulated {
    folder: PathBuf,
    roles: &'static [&'static str],
    /// What else those nodes are told.
    environment: &'static [(&'static str, &'static str)],
}

impl Emulated {
    /// Lets a node compute on one, if nodes of its role do.
    pub(super) fn give(&self, role: &str, command: &mut Command) {
        if self.roles.contains(&role) {
            give(command, &self.folder);
            command.envs(self.environment.iter().copied());
        }
    }
}

impl Processes {
    /// A cluster like [`Processes::cluster`] whose nodes of some roles, `attention` and `expert`, compute on an
    /// emulated GPU each.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn on_gpus(
        roles: &'static [&'static str],
        (attention, experts): (usize, usize),
    ) -> Result<Self> {
        Self::emulating(roles, &[], (attention, experts)).await
    }

    /// An attention node and an expert node on an emulated GPU each, with something more in their environment.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn between_gpus(
        environment: &'static [(&'static str, &'static str)],
    ) -> Result<Self> {
        Self::emulating(&["attention", "expert"], environment, (1, 1)).await
    }

    async fn emulating(
        roles: &'static [&'static str],
        environment: &'static [(&'static str, &'static str)],
        (attention, experts): (usize, usize),
    ) -> Result<Self> {
        let mut all = Self::new()?;
        all.gpu = Some(Emulated { folder: emulated().await?, roles, environment });
        all.joined(attention, experts, &[]).await
    }

    /// Lets the GPU of a node that is to be started fail for good after so many launches.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn break_gpu(&mut self, name: &str, launches: u32) -> Result<()> {
        self.program(name)?.command.env("AMOE_EMULATED_LAUNCHES", launches.to_string());
        Ok(())
    }
}

/// What an expert node on an emulated GPU says when it cannot start because the driver's environment is so, and its exit
/// code.
///
/// # Errors
/// When it does start.
pub async fn refusal(environment: (&str, &str)) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(binary("expert-node")?);
    give(&mut command, &emulated().await?);
    command.arg("--config").arg(example("expert-node")).env(environment.0, environment.1);
    command.env("AMOE_ADMIN__ADDRESS", address().to_string()).env("AMOE_TELEMETRY__LOG", "warn");
    command.env("AMOE_MODEL__PATH", checkpoint("../models/demo")).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.context("it starts")??;
    Ok((output.status.code(), String::from_utf8(output.stderr)?.trim().to_owned()))
}

/// The folder with the emulated driver, built if it is not there.
async fn emulated() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(2).context("a test lies in target/PROFILE/deps")?;
    let folder = target.join("emulated-gpu");
    let build = Command::new(kernels("emulator/build.sh")).arg(&folder).status().await?;
    ensure!(build.success(), "the emulated GPU was not built, which wants a C++ compiler: {build}");
    Ok(folder)
}

/// Lets a node compute on the emulated GPU in `folder`.
fn give(command: &mut Command, folder: &Path) {
    command.env("LD_LIBRARY_PATH", folder).env("AMOE_NODE__DEVICE", "cuda:0");
    // It takes any image: it has the kernels compiled in.
    command.env("AMOE_GPU__KERNELS", kernels("amoe.cu"));
}

/// A file of the kernels' folder.
fn kernels(file: &str) -> PathBuf {
    checkpoint("../kernels/cuda").join(file)
}
