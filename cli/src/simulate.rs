//! `amoe simulate`: run scenarios in virtual time and say what they came to.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use simulator::{results::Results, scenario::Scenario};

use crate::stdout;

/// Flags of `amoe simulate`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// The scenarios; simulator/README.md says how one is written.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print results and runs as JSON.
    #[arg(long)]
    json: bool,
    /// Draw throughput and latency against load, and what nodes did, into this folder.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Replaces the seeds of the file.
    #[arg(long)]
    seed: Option<u64>,
    /// Only the run or study of this name.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
}

/// Runs the scenarios and prints what they came to.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results = Results::default();
    for file in &flags.files {
        let mut scenario = Scenario::read(file, flags.seed)?;
        if let Some(name) = &flags.run {
            scenario = scenario.only(name)?;
        }
        results.extend([scenario.run(threads)?]);
    }
    if let Some(folder) = &flags.plot {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create folder {}", folder.display()))?;
        for (name, picture) in results.pictures() {
            let path = folder.join(name);
            std::fs::write(&path, picture)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    stdout::print(match flags.json {
        true => serde_json::to_string_pretty(&results)? + "\n",
        false => results.to_string(),
    })
}
