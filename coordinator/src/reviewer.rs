//! Compares the plan that serves with the one that what was observed asks for, beside the leader's loop.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tonic::Status;

use crate::{
    ask::{change, look},
    service::Message,
};

/// Reviews until the leader behind `inbox` leads no more.
pub(crate) async fn run(inbox: mpsc::Sender<Message>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(status) = review(&inbox).await {
            tracing::debug!(%status, "reviews end");
            return;
        }
    }
}

async fn review(inbox: &mpsc::Sender<Message>) -> Result<(), Status> {
    let Some(draft) = look(inbox, |cluster, now| cluster.review(now)).await? else {
        return Ok(());
    };
    // Planning takes seconds for large models; heartbeats must not wait for it.
    let drafted = tokio::task::spawn_blocking(|| draft.plan()).await;
    let drafted =
        drafted.map_err(|error| Status::internal(format!("the planner died: {error}")))?;
    change(inbox, |cluster, now| ((), cluster.reviewed(now, drafted))).await
}
