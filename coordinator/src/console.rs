//! The console: a page that shows the whole cluster as it runs, and the same as JSON, on the leader's admin door.

mod journal;
mod live;
mod overview;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use chassis::routes::{Audience, Routes};
use proto::v1::Overview;
use serde::Serialize;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use tonic::Status;
use trust::Scope;

use crate::{ask::look, service::Standing};

pub(crate) use journal::Journal;
pub(crate) use live::{Live, Totals};
pub(crate) use overview::overview;

/// How often viewers are shown the cluster.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// A look at the cluster that is younger than this serves everybody, so that many viewers cost as much as one.
const FRESH: Duration = Duration::from_millis(500);
/// The page loads nothing but its own two files, and speaks to nobody but this door.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

/// Looks at the leader's cluster; clones share what they see.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    standing: watch::Receiver<Standing>,
    latest: Arc<Mutex<Option<Seen>>>,
}

/// What was seen last.
#[derive(Debug)]
struct Seen {
    at: Instant,
    overview: Arc<Overview>,
}

/// What `/console/state` answers.
#[derive(Debug, Serialize)]
#[serde(tag = "standing", rename_all = "lowercase")]
enum Page<'a> {
    /// This coordinator leads, and knows how it goes.
    Leading { overview: &'a Overview },
    /// Another one does, or none.
    Following { leader: Option<String> },
}

// === impl Console ===

impl Console {
    pub(crate) fn new(standing: watch::Receiver<Standing>) -> Self {
        Self { standing, latest: Arc::default() }
    }

    /// How it goes in the cluster.
    ///
    /// # Errors
    /// This coordinator does not lead.
    pub(crate) async fn overview(&self) -> Result<Arc<Overview>, Status> {
        let inbox = self.standing.borrow().inbox()?;
        let mut latest = self.latest.lock().await;
        if let Some(seen) = latest.as_ref().filter(|seen| seen.at.elapsed() < FRESH) {
            return Ok(Arc::clone(&seen.overview));
        }
        let overview = Arc::new(look(&inbox, overview).await?);
        *latest = Some(Seen { at: Instant::now(), overview: Arc::clone(&overview) });
        Ok(overview)
    }

    /// Returns when this coordinator's standing has changed.
    pub(crate) async fn changed(&mut self) {
        // That nobody can change it any more is a change too.
        let _ = self.standing.changed().await;
    }

    /// The pages, to be added to the process's admin door.
    pub(crate) fn routes(self) -> Routes {
        let admin = Audience::Scope(Scope::Admin);
        let page = file("text/html; charset=utf-8", include_str!("console/console.html"));
        let style = file("text/css; charset=utf-8", include_str!("console/console.css"));
        let script = file("text/javascript; charset=utf-8", include_str!("console/console.js"));
        Routes::default()
            .add("/console", admin, page)
            .add("/console/console.css", admin, style)
            .add("/console/console.js", admin, script)
            .add("/console/state", admin, get(state).with_state(self))
    }
}

fn file(kind: &'static str, text: &'static str) -> axum::routing::MethodRouter {
    get(async move || ([(header::CONTENT_TYPE, kind)], HEADERS, text))
}

async fn state(State(console): State<Console>) -> Response {
    let page = match console.overview().await {
        Ok(overview) => Json(Page::Leading { overview: &overview }).into_response(),
        Err(_) => {
            let leader = console.standing.borrow().leader();
            Json(Page::Following { leader }).into_response()
        }
    };
    (HEADERS, page).into_response()
}
