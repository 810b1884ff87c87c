//! Chores and rules of the repository: what a script would do elsewhere, with tests that hold the rules.

pub mod gate;
pub mod kernels;
pub mod proto;
pub mod protoc;
pub mod sbom;
pub mod tools;

use std::path::{Path, PathBuf};

/// The repository's root folder.
///
/// # Panics
/// Never: this crate lies one folder below the root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_path_buf()
}
