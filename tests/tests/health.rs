//! Health that tells the truth: what says that it can take work has just had a token through all layers.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::StatusCode;
use tests::{ask, processes::Processes};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Nothing in a test takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(30);
/// What the gateway calls the model.
const MODEL: &str = "demo";

/// Waits until the gateway says so of the model.
async fn until(health: &mut HealthClient<Channel>, wanted: ServingStatus) -> Result<()> {
    let asked = HealthCheckRequest { service: MODEL.to_owned() };
    let said = async {
        while health.check(asked.clone()).await?.into_inner().status() != wanted {
            sleep(PAUSE).await;
        }
        Ok(())
    };
    timeout(PATIENCE, said).await.with_context(|| format!("the model is never {wanted:?}"))?
}

/// Waits until a process says that it is not ready, with these words.
async fn unready(cluster: &Processes, name: &str, words: &[&str]) -> Result<()> {
    let mut last = String::new();
    let said = async {
        loop {
            let (status, text) = cluster.page(name, "/readyz").await?;
            if status == StatusCode::SERVICE_UNAVAILABLE && words.iter().all(|w| text.contains(w)) {
                return Ok(());
            }
            last = text;
            sleep(PAUSE).await;
        }
    };
    match timeout(PATIENCE, said).await {
        Ok(said) => said,
        Err(_) => bail!("{name} says {last:?}, expected {words:?}"),
    }
}

/// An expert node that is there and does nothing: its process lives, its connections stand, nobody has asked for
/// anything. Its attention node finds out by a token of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_expert_node_makes_the_model_unwell_and_nobody_dead() -> Result<()> {
    // Lost members would be the coordinator's business: here nobody else is to notice.
    let mut cluster = Processes::cluster_with(1, 1, &[("CLUSTER__LEASE_MS", "600000")]).await?;
    let uri = format!("http://{}", cluster.address());
    let mut health = HealthClient::new(Channel::from_shared(uri)?.connect().await?);
    until(&mut health, ServingStatus::Serving).await?;
    let client = cluster.client()?;
    let expected = client.ask(&ask(1)).await?;
    let drawn = cluster.read("attention-0", "amoe_attention_tokens_total").await?;
    let moment = cluster.read("attention-0", "amoe_attention_last_token_seconds").await?;
    let moment = moment.context("attention-0 is away")?;
    let last = "amoe_attention_last_token_seconds";
    cluster.until("attention-0", last, |at| at > moment).await.context("no canary came back")?;

    cluster.freeze("expert-0").await?;
    let words = ["tokens (rows of layer", "have waited for more than 3 s for expert-0"];
    unready(&cluster, "attention-0", &words).await?;
    until(&mut health, ServingStatus::NotServing).await?;
    for name in ["attention-0", "gateway"] {
        assert_eq!(cluster.page(name, "/livez").await?.0, StatusCode::OK, "{name} is alive");
    }
    // The gateway holds what comes now, and answers when the model is well again.
    let held = tokio::spawn(async move { client.ask(&ask(1)).await });
    cluster.thaw("expert-0").await?;
    assert_eq!(held.await??, expected);
    until(&mut health, ServingStatus::Serving).await?;
    cluster.ready("attention-0").await?;
    let counted = cluster.read("attention-0", "amoe_attention_tokens_total").await?;
    assert_eq!(counted, drawn.map(|drawn| 2.0 * drawn), "canaries are no tokens of users");
    cluster.terminate(&[]).await?;
    cluster.ended().await
}
