//! A disk that is full: what cannot be written stops nothing that runs, and goes on when there is room again.

use anyhow::{Result, ensure};
use proto::v1::{ExportPlanRequest, admin_client::AdminClient};
use tests::{asks, processes::Processes};
use tonic::{Code, transport::Endpoint};

/// Requests that run at a time.
const AT_ONCE: usize = 8;
/// Requests of one round.
const ROUND: u32 = 20;

/// A change of the nodes that cannot be stored is not made, and the last stored plan serves; a new plan that an
/// operator asks for is refused; all of it is made up for when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_cannot_be_stored_waits_and_the_last_one_serves() -> Result<()> {
    let asks = asks(0..ROUND);
    let mut cluster = Processes::filed(1, 2).await?;
    let client = cluster.client()?;
    let expected = client.ask_all(&asks, AT_ONCE).await?;
    let coordinator = Endpoint::from_shared(format!("http://{}", cluster.listens("coordinator")?))?;
    let mut admin = AdminClient::new(coordinator.connect().await?);

    cluster.fill_disk("coordinator").await?;
    cluster.add_late("expert", 2)?;
    cluster.start("expert-2")?;
    cluster.until("coordinator", "amoe_coordinator_store_up", |up| up == 0.0).await?;
    let mut table = admin.export_plan(ExportPlanRequest { epoch: 0 }).await?.into_inner();
    let [first, .., last] = &mut table.layers[0].experts[..] else { anyhow::bail!("no experts") };
    std::mem::swap(&mut first.nodes, &mut last.nodes);
    let refused = admin.import_plan(table).await.err();
    let Some(refused) = refused else { anyhow::bail!("a plan was made that cannot be stored") };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    ensure!(refused.message().contains("the state store does not take plan"), "{refused}");
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");
    assert_eq!(cluster.read("coordinator", "amoe_coordinator_store_up").await?, Some(0.0));

    cluster.free_disk("coordinator").await?;
    cluster.ready("expert-2").await?;
    cluster.until("coordinator", "amoe_coordinator_store_up", |up| up == 1.0).await?;
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");

    // What the file holds is whole: a coordinator that reads it plans nothing anew.
    let epoch = "amoe_coordinator_plan_epoch";
    let serving = cluster.read("coordinator", epoch).await?;
    cluster.kill("coordinator").await?;
    cluster.start("coordinator")?;
    cluster.ready("coordinator").await?;
    cluster.until("coordinator", "amoe_coordinator_sessions", |count| count == 5.0).await?;
    assert!(cluster.read("coordinator", epoch).await? >= serving);
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");
    cluster.terminate(&["gateway"]).await?;
    cluster.ended().await
}

/// What cannot be logged is lost, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_no_process() -> Result<()> {
    let asks = asks(0..ROUND);
    let mut cluster = Processes::muted(1, 1).await?;
    let client = cluster.client()?;
    client.ask_all(&asks, AT_ONCE).await?;
    cluster.kill("expert-0").await?;
    cluster.until("coordinator", "amoe_coordinator_members_lost_total", |lost| lost == 1.0).await?;
    cluster.start("expert-0")?;
    cluster.ready("expert-0").await?;
    client.ask_all(&asks, AT_ONCE).await?;
    cluster.terminate(&["gateway"]).await?;
    cluster.ended().await
}
