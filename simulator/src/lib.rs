//! A cluster in virtual time: the decisions of `policy` run against cost curves, and checkers judge every run.

pub mod hardware;
pub mod skew;
pub mod workload;
