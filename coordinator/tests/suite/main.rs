//! The coordinator from outside: its stores, its sessions, and several of it over one etcd.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod failover;
mod nodes;
mod sessions;
mod stores;
