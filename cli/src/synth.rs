//! `amoe synth`: a checkpoint with random weights, for measuring.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use model::{SynthSpec, synth};

use crate::stdout;

/// Flags of `amoe synth`. The defaults make a model of 701 million parameters, 1.4 GB.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Architecture, by its name in `config.json`.
    #[arg(long, default_value = "qwen3_moe")]
    arch: Arch,
    /// Equal flags and seed give equal files.
    #[arg(long, default_value_t = SynthSpec::default().seed)]
    seed: u64,
    /// Decoder layers.
    #[arg(long, default_value_t = SynthSpec::default().layers)]
    layers: usize,
    /// Experts per layer.
    #[arg(long, default_value_t = SynthSpec::default().experts)]
    experts: usize,
    /// Experts per token.
    #[arg(long, default_value_t = SynthSpec::default().top_k)]
    top_k: usize,
    /// Width of the hidden state.
    #[arg(long, default_value_t = SynthSpec::default().hidden)]
    hidden: usize,
    /// Width of an expert.
    #[arg(long, default_value_t = SynthSpec::default().width)]
    moe_intermediate: usize,
    /// Attention heads.
    #[arg(long, default_value_t = SynthSpec::default().heads)]
    heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = SynthSpec::default().kv_heads)]
    kv_heads: usize,
    /// Width of a head.
    #[arg(long, default_value_t = SynthSpec::default().head_dim)]
    head_dim: usize,
    /// Entries of the vocabulary.
    #[arg(long, default_value_t = SynthSpec::default().vocab)]
    vocab: usize,
    /// Exponent of the experts' popularity: 0 is even, 1 the usual skew.
    #[arg(long, default_value_t = SynthSpec::default().zipf)]
    router_zipf: f64,
    /// Projections and experts in fp8, with a scale for each block of 128 x 128.
    #[arg(long)]
    fp8: bool,
}

/// Architectures that can be written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Arch {
    /// Qwen3-MoE.
    #[value(name = "qwen3_moe")]
    Qwen3Moe,
}

/// Writes the checkpoint and says what it holds.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let Arch::Qwen3Moe = flags.arch;
    let spec = SynthSpec {
        seed: flags.seed,
        layers: flags.layers,
        experts: flags.experts,
        top_k: flags.top_k,
        hidden: flags.hidden,
        width: flags.moe_intermediate,
        heads: flags.heads,
        kv_heads: flags.kv_heads,
        head_dim: flags.head_dim,
        vocab: flags.vocab,
        zipf: flags.router_zipf,
        fp8: flags.fp8,
        ..SynthSpec::default()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let report = synth(&spec, &flags.out, threads)?;
    let (folder, parameters, bytes) = (flags.out.display(), report.parameters, report.bytes);
    stdout::print(format_args!("{folder}: {parameters} parameters, {bytes} bytes\n"))
}
