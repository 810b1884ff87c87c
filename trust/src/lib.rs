//! Who may talk to whom: certificates that are read again when they change, who is on the other end, API keys.

pub mod authority;
mod callers;
mod certificates;
mod keys;
mod metrics;
mod party;
mod pem;
mod watched;

use std::path::PathBuf;

use prometheus::Registry;
use serde::Deserialize;

pub use callers::{Callers, Denied};
pub use certificates::{Certificates, HandshakeError, ServerTls};
pub use keys::{KEY_HEADER, Keys, NewKey, Scope, new_key};
pub use metrics::Metrics;
pub use party::{Party, Peer};

/// Section `[tls]`: this process's certificate, for every connection between processes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Its certificate as PEM, the certificates between it and the authority after it.
    pub certificate: PathBuf,
    /// The key of the certificate as PEM.
    pub key: PathBuf,
    /// Certificates of the cluster's authorities as PEM; whoever has none of theirs is a stranger.
    pub authority: PathBuf,
}

/// Section `[public_tls]`: the certificate that a public door shows to clients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicTlsConfig {
    /// The certificate as PEM, the certificates between it and its authority after it.
    pub certificate: PathBuf,
    /// The key of the certificate as PEM.
    pub key: PathBuf,
}

/// Section `[keys]`: who may ask, by bearer keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// The key file: `[[keys]]` with `name`, `scopes` and `sha256` each.
    pub file: PathBuf,
}

/// The sections of a configuration file that say whom a process trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustConfig {
    /// `[tls]`; without it connections between processes are plain.
    pub tls: Option<TlsConfig>,
    /// `[keys]`; without it everybody may ask.
    pub keys: Option<KeysConfig>,
}

/// Why certificates or keys cannot be used; one sentence that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected, and what is there.
        reason: String,
    },
    /// Metrics with these names exist already in this process.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What a process knows about its peers and clients. Clones share it; by default it trusts everybody.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// For connections between processes; none: they are plain.
    pub certificates: Option<Certificates>,
    /// For clients and operators; none: everybody may ask.
    pub keys: Option<Keys>,
    metrics: Option<Metrics>,
}

// === impl Trust ===

impl Trust {
    /// Reads what the sections name, and again whenever it changes. `own` is the party that this
    /// process's certificate has to be for. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A file cannot be used. Once all could be, later ones that cannot are reported, not used.
    pub fn open(
        own: Option<Party>,
        config: &TrustConfig,
        registry: &Registry,
    ) -> Result<Self, TrustError> {
        let TrustConfig { tls, keys } = config;
        let metrics = Metrics::register(registry)?;
        if keys.is_some() && tls.is_none() {
            tracing::info!(
                "section `keys` without `tls`: processes of the cluster do not prove who they are"
            );
        }
        Ok(Self {
            certificates: tls
                .as_ref()
                .map(|config| Certificates::open(config, own, Some(&metrics)))
                .transpose()?,
            keys: keys
                .as_ref()
                .map(|config| Keys::open(&config.file, Some(&metrics)))
                .transpose()?,
            metrics: Some(metrics),
        })
    }

    /// The same with these keys.
    #[must_use]
    pub fn with_keys(self, keys: Keys) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// The certificate of a public door, read again whenever it changes. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn public(&self, config: &PublicTlsConfig) -> Result<ServerTls, TrustError> {
        ServerTls::public(config, self.metrics.as_ref())
    }
}
