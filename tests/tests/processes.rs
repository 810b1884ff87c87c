//! Every role a process of its own, over loopback and etcd: the answers are those of one process, whatever is
//! lost on the way, and a stop loses nothing.

use anyhow::{Context, Result, ensure};
use proto::v1::{GenerateRequest, SamplingParams, generate_request::Prompt};
use tests::{
    ask,
    client::{Ask, Reply},
    processes::Processes,
};
use tokio::try_join;

/// Requests that run at a time.
const AT_ONCE: usize = 16;
/// Answers after which a load is surely in full swing.
const SWING: usize = 6;

fn asks(numbers: std::ops::Range<u32>) -> Vec<Ask> {
    numbers.map(ask).collect()
}

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
        for (role, count) in [("attention", 2.0), ("expert", 3.0)] {
            let labels = format!("health=\"ready\",role=\"{role}\"");
            cluster.metric("coordinator", "amoe_coordinator_members", &labels, count).await?;
        }
        anyhow::Ok(())
    };
    let (while_back, ()) = try_join!(load(40), back)?;
    replies.extend(while_back);
    replies.extend(load(60).await.context("when all have registered again")?);

    assert_same(&asks, &expected, &replies);
    cluster.terminate(&["etcd", "gateway", "expert-2", "coordinator"]).await?;
    cluster.ended().await
}

/// A node may die under load and come back, or stay away: it costs time, and not one answer.
#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_change_no_answer() -> Result<()> {
    let asks = asks(0..80);
    let expected = expected(&asks).await?;
    let mut cluster = Processes::cluster(2, 3).await?;
    let client = cluster.client()?;
    let load = async |from: usize| client.ask_all(&asks[from..from + 20], AT_ONCE).await;
    let mut replies = Vec::new();
    for (from, node) in [(0, "expert-1"), (20, "attention-0")] {
        let restart = async {
            client.answered(from + SWING).await?;
            cluster.kill(node).await?;
            cluster.start(node)?;
            cluster.ready(node).await
        };
        let (some, ()) = try_join!(load(from), restart).with_context(|| format!("{node} dies"))?;
        replies.extend(some);
    }

    let gone = async {
        client.answered(40 + SWING).await?;
        cluster.kill("expert-2").await?;
        let lost = "amoe_coordinator_members_lost_total";
        cluster.metric("coordinator", lost, "role=\"expert\"", 1.0).await
    };
    let (some, ()) = try_join!(load(40), gone).context("expert-2 dies and stays away")?;
    replies.extend(some);
    replies.extend(load(60).await.context("with one expert node less")?);

    assert_same(&asks, &expected, &replies);
    cluster.start("expert-2")?;
    cluster.ready("expert-2").await?;
    cluster.terminate(&["expert-0", "expert-1", "attention-1"]).await?;
    cluster.ended().await
}

/// All are asked to stop while requests run: these get their answers, and every process exits 0.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_finishes_what_runs() -> Result<()> {
    let asks: Vec<_> = (0..24).map(long).collect();
    let mut single = Processes::single().await?;
    let expected = single.client()?.ask_all(&asks, asks.len()).await?;
    single.terminate(&[]).await?;
    single.ended().await?;

    let mut cluster = Processes::cluster(2, 3).await?;
    let client = cluster.client()?;
    let stop = async {
        let accepted = "vllm:request_params_n_count";
        cluster.metric("gateway", accepted, "", asks.len() as f64).await?;
        cluster.terminate(&["expert-0", "coordinator", "attention-1", "gateway"]).await?;
        ensure!(client.answers() < asks.len(), "nothing ran any more when it was stopped");
        Ok(())
    };
    let (replies, ()) = try_join!(client.ask_all(&asks, asks.len()), stop)?;
    assert_same(&asks, &expected, &replies);
    cluster.ended().await
}

/// A request that runs for a while.
fn long(number: u32) -> Ask {
    let sampling = SamplingParams {
        max_tokens: Some(200),
        seed: Some(number.into()),
        ignore_eos: Some(true),
        ..SamplingParams::default()
    };
    let prompt = Prompt::Text(format!("Chapter {number}"));
    let sampling = Some(sampling);
    Ask::Grpc(GenerateRequest { prompt: Some(prompt), sampling, ..GenerateRequest::default() })
}
