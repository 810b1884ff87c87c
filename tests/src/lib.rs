//! Clusters for tests: real roles joined over real links, as many of each as a test asks for.

mod cluster;
mod workload;

pub use cluster::{Cluster, Layout, LinkKind};
pub use workload::{Answer, sequence};

use std::path::{Path, PathBuf};

/// A checkpoint of the repository: `goldens/qwen3_moe`, `checkpoints/demo`.
#[must_use]
pub fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
