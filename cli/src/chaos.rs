//! `amoe chaos`: breaks a cluster again and again under load, and says whether clients noticed.

mod cluster;
mod effect;
mod fault;
mod load;
mod picture;
mod processes;
mod questions;
mod record;
mod report;
mod told;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use tokio::time::{Instant, sleep, sleep_until};

use self::{
    cluster::Cluster,
    effect::{Cause, Effect, Mark},
    fault::{Deck, Kind},
    load::Load,
    report::{Outcome, Setup, load_average},
};
use crate::{local::DEMO, stdout};

/// Undisturbed time before the first fault, and at least that much between two.
const CALM: Duration = Duration::from_secs(2);

/// Flags of `amoe chaos`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Start a cluster on this machine and make its faults: two gateways, coordinators and attention
    /// nodes, three members of etcd, four expert nodes. Their programs lie beside this one; etcd is found by PATH.
    #[arg(long, required_unless_present = "endpoint")]
    local: bool,
    /// Load the gateway of a cluster whose faults somebody else makes. With several, a request that is
    /// cut off is sent to the next under the same id.
    #[arg(long, value_name = "URL", conflicts_with = "local")]
    endpoint: Vec<String>,
    /// Read from standard input what is done to that cluster: `WHAT: WHOM` when a fault strikes, an
    /// empty line when it is over.
    #[arg(long, requires = "endpoint")]
    told: bool,
    /// Folder of the checkpoint that the local cluster serves.
    #[arg(long, value_name = "FOLDER", default_value = DEMO)]
    model: PathBuf,
    /// How long clients ask.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
    /// Equal seeds give equal faults and requests.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Time from one fault to the next; it takes longer where a process takes longer to come back.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = value_parser!(u64).range(4..))]
    every: u64,
    /// Kinds of faults, all by default. Each that is named strikes at least once, whatever time that takes.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    faults: Vec<Kind>,
    /// Replicas of every expert: 1 or 2 of them.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u8).range(1..=2))]
    replicas: u8,
    /// Requests at once.
    #[arg(long, value_name = "N", default_value = "8")]
    clients: NonZeroUsize,
    /// Key of the gateways.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write the outcome into its place in this document, and a picture beside it.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs it all. An error when a request failed or an answer changed.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    // One thread: the cores are the cluster's, if it is on this machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match flags.local {
            true => local(flags).await,
            false => foreign(flags).await,
        }
    })?;
    let json = flags.json.then(|| format!("{}\n", outcome.to_json()));
    stdout::print(json.unwrap_or_else(|| outcome.to_string()))?;
    if let Some(document) = &flags.report {
        outcome.write(document)?;
    }
    if !outcome.is_good() {
        let counts = &outcome.counts;
        bail!("{} requests failed, {} answers changed", counts.failed, counts.changed);
    }
    Ok(())
}

/// A cluster of this machine. Its files are kept when it did not do what it should.
async fn local(flags: &Flags) -> Result<Outcome> {
    let mut cluster = Cluster::new(&flags.model, flags.replicas.into())?;
    let outcome = disturbed(flags, &mut cluster).await;
    if outcome.as_ref().is_ok_and(Outcome::is_good) {
        return outcome;
    }
    let logs = cluster.processes.keep();
    #[expect(clippy::print_stderr, reason = "where to look")]
    {
        eprintln!("amoe: the logs of all processes are in {}", logs.display());
    }
    outcome
}

async fn disturbed(flags: &Flags, cluster: &mut Cluster) -> Result<Outcome> {
    let setup = setup(flags);
    cluster.start().await?;
    let load = Arc::new(Load::prepare(&cluster.urls(), None, false, flags.seed).await?);
    let clients = tokio::spawn(Arc::clone(&load).run(flags.clients.get()));
    let marks = strike(flags, cluster, &load).await;
    let end = load.stop();
    clients.await?;
    let marks = marks?;
    cluster.stop().await?;
    Ok(outcome(setup, &load, &marks, end))
}

/// One fault after the other until the time is over.
async fn strike(flags: &Flags, cluster: &mut Cluster, load: &Load) -> Result<Vec<Mark>> {
    let mut deck = Deck::new(&flags.faults, flags.seed);
    let every = Duration::from_secs(flags.every);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(flags.seconds);
    let (mut due, mut marks) = (begun + CALM * 2, Vec::new());
    while marks.len() < flags.faults.len() || due.max(Instant::now() + CALM) + every <= end {
        sleep_until(due.max(Instant::now() + CALM)).await;
        due = Instant::now() + every;
        let fault = deck.draw();
        let struck = load.record.now();
        let harm = fault.strike(cluster, load).await?;
        // Up to here a drained process has ended and one that was added has come.
        sleep_until(due - every * 3 / 5).await;
        let healed = load.record.now();
        fault.heal(harm, cluster, load).await?;
        let whole = load.record.now();
        let (cause, whom) = (Cause::Made(fault.kind), fault.whom());
        marks.push(Mark { cause, whom, struck, healed, whole });
    }
    sleep_until(end).await;
    Ok(marks)
}

/// Load and checks alone.
async fn foreign(flags: &Flags) -> Result<Outcome> {
    let (setup, key) = (setup(flags), flags.api_key.as_deref());
    let load = Arc::new(Load::prepare(&flags.endpoint, key, true, flags.seed).await?);
    let clients = tokio::spawn(Arc::clone(&load).run(flags.clients.get()));
    let mut marks = Vec::new();
    let told = async {
        if flags.told {
            told::take(told::lines(), &load.record, &mut marks).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = sleep(Duration::from_secs(flags.seconds)) => {}
        () = told => {}
    }
    let end = load.stop();
    clients.await?;
    Ok(outcome(setup, &load, &marks, end))
}

fn setup(flags: &Flags) -> Setup {
    Setup {
        replicas: flags.local.then_some(flags.replicas),
        clients: flags.clients.get(),
        seed: flags.seed,
        busy: load_average(),
    }
}

fn outcome(setup: Setup, load: &Load, marks: &[Mark], end: Duration) -> Outcome {
    let (mut arrivals, counts) = load.record.take();
    // What was asked before the end and came later is no throughput.
    arrivals.retain(|arrival| arrival.at <= end);
    let effects = Effect::all(marks, &arrivals, end);
    Outcome { setup, counts, effects, arrivals, end }
}
