//! The rules of this source tree, as tests: who may know whom, what stays pure, how files look.

#![expect(clippy::unwrap_used, reason = "a rule that cannot read the tree fails")]

mod arrows;
mod lints;
mod metrics;
mod sources;
mod workspace;

/// Fails with every complaint on its own line.
#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
