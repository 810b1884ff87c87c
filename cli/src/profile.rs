//! `amoe profile`: what expert work costs on this machine, as a curve file.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Args;
use domain::{CostCurve, Curves, NodeProfile, Profile};
use model::{Checkpoint, Cpu, CpuOptions, Isa};
use node::open_gpu;

use crate::{
    gpu::DeviceFlags,
    local::{ComputeName, DEMO},
    stdout,
};

/// Flags of `amoe profile`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Folder of the checkpoint whose experts are run, in Hugging Face's layout.
    #[arg(default_value = DEMO)]
    model: PathBuf,
    #[command(flatten)]
    device: DeviceFlags,
    /// Threads that compute; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Precision of products.
    #[arg(long, default_value = "bf16")]
    compute: ComputeName,
    /// Instruction set; the strongest of the machine by default.
    #[arg(long)]
    isa: Option<Isa>,
    /// The node's name in the file; by default the device's.
    #[arg(long)]
    name: Option<String>,
    /// Where the curve file goes. It is printed without this.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Measures, and writes or prints the file.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let gpu = flags.device.gpu();
    let default = CpuOptions::default();
    let options = CpuOptions {
        threads: flags.threads.unwrap_or(default.threads),
        compute: flags.compute.into(),
        isa: flags.isa,
        ..default
    };
    let opened = open_gpu(&flags.device.device, &gpu, options.compute)?;
    let cpu = Arc::new(Cpu::new(&options)?);
    let checkpoint = Checkpoint::open(&flags.model)?;
    let gpu = opened.as_ref().map(|opened| (opened, &gpu));
    let pairs = expert_node::config::default_batching().drain_max;
    let mut half = expert_node::open_half(checkpoint, &cpu, gpu, pairs)?;
    let Curves { expert, layer } = expert_node::profile(&mut half)?;
    let name = flags.name.clone().unwrap_or_else(|| flags.device.device.to_string());
    let table = table(&expert, &layer);
    let text =
        serde_json::to_string(&Profile { nodes: vec![NodeProfile { name, layer, expert }] })?;
    let Some(file) = &flags.out else {
        return stdout::print(text + "\n");
    };
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    stdout::print(table)
}

/// Both curves for people.
fn table(expert: &CostCurve, layer: &CostCurve) -> String {
    let rows = |title: &str, curve: &CostCurve| {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let row = |&(tokens, ns): &(u32, u64)| format!("{tokens:>8} {:>12.1}\n", ns as f64 / 1e3);
        format!(
            "{title}\n  tokens           µs\n{}",
            curve.edges().iter().map(row).collect::<String>()
        )
    };
    rows("one activated expert", expert) + &rows("a layer of a node", layer)
}
