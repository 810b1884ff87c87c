//! The gateway's configuration, section by section.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use transport::Address;
use trust::PublicTlsConfig;

use crate::cors::is_origin;

/// Everything but the sections that every process has: `[admin]`, `[telemetry]`, `[shutdown]`, `[tls]`, `[keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[model]`.
    pub model: ModelConfig,
    /// `[cluster]`.
    pub cluster: ClusterConfig,
    /// `[server]`.
    #[serde(default)]
    pub server: ServerConfig,
    /// `[public_tls]`; without it the public port is plain.
    #[serde(default)]
    pub public_tls: Option<PublicTlsConfig>,
    /// `[bounds]`.
    #[serde(default)]
    pub bounds: BoundsConfig,
    /// `[patience]`.
    #[serde(default)]
    pub patience: PatienceConfig,
}

/// Section `[model]`: the model's text files; the gateway reads no weights.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder with `config.json`, `tokenizer.json`, perhaps `generation_config.json` and, to chat, a chat template.
    pub path: PathBuf,
    /// Names that requests may use, the first one in metrics; by default the folder's name.
    #[serde(default)]
    pub served_names: Vec<String>,
    /// Longest sequence, prompt and generated tokens; by default what the model was made for.
    #[serde(default)]
    pub positions_max: Option<u32>,
    /// A chat template in a file of its own, in place of the model's.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
    /// How to sample where a request does not say.
    #[serde(default)]
    pub sampling_defaults: SamplingDefaults,
}

/// Whose word counts where a request does not say how to sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplingDefaults {
    /// The model's `generation_config.json`; OpenAI's where that says nothing or is not there.
    #[default]
    Model,
    /// OpenAI's: temperature 1, from the whole vocabulary.
    Openai,
}

/// Section `[cluster]`: how to find the attention nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// This gateway's name, unique in the cluster.
    pub name: String,
    /// Addresses of the coordinators, tried in turn.
    pub coordinators: Vec<String>,
}

/// Section `[server]`: the public port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Where HTTP and gRPC are served; port 0 takes any free one.
    pub address: SocketAddr,
    /// Largest body of a request.
    pub body_bytes_max: usize,
    /// Connections at once; more wait until one closes.
    pub connections_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Headers of a request.
    pub headers_max: usize,
    /// Bytes of a request's headers.
    pub header_bytes_max: u32,
    /// How long a client may take to send a request's headers, and then its body.
    pub receive_timeout_s: u64,
    /// Origins whose pages may ask from a browser, such as `https://chat.example.org`; `*` is any.
    pub allowed_origins: Vec<String>,
}

impl Default for ServerConfig {
    /// Port 8000 everywhere is what clients of such servers expect. 16 MiB holds the longest
    /// prompts of today's models as text or as token ids.
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 8000)),
            body_bytes_max: 16 << 20,
            connections_max: 8192,
            streams_max: 4096,
            headers_max: 100,
            header_bytes_max: 32 << 10,
            receive_timeout_s: 60,
            allowed_origins: Vec::new(),
        }
    }
}

/// Section `[bounds]`: what the gateway takes in at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoundsConfig {
    /// Sequences in flight; further requests get 429.
    pub sequences_max: u32,
    /// Sequences without a first token; further requests get 429.
    pub waiting_max: u32,
    /// Time in which a sequence is to have its first token; requests that would by all that is known
    /// wait longer get 429. A client may want it sooner, by the header `x-slo-ttft-ms`.
    pub first_token_ms: u64,
    /// Tokens of a prompt; by default what the longest sequence leaves room for.
    pub prompt_tokens_max: Option<u32>,
}

impl Default for BoundsConfig {
    fn default() -> Self {
        Self {
            sequences_max: 4096,
            waiting_max: 1024,
            first_token_ms: 30_000,
            prompt_tokens_max: None,
        }
    }
}

/// Section `[patience]`: how long and how often is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatienceConfig {
    /// A whole request.
    pub request_s: u64,
    /// A sequence's first token on a node, its time in the node's waiting line included.
    pub first_token_s: u64,
    /// Every further token.
    pub next_token_s: u64,
    /// Tries of one sequence, pauses for a node to come back included.
    pub tries_max: u32,
    /// When no attention node takes work any more, requests wait for one to come back until this
    /// time has passed since then; 0: they are refused at once.
    pub node_s: u64,
}

impl Default for PatienceConfig {
    fn default() -> Self {
        Self { request_s: 3600, first_token_s: 600, next_token_s: 60, tries_max: 10, node_s: 30 }
    }
}

/// A value that parses but cannot be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("key `{key}`: expected {expected}")]
pub struct ConfigError {
    /// Dotted.
    pub key: &'static str,
    /// What was expected.
    pub expected: &'static str,
}

impl Config {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            (!self.cluster.name.is_empty(), "cluster.name", "a name that is unique in the cluster"),
            (
                !self.cluster.coordinators.is_empty()
                    && self.cluster.coordinators.iter().all(|at| at.parse::<Address>().is_ok()),
                "cluster.coordinators",
                "at least one address, and only such as host:port",
            ),
            (
                self.model.served_names.iter().all(|name| !name.is_empty()),
                "model.served_names",
                "names that are not empty",
            ),
            (
                self.server.body_bytes_max > 0
                    && self.server.connections_max > 0
                    && self.server.streams_max > 0
                    && self.server.headers_max > 0
                    && self.server.receive_timeout_s > 0,
                "server.body_bytes_max, server.connections_max, server.streams_max, \
                 server.headers_max, server.receive_timeout_s",
                "at least 1",
            ),
            (
                self.server.header_bytes_max >= chassis::http::HEADER_BYTES_LEAST,
                "server.header_bytes_max",
                "at least 8192",
            ),
            (
                self.server.allowed_origins.iter().all(|origin| is_origin(origin)),
                "server.allowed_origins",
                "`*` or origins such as https://chat.example.org",
            ),
            (self.bounds.prompt_tokens_max != Some(0), "bounds.prompt_tokens_max", "at least 1"),
            (
                self.bounds.sequences_max > 0
                    && self.bounds.waiting_max > 0
                    && self.bounds.first_token_ms > 0,
                "bounds.sequences_max, bounds.waiting_max, bounds.first_token_ms",
                "at least 1",
            ),
            (self.patience.tries_max > 0, "patience.tries_max", "at least 1"),
            (
                self.patience.request_s > 0
                    && self.patience.first_token_s > 0
                    && self.patience.next_token_s > 0,
                "patience.request_s, patience.first_token_s, patience.next_token_s",
                "at least 1 s",
            ),
        ];
        match rules.into_iter().find(|(kept, ..)| !kept) {
            Some((_, key, expected)) => Err(ConfigError { key, expected }),
            None => Ok(()),
        }
    }
}

impl chassis::role::RoleConfig for Config {
    fn check(&self) -> Result<(), String> {
        Self::check(self).map_err(|error| error.to_string())
    }
}
