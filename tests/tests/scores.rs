//! What a prompt's tokens are told to be worth is, bit for bit, what they were worth when they were generated.

use anyhow::{Result, ensure};
use domain::SequenceRequest;
use futures::future::try_join_all;
use tests::{Answer, Cluster, Layout, checkpoint, sequence};

const VOCAB: u32 = 512;
const SEQUENCES: u32 = 12;

/// The same sequence with what it generated as its prompt, to be scored.
fn again(request: &SequenceRequest, answer: &Answer) -> SequenceRequest {
    let mut again = request.clone();
    again.tokens.extend(&answer.tokens);
    again.prompt_len = again.tokens.len() as u32;
    again.sampling.tokens_max = 1;
    again.sampling.prompt_logprobs = again.sampling.logprobs;
    again
}

/// Generates, and has everything scored: one by one, then all at once amid what generates.
async fn check(model: &str, layout: &Layout) -> Result<()> {
    let cluster = Cluster::start(&checkpoint(model), layout).await?;
    let requests: Vec<_> = (0..SEQUENCES).map(|number| sequence(number, VOCAB)).collect();
    let mut scored = Vec::new();
    for request in &requests {
        let answer = cluster.run(0, request.clone()).await?;
        let again = again(request, &answer);
        let scores = cluster.run(0, again.clone()).await?.prompt_bits;
        ensure!(scores.len() == again.tokens.len() - 1, "{} scores", scores.len());
        let generated = &scores[request.tokens.len() - 1..];
        for (told, drawn) in generated.iter().zip(&answer.logprob_bits) {
            let (token, own) = drawn[0];
            ensure!(
                told[0].1 == own && told[1..] == drawn[1..],
                "{token}: {told:?} is not {drawn:?}"
            );
        }
        scored.push((again, scores));
    }
    let all = scored.iter().map(|(again, _)| again).chain(&requests);
    let answers = try_join_all(all.map(|request| cluster.run(0, request.clone()))).await?;
    for ((again, scores), answer) in scored.iter().zip(&answers) {
        ensure!(*scores == answer.prompt_bits, "{} changed in company", again.id);
    }
    ensure!(answers[scored.len()..].iter().all(|answer| answer.prompt_bits.is_empty()));
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_are_what_was_drawn_from() -> Result<()> {
    check("goldens/qwen3_moe", &Layout::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_are_the_same_in_chunks_and_with_little_memory() -> Result<()> {
    let layout =
        Layout { chunk_tokens_max: 7, kv_bytes: 128 << 10, experts: 2, ..Layout::default() };
    check("goldens/deepseek_v3", &layout).await
}
