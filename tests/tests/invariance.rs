//! The answer does not depend on the batch: equal bits for any number of nodes, schedule, link, chunk and company.

use anyhow::Result;
use futures::future::try_join_all;
use model::Compute;
use node::config::Schedule;
use policy::routing::Policy;
use tests::{Answer, Cluster, Layout, LinkKind, checkpoint, sequence};

const VOCAB: u32 = 512;
const OTHERS: u32 = 32;

/// Each of four sequences run alone, one after the other, on one attention and one expert node.
async fn alone(model: &str, layout: &Layout) -> Result<Vec<Answer>> {
    let cluster = Cluster::start(&checkpoint(model), layout).await?;
    let mut answers = Vec::new();
    for number in 0..4 {
        answers.push(cluster.run(0, sequence(number, VOCAB)).await?);
    }
    cluster.stop().await?;
    Ok(answers)
}

/// The same four amid 32 others, spread over all attention nodes.
async fn in_company(model: &str, layout: &Layout) -> Result<Vec<Answer>> {
    let cluster = Cluster::start(&checkpoint(model), layout).await?;
    let all = (0..4 + OTHERS).map(|number| {
        let attention = number as usize % layout.attention;
        cluster.run(attention, sequence(number, VOCAB))
    });
    let mut answers = try_join_all(all).await?;
    cluster.stop().await?;
    answers.truncate(4);
    Ok(answers)
}

async fn check(model: &str, layouts: &[Layout]) -> Result<()> {
    let base = Layout { compute: layouts[0].compute, ..Layout::default() };
    let expected = alone(model, &base).await?;
    assert!(expected.iter().all(|answer| answer.finish == Some("length")));
    for layout in layouts {
        let answers = in_company(model, layout).await?;
        for (number, (expected, answer)) in expected.iter().zip(&answers).enumerate() {
            assert_eq!(expected, answer, "sequence {number} of {model} under {layout:?}");
        }
    }
    Ok(())
}

fn layout(attention: usize, experts: usize, schedule: Schedule, links: LinkKind) -> Layout {
    Layout { attention, experts, schedule, links, ..Layout::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asynchronous_clusters_give_the_bits_of_one_node() -> Result<()> {
    let layouts = [
        layout(1, 1, Schedule::Async, LinkKind::Memory),
        layout(1, 2, Schedule::Async, LinkKind::Grpc),
        layout(2, 4, Schedule::Async, LinkKind::Memory),
        layout(2, 3, Schedule::Async, LinkKind::Grpc),
    ];
    check("goldens/qwen3_moe", &layouts).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lockstep_clusters_give_the_bits_of_one_node() -> Result<()> {
    let layouts = [
        layout(1, 1, Schedule::Lockstep, LinkKind::Memory),
        layout(2, 2, Schedule::Lockstep, LinkKind::Grpc),
        layout(2, 4, Schedule::Lockstep, LinkKind::Memory),
    ];
    check("goldens/qwen3_moe", &layouts).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_give_the_bits_of_one_node_whoever_chooses_them() -> Result<()> {
    let replicas = |layout| Layout { replicas: true, ..layout };
    let by_batch = |policy, layout| Layout { by_batch: Some(policy), ..replicas(layout) };
    let layouts = [
        replicas(layout(2, 3, Schedule::Async, LinkKind::Memory)),
        by_batch(Policy::Metro, layout(2, 3, Schedule::Lockstep, LinkKind::Grpc)),
        by_batch(Policy::EvenSplit, layout(3, 2, Schedule::Lockstep, LinkKind::Memory)),
    ];
    check("goldens/qwen3_moe", &layouts).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latent_attention_dense_layers_and_shared_experts_keep_their_bits() -> Result<()> {
    let layouts = [
        layout(2, 2, Schedule::Async, LinkKind::Grpc),
        layout(2, 2, Schedule::Lockstep, LinkKind::Memory),
    ];
    check("goldens/deepseek_v3", &layouts).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_f32_path_keeps_its_bits_for_any_chunk() -> Result<()> {
    let exact = |layout: Layout| Layout { compute: Compute::F32, ..layout };
    let layouts = [
        exact(Layout { chunk_tokens_max: 7, ..layout(1, 2, Schedule::Async, LinkKind::Memory) }),
        exact(Layout { chunk_tokens_max: 512, ..layout(2, 1, Schedule::Async, LinkKind::Grpc) }),
    ];
    check("goldens/qwen3_moe", &layouts).await
}

/// So little KV memory that sequences give way to each other again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_that_gave_way_go_on_with_the_same_bits() -> Result<()> {
    let layouts = [Layout { kv_bytes: 512 << 10, ..Layout::default() }];
    check("goldens/qwen3_moe", &layouts).await
}
