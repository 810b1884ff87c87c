//! Which replica runs an expert, in clusters of processes: a node that slows down is relieved, and advice outlives its
//! coordinator.

use std::time::Instant;

use anyhow::{Context, Result};
use tests::{client::Ask, long_ask, processes::Processes};
use tokio::{sync::watch, try_join};

/// Requests that run at a time.
const AT_ONCE: usize = 16;
/// Every expert node holds every expert.
const EVERYWHERE: [(&str, &str); 1] = [("PLACEMENT__FILL_SPARE_SLOTS", "true")];
const PAIRS: &str = "amoe_expert_pairs_total";

fn leased(node: &str) -> String {
    format!("amoe_coordinator_leased_experts{{node=\"{node}\"}}")
}

/// Asks the same again and again until `done`; the answers never change.
async fn load(cluster: &tests::client::Client, done: &watch::Sender<bool>) -> Result<()> {
    let asks: Vec<Ask> = (0..AT_ONCE as u32).map(long_ask).collect();
    let expected = cluster.ask_all(&asks, AT_ONCE).await?;
    while !*done.borrow() {
        assert_eq!(cluster.ask_all(&asks, AT_ONCE).await?, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_slows_down_loses_its_load() -> Result<()> {
    let mut cluster = Processes::cluster_with(1, 2, &EVERYWHERE).await?;
    let client = cluster.client()?;
    let done = watch::Sender::new(false);
    let slow_down = async {
        let pairs = |count: f64| count > 2_000.0;
        for node in ["expert-0", "expert-1"] {
            cluster.until(node, PAIRS, pairs).await.context("both nodes are used")?;
        }
        let read = async |node| {
            let count = cluster.read("coordinator", &leased(node)).await?;
            count.context("the coordinator is away")
        };
        let all = read("expert-0").await? + read("expert-1").await?;
        let began = Instant::now();
        let throttle = cluster.throttle("expert-1")?;
        let little = |count: f64| count < all / 4.0;
        cluster.until("coordinator", &leased("expert-1"), little).await?;
        println!("relieved after {:.1} s", began.elapsed().as_secs_f64());
        throttle.end().await?;
        done.send_replace(true);
        anyhow::Ok(())
    };
    try_join!(load(&client, &done), slow_down)?;
    cluster.terminate(&[]).await?;
    cluster.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_their_coordinator() -> Result<()> {
    let mut cluster = Processes::cluster_with(1, 2, &EVERYWHERE).await?;
    let client = cluster.client()?;
    let done = watch::Sender::new(false);
    let lose = async {
        for node in ["expert-0", "expert-1"] {
            cluster.until(node, PAIRS, |count| count > 500.0).await?;
        }
        cluster.kill("coordinator").await?;
        // Without a lease all would go to one of them.
        for node in ["expert-0", "expert-1"] {
            let before = cluster.read(node, PAIRS).await?.context("the node is away")?;
            cluster.until(node, PAIRS, |count| count > before + 2_000.0).await?;
        }
        cluster.start("coordinator")?;
        cluster.ready("coordinator").await?;
        cluster.until("coordinator", "amoe_coordinator_sessions", |count| count == 4.0).await?;
        for node in ["expert-0", "expert-1"] {
            let before = cluster.read(node, PAIRS).await?.context("the node is away")?;
            cluster.until(node, PAIRS, |count| count > before + 2_000.0).await?;
        }
        done.send_replace(true);
        anyhow::Ok(())
    };
    try_join!(load(&client, &done), lose)?;
    cluster.terminate(&[]).await?;
    cluster.ended().await
}
