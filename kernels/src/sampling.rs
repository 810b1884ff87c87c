//! From logits to the next token: penalties, filters, the draw, and log-probabilities.
//!
//! The order is vLLM's: log-probabilities of the raw logits, then what is allowed, bans and bias, penalties, temperature, min-p,
//! top-k, top-p. Every filter is a lower bound on the logit, so equal logits stay or go together. The draw is a
//! function of (seed, position) alone: a token depends neither on its batch nor on a restart.

mod counts;
mod draw;
mod scan;

use std::fmt;

pub use counts::TokenCounts;

use crate::Cpu;
use crate::disjoint::DisjointMut;
use crate::lanes::{self, Kernel, Lanes};

/// Below this the temperature counts as zero (vLLM's bound).
const GREEDY_BELOW: f32 = 1e-5;

/// How one sequence is sampled; the defaults draw from the plain distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSpec {
    /// 0 takes the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logit of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Taken off for each occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    /// Report the chosen token's log-probability and this many most likely alternatives.
    pub logprobs: Option<usize>,
}

impl Default for SamplingSpec {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// One row's request.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    pub spec: &'a SamplingSpec,
    pub counts: &'a TokenCounts,
    /// Tokens that must not come now (end tokens before `min_tokens`).
    pub banned: &'a [u32],
    /// Where only some tokens may come: bit `id % 32` of word `id / 32` is set for each of them. Ids beyond the last word
    /// may not.
    pub allowed: Option<&'a [u32]>,
    /// The token that comes here in a text that is there already: nothing is drawn, only log-probabilities are told.
    pub given: Option<u32>,
    /// Position of the new token in its sequence: with the seed it fixes the draw.
    pub position: u64,
}

/// One row's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Log-probability of the token under the raw logits, when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens under the raw logits with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// Buffers of [`sample`]; grow to the largest vocabulary seen and are then reused.
#[derive(Default)]
pub struct SamplingScratch {
    workers: Vec<Worker>,
}

impl fmt::Debug for SamplingScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplingScratch").field("workers", &self.workers.len()).finish()
    }
}

#[derive(Default)]
struct Worker {
    scan: scan::Buffers,
    /// Weight of each token, relative to the most likely one.
    weights: Vec<f32>,
    /// Logits that penalties and bias changed, with their old values.
    changed: Vec<(u32, f32)>,
    /// All logits of a row of which only some tokens are allowed.
    kept: Vec<f32>,
}

/// Samples a token for each row of `logits` (`[draws.len(), vocabulary]`) into `out`.
///
/// Token ids outside the vocabulary (in bias, bans or counts) count for nothing. Logits are restored on return.
///
/// # Panics
/// If `logits` is not one row for each draw.
pub fn sample(
    cpu: &Cpu,
    logits: &mut [f32],
    draws: &[Draw<'_>],
    scratch: &mut SamplingScratch,
    out: &mut Vec<Sampled>,
) {
    out.clear();
    if draws.is_empty() {
        return;
    }
    let vocabulary = logits.len() / draws.len();
    assert!(vocabulary > 0 && vocabulary * draws.len() == logits.len(), "logits of each draw");
    out.resize(draws.len(), Sampled { token: 0, logprob: None, top: Vec::new() });
    scratch.workers.resize_with(scratch.workers.len().max(cpu.threads()), Worker::default);
    let workers = DisjointMut::new(&mut scratch.workers);
    let answers = DisjointMut::new(out);
    let logits = DisjointMut::new(logits);
    cpu.for_each(draws.len(), |row, worker| {
        // SAFETY: a row belongs to one task, and a worker number to one thread at a time.
        let (logits, worker, answer) = unsafe {
            (
                logits.part(row * vocabulary..(row + 1) * vocabulary),
                &mut workers.part(worker..worker + 1)[0],
                &mut answers.part(row..row + 1)[0],
            )
        };
        *answer = lanes::run(cpu.isa(), Row { draw: draws[row], logits, worker });
    });
}

/// One row at work.
struct Row<'a> {
    draw: Draw<'a>,
    logits: &'a mut [f32],
    worker: &'a mut Worker,
}

impl Kernel for Row<'_> {
    type Output = Sampled;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> Sampled {
        let Self { draw, logits, worker } = self;
        let raw = draw.spec.logprobs.map(|alternatives| {
            // SAFETY: the caller vouches for the instruction set.
            unsafe {
                let normalizer = scan::log_sum_exp::<L>(logits);
                (normalizer, worker.scan.largest::<L>(logits, alternatives).to_vec())
            }
        });
        if let Some(token) = draw.given {
            return told(token, raw, logits);
        }
        if let Some(allowed) = draw.allowed {
            worker.kept.clear();
            worker.kept.extend_from_slice(logits);
            restrict(allowed, logits);
        }
        change(&draw, logits, &mut worker.changed);
        // SAFETY: as above.
        let token = unsafe { choose::<L>(&draw, logits, worker) };
        for (id, old) in worker.changed.drain(..).rev() {
            logits[id as usize] = old;
        }
        if draw.allowed.is_some() {
            logits.copy_from_slice(&worker.kept);
        }
        told(token, raw, logits)
    }
}

/// A token with its log-probability by the raw logits, their normalizer and the largest of them, if they are asked for.
fn told(token: u32, raw: Option<(f32, Vec<(u32, f32)>)>, logits: &[f32]) -> Sampled {
    let Some((normalizer, mut top)) = raw else {
        return Sampled { token, logprob: None, top: Vec::new() };
    };
    top.iter_mut().for_each(|(_, logit)| *logit -= normalizer);
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Sampled { token, logprob: Some(logit - normalizer), top }
}

/// Makes all tokens but the allowed ones impossible.
fn restrict(allowed: &[u32], logits: &mut [f32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words).filter(|&(_, word)| word != u32::MAX) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Applies bias, bans and penalties, noting what they overwrite.
fn change(draw: &Draw<'_>, logits: &mut [f32], changed: &mut Vec<(u32, f32)>) {
    let Draw { spec, counts, banned, .. } = *draw;
    changed.clear();
    let mut edit = |id: u32, f: &dyn Fn(f32) -> f32| {
        if let Some(logit) = logits.get_mut(id as usize) {
            changed.push((id, *logit));
            *logit = f(*logit);
        }
    };
    for &(id, bias) in &spec.logit_bias {
        edit(id, &|logit| logit + bias);
    }
    for &id in banned {
        edit(id, &|_| f32::NEG_INFINITY);
    }
    let penalties = (spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty);
    if penalties == (1.0, 0.0, 0.0) {
        return;
    }
    let (repetition, presence, frequency) = penalties;
    for (id, count) in counts.iter() {
        edit(id, &|logit| {
            let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
            if count == 0 {
                return logit;
            }
            #[expect(clippy::cast_precision_loss, reason = "a sequence is far shorter than 2^24")]
            let count = count as f32;
            logit - frequency * count - presence
        });
    }
}

/// The token: the largest logit, or a draw from what the filters leave.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn choose<L: Lanes>(draw: &Draw<'_>, logits: &[f32], worker: &mut Worker) -> u32 {
    let spec = draw.spec;
    // SAFETY: the caller's promise.
    let (best, max) = unsafe { worker.scan.best::<L>(logits) };
    // A row without a finite maximum has no distribution; its best token is at least well defined.
    if spec.temperature < GREEDY_BELOW || !max.is_finite() {
        return best;
    }
    let mut lowest = f32::NEG_INFINITY;
    if spec.top_k > 0 && spec.top_k < logits.len() {
        // SAFETY: the caller's promise.
        let kept = unsafe { worker.scan.largest::<L>(logits, spec.top_k) };
        lowest = kept.last().map_or(lowest, |&(_, logit)| logit);
    }
    worker.weights.resize(logits.len(), 0.0);
    let weights = &mut worker.weights[..];
    let scale = std::f32::consts::LOG2_E / spec.temperature;
    let mut cut = spec.min_p;
    // SAFETY: the caller's promise.
    unsafe {
        scan::weights::<L>(logits, (max, scale, lowest), weights);
        if spec.top_p < 1.0 {
            cut = worker.scan.nucleus::<L>(weights, cut, spec.top_p);
        }
        let uniform = draw::uniform(spec.seed, draw.position);
        worker.scan.at_fraction::<L>(weights, cut, uniform).unwrap_or(best)
    }
}

#[cfg(test)]
mod tests;
