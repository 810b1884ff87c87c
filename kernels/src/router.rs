//! The gate: from router logits to each token's experts and their weights.

use crate::Cpu;
use crate::columns::for_each_chunk;
use crate::disjoint::DisjointMut;
use crate::lanes::{self, Kernel, LANES, Lanes};

/// How logits become scores.
#[derive(Clone, Debug, PartialEq)]
pub enum Scoring {
    /// Probabilities over all experts (Mixtral, Qwen, OLMoE).
    Softmax,
    /// Independent sigmoids; the bias of each expert counts in the choice and not in the weight (DeepSeek-V3 §2.1.2,
    /// GLM-4.5). An empty bias is zero.
    Sigmoid { bias: Vec<f32> },
}

/// Only the best groups of experts are eligible. A group's score is the sum of its two best experts' scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups; experts are split evenly, in order.
    pub count: usize,
    /// Groups that stay.
    pub kept: usize,
}

/// How a layer chooses experts.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSpec {
    /// Number of experts in the layer.
    pub experts: usize,
    /// Experts for each token.
    pub top_k: usize,
    pub scoring: Scoring,
    /// Divide the chosen weights by their sum.
    pub normalize: bool,
    pub groups: Option<Groups>,
    /// Multiplies the weights at the end (`routed_scaling_factor`).
    pub scale: f32,
}

/// Chosen experts of a batch; reused from call to call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    top_k: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
}

impl Routing {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.experts.len().checked_div(self.top_k).unwrap_or(0)
    }

    /// Experts of each row.
    #[must_use]
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Takes what was chosen elsewhere: `[rows, top_k]` experts, ascending in each row, and their weights.
    ///
    /// # Panics
    /// If the two are not rows of `top_k`.
    pub fn assign(&mut self, top_k: usize, experts: &[u32], weights: &[f32]) {
        assert!(experts.len() == weights.len() && experts.len().is_multiple_of(top_k), "routing");
        self.top_k = top_k;
        self.experts.clear();
        self.experts.extend_from_slice(experts);
        self.weights.clear();
        self.weights.extend_from_slice(weights);
    }

    /// Experts of a row, ascending.
    #[must_use]
    pub fn experts(&self, row: usize) -> &[u32] {
        &self.experts[row * self.top_k..][..self.top_k]
    }

    /// Their weights, in the same order.
    #[must_use]
    pub fn weights(&self, row: usize) -> &[f32] {
        &self.weights[row * self.top_k..][..self.top_k]
    }
}

/// Routes every row of `logits` (`[rows, experts]`). Equal scores go to the lower expert; a score that is not a
/// number loses to every number.
///
/// # Panics
/// If the spec contradicts itself (more experts chosen than eligible, groups or bias of another size) or `logits`
/// is not a whole number of rows.
pub fn top_k_route(cpu: &Cpu, spec: &RouterSpec, logits: &[f32], out: &mut Routing) {
    check(spec);
    assert!(logits.len().is_multiple_of(spec.experts), "router logits");
    let rows = logits.len() / spec.experts;
    out.top_k = spec.top_k;
    out.experts.resize(rows * spec.top_k, 0);
    out.weights.resize(rows * spec.top_k, 0.0);
    let experts = DisjointMut::new(&mut out.experts);
    let weights = DisjointMut::new(&mut out.weights);
    // Choosing costs several times what reading a logit does.
    for_each_chunk(cpu, rows, 8 * spec.experts, |rows| {
        let chosen = rows.start * spec.top_k..rows.end * spec.top_k;
        let logits = &logits[rows.start * spec.experts..rows.end * spec.experts];
        // SAFETY: rows belong to one task.
        let (experts, weights) = unsafe { (experts.part(chosen.clone()), weights.part(chosen)) };
        lanes::run(cpu.isa(), Chunk { spec, logits, experts, weights });
    });
}

/// The most experts a layer may have: scores of one row live on the stack.
const EXPERTS_MAX: usize = 1024;
/// The most experts a token may have, and the most groups.
const TOP_K_MAX: usize = 64;

fn check(spec: &RouterSpec) {
    let RouterSpec { experts, top_k, .. } = *spec;
    assert!((1..=EXPERTS_MAX).contains(&experts), "{experts} experts: 1 to {EXPERTS_MAX} fit");
    assert!((1..=TOP_K_MAX).contains(&top_k), "top {top_k}: 1 to {TOP_K_MAX} fit");
    let mut eligible = experts;
    if let Some(Groups { count, kept }) = spec.groups {
        assert!(count > 0 && experts.is_multiple_of(count), "{experts} experts in {count} groups");
        assert!(count <= TOP_K_MAX, "{count} groups: up to {TOP_K_MAX} fit");
        assert!(experts / count >= 2 && (1..=count).contains(&kept), "{kept} of {count} groups");
        eligible = experts / count * kept;
    }
    assert!(top_k <= eligible, "top {top_k} of {eligible} eligible experts");
    if let Scoring::Sigmoid { bias } = &spec.scoring {
        assert!(bias.is_empty() || bias.len() == experts, "bias of {} for {experts}", bias.len());
    }
}

struct Chunk<'a> {
    spec: &'a RouterSpec,
    logits: &'a [f32],
    experts: &'a mut [u32],
    weights: &'a mut [f32],
}

impl Kernel for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { spec, .. } = self;
        let rows = self.logits.chunks_exact(spec.experts);
        let chosen = self.experts.chunks_exact_mut(spec.top_k);
        for ((logits, experts), weights) in
            rows.zip(chosen).zip(self.weights.chunks_exact_mut(spec.top_k))
        {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { route::<L>(spec, logits, experts, weights) };
        }
    }
}

/// Routes one row.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn route<L: Lanes>(
    spec: &RouterSpec,
    logits: &[f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let mut scores = [0.0; EXPERTS_MAX];
    let scores = &mut scores[..spec.experts];
    let mut choice = [0.0; EXPERTS_MAX];
    let choice = &mut choice[..spec.experts];
    let total = match &spec.scoring {
        Scoring::Softmax => {
            choice.copy_from_slice(logits);
            // SAFETY: the caller's promise.
            unsafe { exponentials::<L>(logits, scores) }
        }
        Scoring::Sigmoid { bias } => {
            // SAFETY: the caller's promise.
            unsafe { sigmoids::<L>(logits, scores) };
            choice.copy_from_slice(scores);
            for (choice, bias) in choice.iter_mut().zip(bias) {
                *choice += bias;
            }
            1.0
        }
    };
    for x in choice.iter_mut().filter(|x| x.is_nan()) {
        *x = f32::NEG_INFINITY;
    }
    match spec.groups {
        None => best(choice, experts),
        Some(groups) => best_in_groups(choice, groups, experts),
    }
    for (weight, &expert) in weights.iter_mut().zip(&*experts) {
        *weight = scores[expert as usize] / total;
    }
    if spec.normalize {
        // The guard DeepSeek adds against a row of zeros; it vanishes in any other sum.
        let sum = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights.iter_mut().for_each(|weight| *weight *= spec.scale);
}

/// `out = e^(x - max)`; returns their sum.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn exponentials<L: Lanes>(x: &[f32], out: &mut [f32]) -> f32 {
    // SAFETY: the caller's promise; chunks are at most 16 long.
    unsafe {
        let mut largest = L::splat(f32::NEG_INFINITY);
        for chunk in x.chunks(LANES) {
            largest = lanes::load_or::<L>(chunk, f32::NEG_INFINITY).max(largest);
        }
        let max = L::splat(largest.largest());
        let (zero, log2_e) = (L::splat(0.0), L::splat(std::f32::consts::LOG2_E));
        let mut sum = zero;
        for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let power = lanes::load_or::<L>(x, f32::NEG_INFINITY).sub(max).mul(log2_e);
            let e = power.exp2().first(x.len(), zero);
            sum = sum.add(e);
            out.copy_from_slice(&e.array()[..x.len()]);
        }
        sum.sum()
    }
}

/// `out = 1 / (1 + e^-x)`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn sigmoids<L: Lanes>(x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise; chunks are at most 16 long.
    unsafe {
        let (one, minus_log2_e) = (L::splat(1.0), L::splat(-std::f32::consts::LOG2_E));
        // Beyond 2^126 the sigmoid is zero for every purpose; the bound keeps the exponent in range.
        let high = L::splat(-126.0);
        for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let power = lanes::load_or::<L>(x, 0.0).mul(minus_log2_e);
            // min(power, 126) = -max(-power, -126)
            let zero = L::splat(0.0);
            let power = zero.sub(zero.sub(power).max(high));
            let sigmoid = one.div(one.add(power.exp2()));
            out.copy_from_slice(&sigmoid.array()[..x.len()]);
        }
    }
}

/// The `chosen.len()` best of `choice`, ascending by index.
#[inline(always)]
fn best(choice: &[f32], chosen: &mut [u32]) {
    let mut top = Top::<TOP_K_MAX>::new(chosen.len());
    for (expert, &score) in (0..).zip(choice) {
        top.offer(score, expert);
    }
    chosen.copy_from_slice(top.ids());
    chosen.sort_unstable();
}

/// As [`best`] among the experts of the best groups.
#[inline(always)]
fn best_in_groups(choice: &[f32], groups: Groups, chosen: &mut [u32]) {
    let size = choice.len() / groups.count;
    let mut kept = Top::<TOP_K_MAX>::new(groups.kept);
    for (group, choice) in (0..).zip(choice.chunks_exact(size)) {
        let mut two = Top::<2>::new(2);
        for (expert, &score) in (0..).zip(choice) {
            two.offer(score, expert);
        }
        kept.offer(two.scores().iter().sum(), group);
    }
    let mut top = Top::<TOP_K_MAX>::new(chosen.len());
    let kept_groups = kept.ids_mut();
    kept_groups.sort_unstable();
    for &group in &*kept_groups {
        let first = group as usize * size;
        for (i, &score) in choice[first..first + size].iter().enumerate() {
            // An expert outside the kept groups is not eligible at any score.
            top.offer(score, group * narrow(size) + narrow(i));
        }
    }
    chosen.copy_from_slice(top.ids());
    chosen.sort_unstable();
}

fn narrow(x: usize) -> u32 {
    u32::try_from(x).unwrap_or(u32::MAX)
}

/// The best few of what is offered in ascending order of id; equal scores keep the earlier.
struct Top<const MAX: usize> {
    len: usize,
    wanted: usize,
    scores: [f32; MAX],
    ids: [u32; MAX],
}

impl<const MAX: usize> Top<MAX> {
    #[inline(always)]
    fn new(wanted: usize) -> Self {
        Self { len: 0, wanted, scores: [0.0; MAX], ids: [0; MAX] }
    }

    #[inline(always)]
    fn offer(&mut self, score: f32, id: u32) {
        if self.len == self.wanted {
            if score <= self.scores[self.len - 1] {
                return;
            }
            self.len -= 1;
        }
        let mut at = self.len;
        while at > 0 && self.scores[at - 1] < score {
            self.scores[at] = self.scores[at - 1];
            self.ids[at] = self.ids[at - 1];
            at -= 1;
        }
        self.scores[at] = score;
        self.ids[at] = id;
        self.len += 1;
    }

    fn scores(&self) -> &[f32] {
        &self.scores[..self.len]
    }

    fn ids(&self) -> &[u32] {
        &self.ids[..self.len]
    }

    fn ids_mut(&mut self) -> &mut [u32] {
        &mut self.ids[..self.len]
    }
}

#[cfg(test)]
mod tests;
