//! What every process needs and none owns: configuration, telemetry, HTTP doors, health, shutdown, the device thread.

pub mod admin;
pub mod config;
pub mod engine;
pub mod http;
pub mod last_word;
pub mod metrics;
pub mod readiness;
pub mod role;
pub mod routes;
pub mod shutdown;
pub mod telemetry;
pub mod traces;

pub use readiness::Readiness;
pub use shutdown::Shutdown;

/// The release of amoe; every crate of the workspace carries the same one.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
