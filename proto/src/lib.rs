//! What travels between processes: the schema, its generated code, and strict conversions to values of `domain`.
//!
//! Wire to value is fallible and validates once, on receipt; value to wire is total.

pub mod control;
pub mod frame;
mod invalid;
pub mod sequence;

pub use invalid::Invalid;

/// The public API, `amoe.v1`.
#[expect(clippy::allow_attributes, clippy::too_many_lines, reason = "generated")]
pub mod v1 {
    include!("generated/amoe.v1.rs");
}

/// What the processes of one cluster say to each other, `amoe.internal.v1`.
#[expect(clippy::allow_attributes, reason = "generated")]
pub mod internal {
    include!("generated/amoe.internal.v1.rs");
}

/// Encoded file descriptors of the public API, for gRPC reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!("generated/public_descriptors.bin");
