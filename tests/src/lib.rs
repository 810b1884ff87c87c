//! Clusters for tests: real roles joined over real links, as many of each as a test asks for.

mod asks;
pub mod client;
mod cluster;
pub mod dial;
pub mod processes;
pub mod security;
mod workload;

pub use asks::{ask, asks, long_ask};
pub use cluster::{Cluster, Layout, LinkKind};
pub use workload::{Answer, sequence};

use std::path::{Path, PathBuf};

/// A checkpoint of the repository: `goldens/qwen3_moe`, `../models/demo`.
#[must_use]
pub fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The sum of a metric's samples in Prometheus's text format.
fn metric(text: &str, name: &str) -> f64 {
    let samples = text
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']));
    samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
