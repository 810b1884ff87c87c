//! Experts move from node to node while they are in use: no request fails, and no bit of an answer changes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use policy::placement::Policy;
use proto::v1::{ExportPlanRequest, PlanTable, ShowPlanRequest};
use tests::{Answer, Cluster, Layout, LinkKind, checkpoint, sequence};
use tokio::try_join;

const MODEL: &str = "goldens/qwen3_moe";
const VOCAB: u32 = 512;
const SEQUENCES: u32 = 24;
const HELD: &str = "amoe_expert_resident_bytes";

async fn alone() -> Result<Vec<Answer>> {
    let cluster = Cluster::start(&checkpoint(MODEL), &Layout::default()).await?;
    let mut answers = Vec::new();
    for number in 0..SEQUENCES {
        answers.push(cluster.run(0, sequence(number, VOCAB)).await?);
    }
    cluster.stop().await?;
    Ok(answers)
}

/// Runs all sequences again and again until `done`, and has every answer be the `expected` one.
async fn load(
    cluster: &Cluster,
    attention: usize,
    expected: &[Answer],
    done: &tokio::sync::watch::Sender<bool>,
) -> Result<usize> {
    let mut rounds = 0;
    while !*done.borrow() {
        let all = (0..SEQUENCES)
            .map(|number| cluster.run(number as usize % attention, sequence(number, VOCAB)));
        let answers = try_join_all(all).await?;
        for (number, (answer, expected)) in answers.iter().zip(expected).enumerate() {
            assert_eq!(answer, expected, "sequence {number} of round {rounds}");
        }
        rounds += 1;
    }
    Ok(rounds)
}

/// Every expert to the next node.
fn turned(mut table: PlanTable) -> PlanTable {
    let replicas = |table: &PlanTable| -> BTreeSet<String> {
        let experts = table.layers.iter().flat_map(|layer| &layer.experts);
        experts.flat_map(|expert| expert.nodes.clone()).collect()
    };
    let names: Vec<String> = replicas(&table).into_iter().collect();
    for node in table.layers.iter_mut().flat_map(|layer| &mut layer.experts) {
        for name in &mut node.nodes {
            let at = names.iter().position(|known| known == name).unwrap_or(0);
            name.clone_from(&names[(at + 1) % names.len()]);
        }
    }
    table
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_experts_move_under_load_and_nobody_notices() -> Result<()> {
    let expected = alone().await?;
    let layout = Layout { attention: 2, experts: 3, links: LinkKind::Grpc, ..Layout::default() };
    let cluster = Cluster::start(&checkpoint(MODEL), &layout).await?;
    cluster.run(0, sequence(0, VOCAB)).await?;
    let held = cluster.read(HELD)?;
    let done = tokio::sync::watch::Sender::new(false);
    let moves = async {
        let mut admin = cluster.admin()?;
        for _ in 0..4 {
            let before = cluster.read("amoe_attention_tokens_total")?;
            let request = ExportPlanRequest { epoch: 0 };
            let table = turned(admin.export_plan(request).await?.into_inner());
            let epoch = admin.import_plan(table).await?.into_inner().epoch;
            loop {
                let shown = admin.show_plan(ShowPlanRequest {}).await?.into_inner();
                if shown.serving_epoch >= epoch {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            // Tokens are drawn by the new plan before it is moved on from.
            cluster.until("amoe_attention_tokens_total", |tokens| tokens > before + 50.0).await?;
        }
        done.send_replace(true);
        anyhow::Ok(())
    };
    let (rounds, ()) = try_join!(load(&cluster, layout.attention, &expected, &done), moves)?;
    ensure!(rounds > 0, "nothing ran");
    assert_eq!(cluster.read("amoe_attention_refused_total")?, 0.0);
    // What moved away is freed, and everything is held once again.
    cluster.until(HELD, |bytes| bytes == held).await.context("old replicas are not freed")?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_seen_of_the_load_moves_experts_by_itself() -> Result<()> {
    let expected = alone().await?;
    let layout = Layout { attention: 2, experts: 3, placement: Policy::Gem, ..Layout::default() };
    let cluster = Cluster::start(&checkpoint(MODEL), &layout).await?;
    let done = tokio::sync::watch::Sender::new(false);
    let moved = async {
        // The second plan is the first that knows of the load; three expert nodes hold it.
        let newer = |epochs: f64| epochs >= 2.0 * layout.experts as f64;
        cluster.until("amoe_expert_plan_epoch", newer).await?;
        done.send_replace(true);
        anyhow::Ok(())
    };
    try_join!(load(&cluster, layout.attention, &expected, &done), moved)?;
    cluster.stop().await
}
