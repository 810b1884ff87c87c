//! The gateway over real HTTP and gRPC, in front of attention nodes that follow a script.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chat;
mod client;
mod completions;
mod errors;
mod gateway;
mod grpc;
mod lifecycle;
mod node;
mod process;
mod streaming;
mod tools;
