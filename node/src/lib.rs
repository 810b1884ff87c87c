//! What attention nodes and expert nodes have in common: the site they run on, joining a cluster, and the sections of
//! configuration that both have.

pub mod config;
mod membership;
mod site;

pub use membership::{Membership, Newcomer, link_settings};
pub use site::Site;
