//! Gives each gate the bias that makes its experts as popular as asked, on a real forward pass.

use std::{path::Path, sync::Arc};

use domain::Layer;
use kernels::{BLOCK_TOKENS, Cpu, RouterSpec, Routing, Scoring, Span, top_k_route};

use super::{
    LayerShares, SynthError, SynthSpec,
    normal::{mix, stream},
    tensors::TensorsFile,
};
use crate::{Checkpoint, Reference};

/// Random tokens the biases are solved on, in sequences of this many.
const TOKENS: usize = 2048;
pub(super) const SEQUENCE: usize = 128;
/// Steps of the search for biases.
const ROUNDS: usize = 240;

/// Solves the gates of the checkpoint in `dir` layer by layer, and patches them in `file`.
pub(super) fn calibrate(
    spec: &SynthSpec,
    dir: &Path,
    cpu: &Arc<Cpu>,
    file: &TensorsFile,
) -> Result<Vec<LayerShares>, SynthError> {
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let blocks_each = SEQUENCE.div_ceil(BLOCK_TOKENS);
    let blocks: Vec<u32> = (0..(TOKENS / SEQUENCE * blocks_each) as u32).collect();
    let mut model = Reference::without_experts(&checkpoint, cpu, blocks.len())?;
    let spans: Vec<_> = (0..TOKENS)
        .step_by(SEQUENCE)
        .zip(blocks.chunks(blocks_each))
        .map(|(first, blocks)| Span { rows: first..first + SEQUENCE, first_position: 0, blocks })
        .collect();
    let draw = stream(spec.seed, "calibration");
    let tokens: Vec<u32> =
        (0..TOKENS as u64).map(|i| (mix(draw ^ i) % spec.vocab as u64) as u32).collect();
    let mut residual = vec![0.0; TOKENS * spec.hidden];
    model.attention.embed(&tokens, &mut residual);
    let mut shares = Vec::new();
    for number in 0..spec.layers {
        let layer = Layer(number as u16);
        model.attention.attend(layer, &spans, &mut model.kv, &mut residual, &mut model.scratch)?;
        let target = target_shares(spec, number);
        let (rows, logits) = model.attention.gate(layer, &residual, &mut model.scratch);
        let carrier: Vec<f32> = rows.iter().step_by(spec.hidden).copied().collect();
        let biases = Biases { spec, cpu, logits, carrier: &carrier, target: &target }.solve();
        let name = format!("model.layers.{number}.mlp.gate.weight");
        let gate = file.set_column(&name, &biases).map_err(SynthError::Write)?;
        model.attention.replace_gate(layer, &gate)?;

        let reached = run_layer(&mut model, layer, &mut residual)?;
        shares.push(LayerShares { target, reached });
    }
    Ok(shares)
}

/// Finishes a layer, with its experts in memory only as long as that takes; returns the shares it had.
fn run_layer(
    model: &mut Reference,
    layer: Layer,
    residual: &mut [f32],
) -> Result<Vec<f64>, SynthError> {
    let shape = model.spec().shape();
    let experts: Vec<_> = shape.slots().filter(|slot| slot.0 == layer).collect();
    for &(layer, expert) in &experts {
        model.experts.load_expert(layer, expert)?;
    }
    model.attention.route(layer, residual, &mut model.routed, &mut model.scratch)?;
    model.run_experts(layer, residual)?;
    for &(layer, expert) in &experts {
        model.experts.unload(layer, expert);
    }
    let mut counts = vec![0_u32; experts.len()];
    for row in 0..model.routed.rows() {
        for (expert, _) in model.routed.choices(row) {
            counts[expert.index()] += 1;
        }
    }
    Ok(counts.iter().map(|&count| f64::from(count) / TOKENS as f64).collect())
}

/// The share of tokens that should choose each expert: a Zipf law, in another order for every layer.
///
/// The shares sum to top-k. What would go past `share_max` is spread over the other experts.
fn target_shares(spec: &SynthSpec, layer: usize) -> Vec<f64> {
    let order = stream(spec.seed, &format!("popularity {layer}"));
    let mut ranked: Vec<usize> = (0..spec.experts).collect();
    ranked.sort_by_key(|&expert| mix(order ^ expert as u64));
    let weights: Vec<f64> = (1..=spec.experts).map(|rank| (rank as f64).powf(-spec.zipf)).collect();
    let mut shares = vec![0.0; spec.experts];
    let (mut capped, mut left) = (0, spec.top_k as f64);
    // The most popular come first, so those past the bound are always a prefix.
    while capped < spec.experts {
        let total: f64 = weights[capped..].iter().sum();
        if weights[capped] / total * left <= spec.share_max {
            for (rank, &expert) in ranked.iter().enumerate().skip(capped) {
                shares[expert] = weights[rank] / total * left;
            }
            break;
        }
        shares[ranked[capped]] = spec.share_max;
        left -= spec.share_max;
        capped += 1;
    }
    shares
}

/// The search for one gate's biases.
struct Biases<'a> {
    spec: &'a SynthSpec,
    cpu: &'a Cpu,
    /// The gate's logits without biases, `[TOKENS, experts]`.
    logits: &'a [f32],
    /// What the biases are multiplied by, per token.
    carrier: &'a [f32],
    target: &'a [f64],
}

impl Biases<'_> {
    /// Raises what is chosen too seldom and lowers what is chosen too often, in shrinking steps; the best seen wins.
    fn solve(&self) -> Vec<f32> {
        let experts = self.spec.experts;
        let tokens = self.carrier.len() as f64;
        let mean = self.carrier.iter().map(|&x| f64::from(x)).sum::<f64>() / tokens;
        let scale = deviation(self.logits) / mean.abs().max(1e-6);
        let mut biases = vec![0.0_f64; experts];
        let (mut best, mut best_error) = (biases.clone(), f64::INFINITY);
        let (mut routing, mut biased) = (Routing::default(), self.logits.to_vec());
        for round in 0..ROUNDS {
            let shares = self.shares(&biases, &mut biased, &mut routing);
            let error: f64 = shares.iter().zip(self.target).map(|(a, b)| (a - b).abs()).sum();
            if error < best_error {
                (best, best_error) = (biases.clone(), error);
            }
            let progress = round as f64 / ROUNDS as f64;
            let step = scale * (0.6 * (1.0 - progress) + 0.01) * mean.signum();
            for ((bias, share), target) in biases.iter_mut().zip(&shares).zip(self.target) {
                *bias += step * ((target + 0.5 / tokens) / (share + 0.5 / tokens)).ln();
            }
            let middle = biases.iter().sum::<f64>() / experts as f64;
            biases.iter_mut().for_each(|bias| *bias -= middle);
        }
        best.iter().map(|&bias| bias as f32).collect()
    }

    /// The share of tokens that choose each expert under `biases`.
    fn shares(&self, biases: &[f64], biased: &mut [f32], routing: &mut Routing) -> Vec<f64> {
        let experts = self.spec.experts;
        let rows = self.logits.chunks_exact(experts).zip(biased.chunks_exact_mut(experts));
        for ((logits, biased), carrier) in rows.zip(self.carrier) {
            for ((biased, logit), bias) in biased.iter_mut().zip(logits).zip(biases) {
                *biased = logit + carrier * *bias as f32;
            }
        }
        let router = RouterSpec {
            experts,
            top_k: self.spec.top_k,
            scoring: Scoring::Softmax,
            normalize: false,
            groups: None,
            scale: 1.0,
        };
        top_k_route(self.cpu, &router, biased, routing);
        let mut counts = vec![0_u32; experts];
        for row in 0..routing.rows() {
            for &expert in routing.experts(row) {
                counts[expert as usize] += 1;
            }
        }
        counts.iter().map(|&count| f64::from(count) / routing.rows() as f64).collect()
    }
}

fn deviation(values: &[f32]) -> f64 {
    let squares: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
    (squares / values.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_law_up_to_the_bound() {
        let spec = SynthSpec { experts: 16, top_k: 4, zipf: 1.0, ..SynthSpec::default() };
        let mut shares = target_shares(&spec, 0);
        assert!((shares.iter().sum::<f64>() - 4.0).abs() < 1e-9);
        assert_ne!(shares, target_shares(&spec, 1), "layers differ in who is popular");
        shares.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(shares[0], spec.share_max);
        assert!((shares[14] / shares[15] - 16.0 / 15.0).abs() < 1e-9);

        let even = target_shares(&SynthSpec { zipf: 0.0, ..spec }, 0);
        assert!(even.iter().all(|share| (share - 0.25).abs() < 1e-9));
    }
}
