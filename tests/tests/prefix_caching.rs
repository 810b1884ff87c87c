//! Sequences that begin alike share keys and values, and nobody can tell by the answers.

use anyhow::Result;
use domain::{SamplingParams, SequenceRequest};
use futures::future::try_join_all;
use model::BLOCK_TOKENS;
use tests::{Answer, Cluster, Layout, checkpoint};

const VOCAB: u32 = 512;
const CACHED: &str = "amoe_attention_cached_tokens_total";
/// Conversations and their turns.
const CONVERSATIONS: u32 = 3;
const TURNS: u32 = 4;

/// What somebody says: a text of his own after a system prompt that all have.
fn said(conversation: u32, turn: u32) -> Vec<u32> {
    let own =
        (0..13 + 5 * turn).map(move |at| (conversation * 7919 + turn * 613 + at * 31) % VOCAB);
    let system = (0..40).map(|at| at * 17 % VOCAB).filter(|_| turn == 0);
    system.chain(own).collect()
}

fn turn(tokens: &[u32], conversation: u32) -> SequenceRequest {
    SequenceRequest {
        id: format!("conversation-{conversation}"),
        prompt_len: tokens.len() as u32,
        tokens: tokens.to_vec(),
        sampling: SamplingParams {
            temperature: 0.8,
            seed: conversation.into(),
            tokens_max: 21,
            ignore_eos: true,
            logprobs: Some(3),
            ..SamplingParams::default()
        },
    }
}

/// One conversation: every turn's prompt is all that was said before.
async fn converse(cluster: &Cluster, conversation: u32) -> Result<Vec<Answer>> {
    let (mut tokens, mut answers) = (Vec::new(), Vec::new());
    for number in 0..TURNS {
        tokens.extend(said(conversation, number));
        let answer = cluster.run(0, turn(&tokens, conversation)).await?;
        tokens.extend(&answer.tokens);
        answers.push(answer);
    }
    Ok(answers)
}

/// All conversations one after the other, then all at once.
async fn converse_twice(model: &str, layout: &Layout) -> Result<([Vec<Vec<Answer>>; 2], f64)> {
    let cluster = Cluster::start(&checkpoint(model), layout).await?;
    let mut by_turns = Vec::new();
    for conversation in 0..CONVERSATIONS {
        by_turns.push(converse(&cluster, conversation).await?);
    }
    let once = cluster.read(CACHED)?;
    let at_once = (0..CONVERSATIONS).map(|conversation| converse(&cluster, conversation));
    let at_once = try_join_all(at_once).await?;
    cluster.stop().await?;
    Ok(([by_turns, at_once], once))
}

/// Tokens that the conversations find in a cache that keeps everything, held one after the other.
fn to_be_found() -> usize {
    let whole = |tokens: usize| tokens / BLOCK_TOKENS * BLOCK_TOKENS;
    let mut found = 0;
    for conversation in 0..CONVERSATIONS {
        let mut tokens = 0;
        for number in 0..TURNS {
            found += match (conversation, number) {
                (0, 0) => 0,
                // The system prompt, of the conversation before.
                (_, 0) => whole(40),
                // Nothing follows the last token that was drawn: it was never computed.
                (_, _) => whole(tokens - 1),
            };
            tokens += said(conversation, number).len() + 21;
        }
    }
    found
}

async fn check(model: &str) -> Result<()> {
    let without = Layout { prefix_caching: false, ..Layout::default() };
    let ([expected, _], found) = converse_twice(model, &without).await?;
    assert_eq!(found, 0.0);
    let (answers, found) = converse_twice(model, &Layout::default()).await?;
    assert_eq!(found as usize, to_be_found(), "tokens found in the cache");
    // So little memory that sequences give way, and what is cached with them.
    let scarce = Layout { kv_bytes: 256 << 10, ..Layout::default() };
    let (scarce, _) = converse_twice(model, &scarce).await?;
    for answers in answers.iter().chain(&scarce) {
        assert!(answers == &expected, "an answer of {model} changed: {answers:?} {expected:?}");
    }
    Ok(())
}

/// Four choices of one prompt come at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_several_choices_is_computed_once() -> Result<()> {
    const CHOICES: usize = 4;
    let prompt: Vec<u32> = (0..100).map(|at| at * 17 % VOCAB).collect();
    let cluster = Cluster::start(&checkpoint("goldens/qwen3_moe"), &Layout::default()).await?;
    let choices = (0..CHOICES).map(|_| cluster.run(0, turn(&prompt, 1)));
    let answers = try_join_all(choices).await?;
    assert!(
        answers.windows(2).all(|pair| pair[0] == pair[1]),
        "one seed, other answers: {answers:?}"
    );
    let whole = (prompt.len() - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    assert_eq!(cluster.read(CACHED)? as usize, (CHOICES - 1) * whole);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_find_their_past_and_answer_alike() -> Result<()> {
    check("goldens/qwen3_moe").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_do_with_latent_attention() -> Result<()> {
    check("goldens/deepseek_v3").await
}
