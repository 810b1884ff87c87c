//! `amoe generate`: a cluster in this process for one prompt, asked over its own gRPC API.

use std::{io::Write, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, anyhow};
use chassis::{
    role::Process,
    shutdown::ShutdownConfig,
    telemetry::{self, TelemetryConfig},
};
use clap::Args;
use gateway::config::ServerConfig;
use proto::v1::{
    GenerateRequest, SamplingParams, generate_request::Prompt, inference_client::InferenceClient,
};
use tonic::Code;

use crate::local::{LocalCluster, LocalFlags};

/// Pause between looks whether the cluster is ready.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// Flags of `amoe generate`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    cluster: LocalFlags,
    /// What the text begins with.
    prompt: String,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_tokens: u32,
    /// 0 takes the likeliest token every time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on past the model's end token.
    #[arg(long)]
    ignore_eos: bool,
}

/// Prints the prompt's continuation as it comes.
pub(crate) fn run(flags: Flags) -> Result<()> {
    let quiet = TelemetryConfig { log: "warn".to_owned(), ..TelemetryConfig::default() };
    telemetry::init(&quiet)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let process =
            Process::new("generate", &ShutdownConfig::default()).map_err(|error| anyhow!(error))?;
        let server = ServerConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..ServerConfig::default()
        };
        let request = request(&flags);
        let cluster =
            LocalCluster::open(flags.cluster, server, Vec::new(), process.clone()).await?;
        let address = cluster.address();
        let serving = tokio::spawn(cluster.serve());
        let printed = tokio::select! {
            printed = print(address, request) => printed,
            () = process.shutdown.requested() => Ok(()),
        };
        process.shutdown.request();
        serving.await??;
        printed
    })
}

fn request(flags: &Flags) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text(flags.prompt.clone())),
        sampling: Some(SamplingParams {
            temperature: Some(flags.temperature),
            max_tokens: Some(flags.max_tokens),
            seed: Some(flags.seed),
            ignore_eos: Some(flags.ignore_eos),
            ..SamplingParams::default()
        }),
        ..GenerateRequest::default()
    }
}

async fn print(address: SocketAddr, request: GenerateRequest) -> Result<()> {
    let mut client = InferenceClient::connect(format!("http://{address}")).await?;
    let mut stream = loop {
        match client.generate_stream(request.clone()).await {
            Ok(stream) => break stream.into_inner(),
            // The nodes are still loading.
            Err(status) if status.code() == Code::Unavailable => {
                tokio::time::sleep(READY_PAUSE).await;
            }
            Err(status) => return Err(anyhow!("{}", status.message())),
        }
    };
    let mut out = std::io::stdout();
    while let Some(part) =
        stream.message().await.map_err(|status| anyhow!("{}", status.message()))?
    {
        out.write_all(part.text.as_bytes()).and_then(|()| out.flush()).context("printing")?;
    }
    out.write_all(b"\n").context("printing")
}
