//! What attention nodes and expert nodes have in common: the site they run on, joining a cluster, the plans they follow,
//! frames that wait for credit, and the sections of configuration that both have.

pub mod config;
mod membership;
mod outbox;
mod plans;
mod site;

pub use membership::{Membership, Newcomer, link_settings};
pub use outbox::Outbox;
pub use plans::Plans;
pub use site::Site;
