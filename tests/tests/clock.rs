//! A wall clock that is set while everything runs, as by an administrator or after a long sleep: leases, deadlines and ages
//! are not measured by it.

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::v1::{ListPlansRequest, admin_client::AdminClient};
use tests::{asks, processes::Processes};
use tonic::transport::Endpoint;

/// Requests that run at a time.
const AT_ONCE: usize = 8;
/// Requests of one round.
const ROUND: u32 = 20;
/// More seconds than any test takes, and less than the steps in it.
const LONG_S: u64 = 1800;

/// What the coordinator thinks of its nodes and of itself.
async fn standing(cluster: &Processes) -> Result<Vec<Option<f64>>> {
    let mut all = Vec::new();
    for metric in ["leader", "sessions", "members_lost_total", "plan_epoch"] {
        all.push(cluster.read("coordinator", &format!("amoe_coordinator_{metric}")).await?);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_the_clock_cost_no_lease_and_no_answer() -> Result<()> {
    let asks = asks(0..ROUND);
    let mut cluster = Processes::with_clock(1, 2, false).await?;
    let client = cluster.client()?;
    let expected = client.ask_all(&asks, AT_ONCE).await?;
    let before = standing(&cluster).await?;
    for offset in ["+1h", "-1h", "+0s", "-10y", "+10y"] {
        cluster.step_clock(offset)?;
        let replies = client.ask_all(&asks, AT_ONCE).await?;
        ensure!(expected == replies, "an answer has changed at {offset}");
        // Many heartbeats and looks at leases.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(standing(&cluster).await?, before, "{offset}");
    }

    // Plans are made at times in the order of their numbers, whatever was done to the clock meanwhile.
    cluster.step_clock("-1h")?;
    cluster.kill("expert-1").await?;
    let lost = "amoe_coordinator_members_lost_total";
    cluster.until("coordinator", lost, |count| count == 1.0).await?;
    cluster.start("expert-1")?;
    cluster.ready("expert-1").await?;
    let coordinator = Endpoint::from_shared(format!("http://{}", cluster.listens("coordinator")?))?;
    let mut admin = AdminClient::new(coordinator.connect().await?);
    let plans = admin.list_plans(ListPlansRequest { limit: 0 }).await?.into_inner().plans;
    ensure!(plans.len() > 1, "no plan was made");
    let mut times: Vec<_> = plans.iter().map(|plan| (plan.epoch, plan.made_at)).collect();
    times.sort_unstable();
    let made: Vec<_> = times.iter().map(|&(_, at)| at).collect();
    ensure!(made.is_sorted() && made[made.len() - 1] - made[0] < LONG_S, "{times:?}");
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");

    // The next leader begins by another clock and is followed all the same.
    cluster.kill("coordinator").await?;
    cluster.step_clock("-10y")?;
    cluster.start("coordinator")?;
    cluster.ready("coordinator").await?;
    cluster.until("coordinator", "amoe_coordinator_sessions", |count| count == 4.0).await?;
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");
    cluster.terminate(&["gateway"]).await?;
    cluster.ended().await
}

/// By a clock that is years ahead every certificate is over: what is connected stays so, whoever comes anew is not
/// let in, and is when the clock is right again.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_judged_by_the_clock_when_somebody_connects() -> Result<()> {
    let asks = asks(0..ROUND);
    let mut cluster = Processes::with_clock(1, 2, true).await?;
    let client = cluster.client()?;
    let expected = client.ask_all(&asks, AT_ONCE).await?;
    cluster.step_clock("+10y")?;
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");
    cluster.kill("expert-1").await?;
    let members = "amoe_coordinator_members_lost_total";
    cluster.until("coordinator", members, |count| count == 1.0).await?;
    cluster.start("expert-1")?;
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");
    // An attention node, an expert node and the gateway.
    assert_eq!(cluster.read("coordinator", "amoe_coordinator_sessions").await?, Some(3.0));
    cluster.step_clock("+0s")?;
    cluster.ready("expert-1").await?;
    ensure!(expected == client.ask_all(&asks, AT_ONCE).await?, "an answer has changed");
    cluster.terminate(&["gateway"]).await?;
    cluster.ended().await
}
