//! Every role a process of its own, over loopback and etcd: the answers are those of one process, whatever is
//! lost on the way, and a stop loses nothing.

use anyhow::{Context, Result, ensure};
use tests::{
    ask, asks,
    client::{Ask, Client, Reply},
    long_ask,
    processes::Processes,
};
use tokio::try_join;

/// Requests that run at a time.
const AT_ONCE: usize = 16;
/// Answers after which a load is surely in full swing.
const SWING: usize = 6;

/// What one process answers. Its answers are worth comparing only if they differ in kind.
async fn expected(asks: &[Ask]) -> Result<Vec<Reply>> {
    let mut single = Processes::single().await?;
    let replies = single.client()?.ask_all(asks, AT_ONCE).await?;
    single.terminate(&[]).await?;
    single.ended().await?;
    let choices: Vec<_> = replies.iter().flat_map(|reply| reply.choices.values()).collect();
    for finish in ["stop", "length", "FINISH_REASON_STOP", "FINISH_REASON_LENGTH"] {
        ensure!(choices.iter().any(|choice| choice.finish == finish), "nothing ends by {finish}");
    }
    ensure!(choices.iter().all(|choice| !choice.tokens.is_empty()), "a choice without tokens");
    ensure!(choices.iter().any(|choice| !choice.logprobs.is_empty()), "no log-probabilities");
    Ok(replies)
}

#[track_caller]
fn assert_same(asks: &[Ask], expected: &[Reply], replies: &[Reply]) {
    assert_eq!((asks.len(), asks.len()), (expected.len(), replies.len()));
    for ((ask, expected), reply) in asks.iter().zip(expected).zip(replies) {
        assert_eq!(expected, reply, "{ask:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_get_the_answers_of_one_process() -> Result<()> {
    let asks = asks(0..200);
    let expected = expected(&asks).await?;
    let mut cluster = Processes::cluster(2, 3).await?;
    let replies = cluster.client()?.ask_all(&asks, AT_ONCE).await?;
    assert_same(&asks, &expected, &replies);
    cluster.terminate(&["coordinator", "expert-1", "attention-0", "gateway"]).await?;
    cluster.ended().await
}

/// The control plane is no part of the path of a token.
#[tokio::test(flavor = "multi_thread")]
async fn without_coordinator_and_etcd_requests_go_on_as_before() -> Result<()> {
    let asks = asks(0..80);
    let expected = expected(&asks).await?;
    let mut cluster = Processes::cluster(2, 3).await?;
    let client = cluster.client()?;
    let load = async |from: usize| client.ask_all(&asks[from..from + 20], AT_ONCE).await;

    let away = async {
        client.answered(SWING).await?;
        cluster.kill("coordinator").await?;
        cluster.kill("etcd").await
    };
    let (mut replies, ()) = try_join!(load(0), away)?;
    replies.extend(load(20).await.context("while both are away")?);

    let back = async {
        client.answered(40 + SWING).await?;
        cluster.start("etcd")?;
        cluster.start("coordinator")?;
        cluster.ready("coordinator").await?;
        // Two attention nodes, three expert nodes and the gateway.
        cluster.until("coordinator", "amoe_coordinator_sessions", |count| count == 6.0).await
    };
    let (while_back, ()) = try_join!(load(40), back)?;
    replies.extend(while_back);
    replies.extend(load(60).await.context("when all have registered again")?);

    assert_same(&asks, &expected, &replies);
    cluster.terminate(&["etcd", "gateway", "expert-2", "coordinator"]).await?;
    cluster.ended().await
}

/// Requests of all kinds among which some run long.
fn round(number: u32) -> Vec<Ask> {
    let long = (0..10).map(|nth| long_ask(10 * number + nth));
    long.chain((0..10).map(|nth| ask(10 * number + nth))).collect()
}

/// Asks for a round, and disturbs the cluster when all nodes are in the middle of it.
async fn disturbed(
    asks: &[Ask],
    client: &Client,
    cluster: &mut Processes,
    disturb: impl AsyncFnOnce(&mut Processes) -> Result<()>,
) -> Result<Vec<Reply>> {
    let disturb = async {
        let generated = "vllm:generation_tokens_total";
        let before = cluster.read("gateway", generated).await?.context("the gateway is away")?;
        cluster.until("gateway", generated, |count| count > before + 150.0).await?;
        disturb(cluster).await
    };
    let (replies, ()) = try_join!(client.ask_all(asks, asks.len()), disturb)?;
    Ok(replies)
}

async fn restart(cluster: &mut Processes, node: &str) -> Result<()> {
    cluster.kill(node).await?;
    cluster.start(node)?;
    cluster.ready(node).await
}

/// A node may die under load and come back, or stay away: it costs time, and not one answer.
#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_change_no_answer() -> Result<()> {
    let rounds: Vec<_> = (0..4).map(round).collect();
    let expected = expected(&rounds.concat()).await?;
    let mut cluster = Processes::cluster(2, 3).await?;
    let client = cluster.client()?;

    let expert = async |cluster: &mut Processes| restart(cluster, "expert-1").await;
    let mut replies = disturbed(&rounds[0], &client, &mut cluster, expert).await?;
    let gone = async |cluster: &mut Processes| {
        cluster.kill("expert-2").await?;
        let lost = "amoe_coordinator_members_lost_total";
        cluster.until("coordinator", lost, |count| count == 1.0).await
    };
    replies.extend(disturbed(&rounds[1], &client, &mut cluster, gone).await?);
    let resumed = "amoe_gateway_sequences_resumed_total";
    assert_eq!(cluster.read("gateway", resumed).await?, Some(0.0), "experts were lost, not more");

    let attention = async |cluster: &mut Processes| restart(cluster, "attention-0").await;
    replies.extend(disturbed(&rounds[2], &client, &mut cluster, attention).await?);
    assert!(cluster.read("gateway", resumed).await? > Some(0.0), "nothing ran on attention-0");

    cluster.start("expert-2")?;
    cluster.ready("expert-2").await?;
    replies.extend(client.ask_all(&rounds[3], AT_ONCE).await?);
    assert_same(&rounds.concat(), &expected, &replies);
    cluster.terminate(&["expert-0", "expert-1", "attention-1"]).await?;
    cluster.ended().await
}

/// Asks all processes to stop, in an order, while `asks` run: these get their answers, and every
/// process exits 0.
async fn stop_under_load(
    mut cluster: Processes,
    gateway: &str,
    asks: &[Ask],
    order: &[&str],
) -> Result<Vec<Reply>> {
    let client = cluster.client()?;
    let stop = async {
        let accepted = "vllm:request_params_n_count";
        cluster.until(gateway, accepted, |count| count == asks.len() as f64).await?;
        cluster.terminate(order).await?;
        ensure!(client.answers() < asks.len(), "nothing ran any more when it was stopped");
        Ok(())
    };
    let (replies, ()) = try_join!(client.ask_all(asks, asks.len()), stop)?;
    cluster.ended().await?;
    Ok(replies)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_finishes_what_runs() -> Result<()> {
    let asks: Vec<_> = (0..24).map(long_ask).collect();
    let single = Processes::single().await?;
    let expected = stop_under_load(single, "amoe", &asks, &[]).await.context("one process")?;
    let cluster = Processes::cluster(2, 3).await?;
    let order = ["expert-0", "coordinator", "attention-1", "gateway"];
    let replies = stop_under_load(cluster, "gateway", &asks, &order).await?;
    assert_same(&asks, &expected, &replies);
    Ok(())
}
