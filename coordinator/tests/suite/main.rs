//! The coordinator from outside: its stores, its sessions, and several of it over one etcd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod failover;
mod nodes;
mod sessions;
mod stores;
