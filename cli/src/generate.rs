//! `amoe generate`: a cluster in this process for one prompt, asked over its own gRPC API.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Result, anyhow};
use chassis::{
    role::Process,
    shutdown::ShutdownConfig,
    telemetry::{self, TelemetryConfig},
};
use clap::Args;
use gateway::config::{SamplingDefaults, ServerConfig};
use proto::v1::{
    GenerateRequest, SamplingParams, TokenIds, generate_request::Prompt,
    inference_client::InferenceClient,
};
use serde::Serialize;
use serde_json::json;
use tonic::Code;
use trust::TrustConfig;

use crate::{
    http::Server,
    local::{LocalCluster, LocalFlags},
    logits, stdout,
};

/// Pause between looks whether the cluster is ready.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// Flags of `amoe generate`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    cluster: LocalFlags,
    #[command(flatten)]
    prompt: PromptFlags,
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
    /// Write the logits of the prompt's positions, too: tensor `logits`, f32 [positions, vocab].
    #[arg(long, value_name = "FILE.safetensors")]
    logits: Option<PathBuf>,
    /// Print one line of JSON at the end, with `token_ids` and `text`, in place of the text as it comes.
    #[arg(long)]
    json: bool,
}

/// What to go on from, one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PromptFlags {
    /// What the text begins with.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The same as token ids: "1 2 3".
    #[arg(long)]
    ids: Option<Ids>,
}

/// Token ids with spaces or commas between them.
#[derive(Clone, Debug)]
struct Ids(Vec<u32>);

/// What was generated.
#[derive(Debug, Default, Serialize)]
struct Generated {
    token_ids: Vec<u32>,
    text: String,
}

/// Prints the prompt's continuation.
pub(crate) fn run(flags: Flags) -> Result<()> {
    let quiet = TelemetryConfig { log: "error".to_owned(), ..TelemetryConfig::default() };
    telemetry::init(&quiet)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let prompt = runtime.block_on(ask_cluster(&flags))?;
    match (flags.logits, prompt) {
        (Some(file), Some(prompt)) => logits::write(&file, &flags.cluster, &prompt),
        _ => Ok(()),
    }
}

/// Runs a cluster for one request; the prompt's token ids, unless a signal came first.
async fn ask_cluster(flags: &Flags) -> Result<Option<Vec<u32>>> {
    let process = Process::new("generate", &ShutdownConfig::default(), &TrustConfig::default())
        .map_err(|error| anyhow!(error))?;
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = ServerConfig { address, ..ServerConfig::default() };
    // The flags say it all: the same flags, the same text, whatever the model recommends.
    let model = flags.cluster.public_model(SamplingDefaults::Openai);
    let cluster =
        LocalCluster::open(flags.cluster.clone(), model, server, None, process.clone()).await?;
    let address = cluster.address();
    let serving = tokio::spawn(cluster.serve());
    let asked = tokio::select! {
        asked = ask(address, flags) => asked.map(Some),
        () = process.shutdown.requested() => Ok(None),
    };
    process.shutdown.request();
    serving.await??;
    asked
}

/// Prints the answer; the prompt's token ids.
async fn ask(address: SocketAddr, flags: &Flags) -> Result<Vec<u32>> {
    let generated = generate(address, request(flags), !flags.json).await?;
    let json = if flags.json { serde_json::to_string(&generated)? } else { String::new() };
    stdout::print(json + "\n")?;
    match (&flags.prompt.prompt, &flags.prompt.ids) {
        (Some(text), _) => tokenize(address, text).await,
        (None, ids) => Ok(ids.iter().flat_map(|ids| &ids.0).copied().collect()),
    }
}

fn request(flags: &Flags) -> GenerateRequest {
    let PromptFlags { prompt, ids } = &flags.prompt;
    let text = prompt.clone().map(Prompt::Text);
    let ids = ids.clone().map(|ids| Prompt::Tokens(TokenIds { ids: ids.0 }));
    GenerateRequest {
        prompt: text.or(ids),
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

async fn generate(address: SocketAddr, request: GenerateRequest, print: bool) -> Result<Generated> {
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
    let mut generated = Generated::default();
    while let Some(part) =
        stream.message().await.map_err(|status| anyhow!("{}", status.message()))?
    {
        if print {
            stdout::print(&part.text)?;
        }
        generated.token_ids.extend(part.token_ids);
        generated.text += &part.text;
    }
    Ok(generated)
}

/// The ids that the gateway made of a prompt.
async fn tokenize(address: SocketAddr, prompt: &str) -> Result<Vec<u32>> {
    let server = Server::new(&format!("http://{address}"), None)?;
    let mut answer = server.answer("/tokenize", &json!({"prompt": prompt})).await?;
    Ok(serde_json::from_value(answer["tokens"].take())?)
}

// === impl Ids ===

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ids: Vec<u32> = text
            .split(|between: char| between.is_whitespace() || between == ',')
            .filter(|id| !id.is_empty())
            .map(|id| {
                let wrong =
                    |_| format!("`{id}` is no token id, expected numbers such as \"1 2 3\"");
                id.parse().map_err(wrong)
            })
            .collect::<Result<_, _>>()?;
        if ids.is_empty() {
            return Err("expected at least one token id".to_owned());
        }
        Ok(Self(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::Ids;

    #[test]
    fn ids_are_numbers() {
        assert_eq!("1 2,  30\n".parse::<Ids>().map(|ids| ids.0), Ok(vec![1, 2, 30]));
        for (text, sentence) in [
            ("1 -2", "`-2` is no token id, expected numbers such as \"1 2 3\""),
            (" ", "expected at least one token id"),
        ] {
            assert_eq!(text.parse::<Ids>().map(|ids| ids.0), Err(sentence.to_owned()));
        }
    }
}
