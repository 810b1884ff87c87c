//! Enters the election, leads when it is won, and does so again as long as the process runs.

use std::{sync::Arc, time::Duration};

use chassis::Shutdown;
use domain::{ClusterView, Guidance};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    cluster::Rules,
    leader::Candidate,
    metrics::Metrics,
    reviewer,
    service::Standing,
    store::{Store, StoreError},
    term::{Desk, End, INBOX_MAX, Term},
};

/// Pause before the election is entered again after a term or a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// What a coordinator runs for.
#[derive(Debug)]
pub(crate) struct Election {
    pub(crate) rules: Rules,
    pub(crate) leader_lease: Duration,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Metrics,
    /// Where nodes are sent while this coordinator leads.
    pub(crate) address: String,
    /// Told whether this coordinator leads and who does.
    pub(crate) standing: watch::Sender<Standing>,
    /// What nodes are told while this coordinator leads.
    pub(crate) views: watch::Sender<Arc<ClusterView>>,
    /// What nodes are advised while this coordinator leads.
    pub(crate) guidance: watch::Sender<Arc<Guidance>>,
    pub(crate) shutdown: Shutdown,
}

impl Election {
    /// Runs until the shutdown is requested.
    ///
    /// # Errors
    /// What is stored is broken. A store that does not answer is waited for.
    pub(crate) async fn run(self) -> Result<(), StoreError> {
        loop {
            let end = match self.win().await {
                Ok(Some(term)) => self.lead(term).await,
                Ok(None) => End::Stopped,
                Err(error @ StoreError::Refused(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "the election was not won");
                    End::Deposed
                }
            };
            self.standing.send_replace(Standing::Following { leader: None });
            if matches!(end, End::Stopped) {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = self.shutdown.requested() => return Ok(()),
            }
        }
    }

    /// Waits for the leadership; none when the process stops.
    async fn win(&self) -> Result<Option<Term>, StoreError> {
        let entered = Candidate::enter(self.store.clone(), &self.address, self.leader_lease);
        let candidate = tokio::select! {
            entered = entered => entered?,
            () = self.shutdown.requested() => return Ok(None),
        };
        let follow = |leader: String| {
            tracing::info!(leader, "another coordinator leads");
            // What this one left behind when it was last killed leads nobody anywhere.
            let leader = (leader != self.address).then_some(leader);
            self.standing.send_replace(Standing::Following { leader });
        };
        tokio::select! {
            won = candidate.win(follow) => won?,
            () = self.shutdown.requested() => {
                candidate.resign().await;
                return Ok(None);
            }
        }
        let desk = Desk {
            rules: self.rules,
            store: self.store.clone(),
            metrics: self.metrics.clone(),
            views: self.views.clone(),
            guidance: self.guidance.clone(),
        };
        Term::take_over(desk, candidate).await.map(Some)
    }

    async fn lead(&self, term: Term) -> End {
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        self.standing.send_replace(Standing::Leading(inbox.clone()));
        let reviews = self.rules.review.map(|every| tokio::spawn(reviewer::run(inbox, every)));
        tracing::info!(address = self.address, "this coordinator leads");
        let end = term.lead(messages, self.shutdown.requested()).await;
        reviews.iter().for_each(JoinHandle::abort);
        tracing::info!("this coordinator does not lead any more");
        end
    }
}
