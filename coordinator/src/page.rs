//! The admin page `/plan`: who leads, who is a member and where the experts are, as JSON.

use std::sync::Arc;

use axum::{Json, extract::State, routing::get};
use chassis::routes::{Audience, Routes};
use domain::{ClusterView, Load, Member};
use serde::Serialize;
use tokio::sync::watch;
use trust::Scope;

use crate::{
    record::{HealthName, RoleName, Shape, StoredPlan},
    service::Standing,
};

/// What this coordinator knows; the rest only while it leads.
#[derive(Debug, Serialize)]
struct Page {
    /// Whether this coordinator leads.
    leads: bool,
    /// The leader's address where another one leads and is known.
    leader: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<View>,
}

#[derive(Debug, Serialize)]
struct View {
    version: u64,
    members: Vec<Row>,
    shape: Option<Shape>,
    serving: Option<StoredPlan>,
    target: Option<StoredPlan>,
}

#[derive(Debug, Serialize)]
struct Row {
    id: u32,
    name: String,
    #[serde(with = "RoleName")]
    role: domain::Role,
    address: String,
    #[serde(with = "HealthName")]
    health: domain::Health,
    running: u32,
    waiting: u32,
    kv_blocks_free: u32,
    kv_blocks: u32,
    queued_pairs: u32,
}

#[derive(Clone)]
struct Source {
    standing: watch::Receiver<Standing>,
    views: watch::Receiver<Arc<ClusterView>>,
}

/// The page, to be added to the process's admin door.
pub(crate) fn routes(
    standing: watch::Receiver<Standing>,
    views: watch::Receiver<Arc<ClusterView>>,
) -> Routes {
    let page = get(page).with_state(Source { standing, views });
    Routes::default().add("/plan", Audience::Scope(Scope::Metrics), page)
}

async fn page(State(source): State<Source>) -> Json<Page> {
    let page = match &*source.standing.borrow() {
        Standing::Leading(_) => {
            let view = View::from(&**source.views.borrow());
            Page { leads: true, leader: None, view: Some(view) }
        }
        Standing::Following { leader } => Page { leads: false, leader: leader.clone(), view: None },
    };
    Json(page)
}

impl From<&ClusterView> for View {
    fn from(view: &ClusterView) -> Self {
        Self {
            version: view.version,
            members: view.members.iter().map(Into::into).collect(),
            shape: view.shape.as_ref().map(Into::into),
            serving: view.serving.as_deref().map(Into::into),
            target: view.target.as_deref().map(Into::into),
        }
    }
}

impl From<&Member> for Row {
    fn from(member: &Member) -> Self {
        let Load { running, waiting, kv_blocks_free, kv_blocks, queued_pairs } = member.load;
        Self {
            id: member.id.0,
            name: member.name.clone(),
            role: member.role,
            address: member.address.clone(),
            health: member.health,
            running,
            waiting,
            kv_blocks_free,
            kv_blocks,
            queued_pairs,
        }
    }
}
