//! `amoe serve`: a whole cluster in one process, until a signal stops it.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::Result;
use chassis::{
    admin::AdminConfig,
    role::Process,
    shutdown::ShutdownConfig,
    telemetry::{self, TelemetryConfig},
    traces::TracingConfig,
};
use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use gateway::config::{ModelConfig, SamplingDefaults, ServerConfig};
use trust::{Keys, KeysConfig, PublicTlsConfig, TrustConfig};

use crate::local::{LocalCluster, LocalFlags};

/// Flags of `amoe serve`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    cluster: LocalFlags,
    /// Address of HTTP and gRPC.
    #[arg(long, default_value = "0.0.0.0", env = "AMOE_SERVE_HOST")]
    host: IpAddr,
    /// Port of HTTP and gRPC; 0 takes any.
    // Kubernetes sets AMOE_PORT, and not to a number, next to a service called amoe.
    #[arg(long, default_value_t = 8000, env = "AMOE_SERVE_PORT")]
    port: u16,
    /// Origins whose pages may ask from a browser: `https://chat.example.org`, or `*` for any.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', env = "AMOE_ALLOWED_ORIGINS")]
    allowed_origins: Vec<String>,
    /// Names that requests may use; by default the folder's.
    #[arg(long, value_name = "NAME", env = "AMOE_SERVED_MODEL_NAME")]
    served_model_name: Vec<String>,
    /// A chat template in a file of its own, in place of the model's.
    #[arg(long, value_name = "FILE", env = "AMOE_CHAT_TEMPLATE")]
    chat_template: Option<PathBuf>,
    /// How to sample where a request does not say.
    #[arg(long, default_value = "model", env = "AMOE_SAMPLING_DEFAULTS")]
    sampling_defaults: DefaultsName,
    /// Requests must carry one of these keys as a bearer token.
    #[arg(long, value_name = "KEY", env = "AMOE_API_KEY", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    api_key: Vec<String>,
    /// A file of keys, as `amoe keys new` makes them, in place of `--api-key`.
    #[arg(long, value_name = "FILE", env = "AMOE_KEYS", conflicts_with = "api_key")]
    keys: Option<PathBuf>,
    /// Serve HTTPS with this certificate, as PEM.
    #[arg(long, value_name = "FILE", env = "AMOE_SSL_CERTFILE", requires = "ssl_keyfile")]
    ssl_certfile: Option<PathBuf>,
    /// The key of the certificate, as PEM.
    #[arg(long, value_name = "FILE", env = "AMOE_SSL_KEYFILE", requires = "ssl_certfile")]
    ssl_keyfile: Option<PathBuf>,
    /// Open an admin door there, for operators: `/console`, `/plan` and `/metrics`.
    #[arg(long, value_name = "HOST:PORT", env = "AMOE_SERVE_ADMIN")]
    admin: Option<SocketAddr>,
    /// What is logged: `info`, `warn,gateway=debug`.
    #[arg(long, default_value = "info", env = "AMOE_LOG")]
    log: String,
    /// Send traces of requests to this collector, by OTLP over gRPC: `http://HOST:PORT`.
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_traces_endpoint: Option<String>,
    /// How long work in progress may take to finish after a stop.
    #[arg(long, default_value_t = 45_000, value_name = "MS", env = "AMOE_DRAIN_MS")]
    drain_ms: u64,
}

/// Sampling defaults by their names.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DefaultsName {
    /// As the model's `generation_config.json` recommends.
    Model,
    /// As OpenAI's API does: temperature 1, from the whole vocabulary.
    Openai,
}

impl From<DefaultsName> for SamplingDefaults {
    fn from(name: DefaultsName) -> Self {
        match name {
            DefaultsName::Model => Self::Model,
            DefaultsName::Openai => Self::Openai,
        }
    }
}

/// Serves until SIGTERM or SIGINT, then drains.
pub(crate) fn run(flags: Flags) -> Result<()> {
    telemetry::init(&TelemetryConfig { log: flags.log, ..TelemetryConfig::default() })?;
    let server = ServerConfig {
        address: SocketAddr::new(flags.host, flags.port),
        allowed_origins: flags.allowed_origins,
        ..ServerConfig::default()
    };
    let shutdown = ShutdownConfig { drain_ms: flags.drain_ms };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let trust = TrustConfig { tls: None, keys: flags.keys.map(|file| KeysConfig { file }) };
    let public_tls = flags.ssl_certfile.zip(flags.ssl_keyfile);
    let public_tls = public_tls.map(|(certificate, key)| PublicTlsConfig { certificate, key });
    runtime.block_on(async {
        let process = Process::new("serve", &shutdown, &trust);
        let mut process = process.map_err(|error| anyhow::anyhow!(error))?;
        if !flags.api_key.is_empty() {
            process = process.with_keys(Keys::plain(&flags.api_key));
        }
        let tracing =
            TracingConfig { otlp_endpoint: flags.otlp_traces_endpoint, ..TracingConfig::default() };
        let process = process.with_tracing("serve", &tracing)?;
        let admin = flags.admin.map(|address| AdminConfig { address, ..AdminConfig::default() });
        let _door = match &admin {
            Some(admin) => Some(process.open_admin(admin).await?),
            None => None,
        };
        let all = flags.cluster;
        let model = ModelConfig {
            served_names: flags.served_model_name,
            chat_template: flags.chat_template,
            ..all.public_model(flags.sampling_defaults.into())
        };
        let cluster = LocalCluster::open(all, model, server, public_tls, process.clone()).await?;
        let served = process.shutdown.guard(cluster.serve()).await;
        process.tracer.flush().await;
        served?
    })
}
