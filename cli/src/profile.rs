//! `amoe profile`: what expert work costs on this machine, as a curve file.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use domain::{CostCurve, Curves, NodeProfile, Profile};
use model::{Checkpoint, Cpu, CpuOptions, ExpertHalf, Isa};

use crate::{
    local::{ComputeName, DEMO},
    stdout,
};

/// Flags of `amoe profile`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Folder of the checkpoint whose experts are run, in Hugging Face's layout.
    #[arg(default_value = DEMO)]
    model: PathBuf,
    /// What is measured.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads that compute; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Precision of products.
    #[arg(long, default_value = "bf16")]
    compute: ComputeName,
    /// Instruction set; the strongest of the machine by default.
    #[arg(long)]
    isa: Option<Isa>,
    /// The node's name in the file.
    #[arg(long, default_value = "cpu")]
    name: String,
    /// Where the curve file goes. It is printed without this.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Devices that can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Device {
    /// The processor.
    Cpu,
}

/// Measures, and writes or prints the file.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let Device::Cpu = flags.device;
    let default = CpuOptions::default();
    let options = CpuOptions {
        threads: flags.threads.unwrap_or(default.threads),
        compute: flags.compute.into(),
        isa: flags.isa,
        ..default
    };
    let cpu = Arc::new(Cpu::new(&options)?);
    let checkpoint = Arc::new(Checkpoint::open(&flags.model)?);
    let mut half = ExpertHalf::new(checkpoint, cpu);
    let Curves { expert, layer } = expert_node::profile(&mut half)?;
    let (name, table) = (flags.name.clone(), table(&expert, &layer));
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
