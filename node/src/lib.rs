//! What attention nodes and expert nodes have in common: the site they run on, joining a cluster, the plans they follow,
//! what they report, frames that wait for credit, and the sections of configuration that both have.

pub mod config;
mod gpu;
mod links;
mod membership;
mod outbox;
mod pace;
mod plans;
mod progress;
mod reports;
mod site;
mod stall;

pub use gpu::open_gpu;
pub use links::link_settings;
pub use membership::{Membership, Newcomer};
pub use outbox::Outbox;
pub use pace::Pace;
pub use plans::{Followed, Plans};
pub use progress::Progress;
pub use reports::Reports;
pub use site::Site;
