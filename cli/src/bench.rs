//! `amoe bench`: random prompts for a server of OpenAI's HTTP API, and how fast their answers come.

mod arrivals;
mod ask;
pub(crate) mod events;
mod progress;
mod report;
pub(crate) mod stats;

use std::{fs, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use self::{
    arrivals::{arrivals, prompt},
    ask::{Wish, ask},
    progress::Progress,
    stats::{Goal, Summary, Timing, Unanswered},
};
use crate::{
    http::{Server, was_full},
    stdout,
};

/// Flags of `amoe bench`, which mean what they mean to `vllm bench serve`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Where the server is.
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    base_url: String,
    /// The completions of the server.
    #[arg(long, default_value = "/v1/completions", value_name = "PATH")]
    endpoint: String,
    /// Name of the model that is served.
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    random_input_len: usize,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 48, value_name = "TOKENS")]
    random_output_len: u32,
    /// Prompts are drawn from the token ids below this.
    #[arg(long, default_value_t = 32_000, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: u32,
    /// Requests.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    num_prompts: u32,
    /// Closed loop: so many requests at once, the next one when one has ended.
    #[arg(long, value_name = "N", conflicts_with = "request_rate")]
    max_concurrency: Option<NonZeroUsize>,
    /// Open loop: so many requests a second, whatever has ended; all at once by default.
    #[arg(long, default_value_t = f64::INFINITY, value_name = "PER_SECOND")]
    request_rate: f64,
    /// How requests arrive: 1 is a Poisson process, less comes in bursts, more comes evenly.
    #[arg(long, default_value_t = 1.0)]
    burstiness: f64,
    /// Ask for answers that go on past the model's end token.
    #[arg(long)]
    ignore_eos: bool,
    /// What a good request keeps to: `ttft:MS`, `tpot:MS`, `e2el:MS`.
    #[arg(long, num_args = 1.., value_name = "METRIC:MS")]
    goodput: Vec<Goal>,
    /// Write the results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    save_result: Option<PathBuf>,
    /// Equal flags and seed give equal requests at equal times.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Key of the server.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// A load: what is sent where.
struct Load {
    server: Server,
    wish: Wish,
    progress: Arc<Progress>,
}

/// Loads the server and says what was measured.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    // One thread: the cores are the server's, if it is on this machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let summary = runtime.block_on(measure(flags))?;
    stdout::print(format_args!("{summary}\n"))?;
    if let Some(file) = &flags.save_result {
        let text = format!("{:#}\n", Value::Object(results(flags, &summary)));
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

async fn measure(flags: &Flags) -> Result<Summary> {
    let server = Server::new(&flags.base_url, flags.api_key.clone())?;
    let wish = Wish {
        endpoint: flags.endpoint.clone(),
        model: flags.model.clone(),
        output_tokens: flags.random_output_len,
        ignore_eos: flags.ignore_eos,
    };
    let trial = prompt(flags.random_input_len, flags.vocab, flags.seed, flags.num_prompts as usize);
    ask(&server, &wish, &trial).await.context("the request before the load")?;
    let progress = Progress::new(flags.num_prompts as usize);
    let shown = tokio::spawn(Arc::clone(&progress).show());
    let begun = Instant::now();
    let outcomes = drive(flags, Load { server, wish, progress: Arc::clone(&progress) }).await?;
    let duration = begun.elapsed();
    shown.abort();
    progress.finish();
    let (mut timings, mut failures, mut refused) = (Vec::new(), Vec::new(), 0);
    for outcome in outcomes {
        match outcome {
            Ok(timing) => timings.push(timing),
            Err(error) if was_full(&error) => refused += 1,
            Err(error) => failures.push(error),
        }
    }
    if let Some(error) = failures.first() {
        let failed = failures.len();
        #[expect(clippy::print_stderr, reason = "the table counts them and cannot say why")]
        {
            eprintln!("amoe: {failed} requests failed, the first one so: {error:#}");
        }
    }
    if timings.is_empty() {
        bail!("no request was answered");
    }
    let unanswered = Unanswered { failed: failures.len(), refused };
    Ok(Summary::new(&timings, unanswered, duration, &flags.goodput))
}

/// Sends every request when it is due; the outcomes as they come.
async fn drive(flags: &Flags, load: Load) -> Result<Vec<Result<Timing>>> {
    let count = flags.num_prompts as usize;
    let due = arrivals(count, flags.request_rate, flags.burstiness, flags.seed)?;
    let at_once = flags.max_concurrency.map_or(count, |most| most.get().min(count));
    let (load, seats) = (Arc::new(load), Arc::new(Semaphore::new(at_once)));
    let mut running = JoinSet::new();
    let begun = tokio::time::Instant::now();
    for (index, due) in due.into_iter().enumerate() {
        let prompt = prompt(flags.random_input_len, flags.vocab, flags.seed, index);
        tokio::time::sleep_until(begun + due).await;
        let seat = Arc::clone(&seats).acquire_owned().await?;
        let load = Arc::clone(&load);
        running.spawn(async move {
            let outcome = ask(&load.server, &load.wish, &prompt).await;
            load.progress.count(&outcome);
            drop(seat);
            outcome
        });
    }
    Ok(running.join_all().await)
}

/// What was measured and what was asked for.
fn results(flags: &Flags, summary: &Summary) -> Map<String, Value> {
    let mut keys = summary.to_json();
    let rate = flags.request_rate;
    let asked = json!({
        "backend": "openai",
        "endpoint": flags.endpoint,
        "model_id": flags.model,
        "num_prompts": flags.num_prompts,
        "random_input_len": flags.random_input_len,
        "random_output_len": flags.random_output_len,
        "max_concurrency": flags.max_concurrency,
        // JSON has no infinity.
        "request_rate": if rate.is_finite() { json!(rate) } else { json!("inf") },
        "burstiness": flags.burstiness,
        "seed": flags.seed,
    });
    if let Value::Object(asked) = asked {
        keys.extend(asked);
    }
    keys
}
