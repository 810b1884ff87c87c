//! Sets up the log of a process: one line per event on standard error, as text or as JSON.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// Section `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What is logged, in `tracing`'s filter language: `info`, `warn,coordinator=debug`.
    pub log: String,
    pub format: Format,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: Format::Text }
    }
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "key `telemetry.log`: {log:?} is no log filter, expected something like `info` or `warn,gateway=debug`: {reason}"
    )]
    Filter { log: String, reason: String },
    #[error("the log of this process is set up already")]
    Twice,
}

/// Starts logging for the whole process; call once, from `main`.
pub fn init(config: &TelemetryConfig) -> Result<(), TelemetryError> {
    let filter = filter(config)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would say so on standard error and, where that is what cannot be written, panic.
        .log_internal_errors(false);
    match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    }
    .map_err(|_| TelemetryError::Twice)
}

/// The filter of `config`, checked without starting anything.
pub(crate) fn filter(config: &TelemetryConfig) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(&config.log).map_err(|error| TelemetryError::Filter {
        log: config.log.clone(),
        reason: error.to_string(),
    })
}
