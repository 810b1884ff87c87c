//! A look at the cluster, or a change of it, by somebody who is no node: carried out in the leader's loop.

use std::{fmt, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::{
    cluster::{Cluster, Effect},
    service::{Message, not_leading},
};

/// What is to be done.
pub(crate) struct Ask(Work);

type Work = Box<dyn FnOnce(&mut Cluster, Duration) -> Vec<Effect> + Send>;

impl Ask {
    /// Does it, at the leader's time.
    pub(crate) fn carry_out(self, cluster: &mut Cluster, now: Duration) -> Vec<Effect> {
        (self.0)(cluster, now)
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}

/// Looks at the cluster of the leader behind `inbox`.
///
/// # Errors
/// The leader leads no more.
pub(crate) async fn look<T: Send + 'static>(
    inbox: &mpsc::Sender<Message>,
    look: impl FnOnce(&Cluster, Duration) -> T + Send + 'static,
) -> Result<T, Status> {
    change(inbox, |cluster, now| (look(cluster, now), Vec::new())).await
}

/// Changes the cluster of the leader behind `inbox`.
///
/// # Errors
/// The leader leads no more.
pub(crate) async fn change<T: Send + 'static>(
    inbox: &mpsc::Sender<Message>,
    change: impl FnOnce(&mut Cluster, Duration) -> (T, Vec<Effect>) + Send + 'static,
) -> Result<T, Status> {
    let (answer, answered) = oneshot::channel();
    let work: Work = Box::new(|cluster, now| {
        let (value, effects) = change(cluster, now);
        // Whoever went away needs no answer.
        let _ = answer.send(value);
        effects
    });
    inbox.send(Message::Ask(Ask(work))).await.map_err(|_| not_leading(None))?;
    answered.await.map_err(|_| not_leading(None))
}
