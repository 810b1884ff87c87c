//! The nouns of amoe: plain values that two or more rooms talk about, without I/O, clocks or wire formats.

mod cluster;
mod cost;
mod guidance;
mod ids;
mod plan;
mod profile;
mod sampling;
mod sequence;
mod shape;
mod trace;

pub use cluster::{ClusterView, Health, Load, Member, Role};
pub use cost::{CostCurve, CurveError, Curves};
pub use guidance::{Digest, Guidance, Holder, Leased};
pub use ids::{Epoch, Expert, Layer, NodeId};
pub use plan::{Plan, PlanShapeError, Replicas};
pub use profile::{NodeProfile, Profile};
pub use sampling::{Constraint, SamplingParams};
pub use sequence::{FinishReason, SequenceRequest, TokenLogprobs, TokenOutput};
pub use shape::ModelShape;
pub use trace::{Trace, TraceShapeError};
