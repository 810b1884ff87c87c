//! A cluster in virtual time: the decisions of `policy` run against cost curves, and checkers judge every run.

mod agenda;
mod attention;
mod barrier;
mod cluster;
mod device;
mod engine;
mod experts;
pub mod hardware;
mod histogram;
mod judge;
mod links;
mod messages;
mod meter;
pub mod outcome;
mod plot;
mod queues;
pub mod results;
mod routes;
pub mod scenario;
mod sequences;
pub mod skew;
mod spans;
pub mod spec;
pub mod study;
pub mod workload;

pub use judge::{Violation, Wrong};

use std::path::Path;

use thiserror::Error;

/// A run that has no outcome.
#[derive(Debug, Error)]
pub enum RunError {
    /// It could not be set up.
    #[error("{0}")]
    SetUp(String),
    /// A checker found something.
    #[error(transparent)]
    Violated(#[from] Violation),
}

/// Simulates one run that was checked; files that it names are looked up from `folder`.
///
/// # Errors
/// The run could not be set up, or broke a rule that no run may break.
pub(crate) fn simulate(run: &spec::Run, folder: &Path) -> Result<scenario::Done, RunError> {
    let engine = engine::Engine::new(run, folder).map_err(RunError::SetUp)?;
    Ok(engine.run()?)
}
