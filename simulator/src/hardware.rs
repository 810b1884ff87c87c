//! What a step costs on which hardware: attention, one expert, a launch, the LM head, a row on the wire.

mod accelerator;
mod model;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use domain::{CostCurve, Profile, Trace};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use serde::Deserialize;

pub use accelerator::Accelerator;
pub use model::Model;

/// What is served on what.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The model, by name.
    pub model: Model,
    /// Where its times come from.
    pub device: Device,
    /// Experts per token, if other than the model's own (AMoE measures Mixtral with 1 and 2).
    #[serde(default)]
    pub top_k: Option<u8>,
    /// Experts per layer, if other than the model's own (AMoE scales with 16).
    #[serde(default)]
    pub experts: Option<u16>,
    /// Layers, if fewer than the model's own: for quick looks.
    #[serde(default)]
    pub layers: Option<u16>,
}

/// Where times come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The roofline of an A100 with 40 GB.
    #[serde(rename = "a100-40g")]
    A100With40G,
    /// The roofline of an A100 with 80 GB.
    #[serde(rename = "a100-80g")]
    A100With80G,
    /// The roofline of an H100.
    H100,
    /// The roofline of an H200.
    H200,
    /// The roofline of a B200.
    B200,
    /// The step times that AMoE reports: 2.7 ms of attention, 0.8 ms an expert, both constant up to
    /// 128 tokens and linear from there on.
    AmoePaper,
    /// Measured times.
    Measured(Measured),
}

/// Times of real nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The curve file (`amoe profile` writes one) whose first node's expert curve is used.
    pub profile: PathBuf,
    /// A layer of attention: (tokens, nanoseconds).
    pub attention: Vec<(u32, u64)>,
    /// The LM head and the sampler: (tokens, nanoseconds).
    pub head: Vec<(u32, u64)>,
    /// What a launch of a MoE layer costs beside its experts, in nanoseconds.
    #[serde(default)]
    pub launch_ns: u64,
}

/// What work costs on a node of nominal speed.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Layers that have experts.
    pub layers: u16,
    /// Experts per layer.
    pub experts: u16,
    /// Experts per token.
    pub top_k: u8,
    /// Time of one activated expert against its tokens.
    pub expert: CostCurve,
    /// Time of a launch of a MoE layer on an expert node, whatever its experts.
    pub launch_ns: u64,
    /// Bytes of a hidden state on the wire.
    pub row_bytes: u32,
    /// Bytes of the KV cache that a token of context holds, over all layers.
    pub kv_token_bytes: u64,
    /// Bytes of one expert's weights.
    pub expert_bytes: u64,
    attention: Attention,
    head: Head,
}

/// A layer of attention: projections, which grow with tokens, and the cache, which grows with context.
#[derive(Clone, Debug, PartialEq)]
enum Attention {
    Roofline { projections: CostCurve, ps_per_context_token: u64, launch_ns: u64 },
    Curve(CostCurve),
}

#[derive(Clone, Debug, PartialEq)]
enum Head {
    Free,
    Curve { curve: CostCurve, launch_ns: u64 },
}

// === impl Spec ===

impl Spec {
    /// The times, with files looked up from `folder`.
    ///
    /// # Errors
    /// One sentence: a count that makes no sense, or a curve file that cannot be read.
    pub fn costs(&self, folder: &Path) -> Result<Costs, String> {
        let model = self.shape()?;
        match &self.device {
            Device::A100With40G => Ok(Accelerator::A100_40G.costs(&model)),
            Device::A100With80G => Ok(Accelerator::A100_80G.costs(&model)),
            Device::H100 => Ok(Accelerator::H100.costs(&model)),
            Device::H200 => Ok(Accelerator::H200.costs(&model)),
            Device::B200 => Ok(Accelerator::B200.costs(&model)),
            Device::AmoePaper => Ok(amoe_paper(&model)),
            Device::Measured(measured) => measured.costs(&model, folder),
        }
    }

    fn shape(&self) -> Result<model::Shape, String> {
        let mut shape = self.model.shape();
        shape.top_k = self.top_k.unwrap_or(shape.top_k);
        shape.experts = self.experts.unwrap_or(shape.experts);
        shape.layers = self.layers.unwrap_or(shape.layers);
        if shape.layers == 0 {
            return Err("hardware.layers is 0, expected at least 1".to_owned());
        }
        if shape.top_k == 0 || u16::from(shape.top_k) > shape.experts {
            return Err(format!(
                "hardware.top_k is {}, expected 1 to the {} experts of a layer",
                shape.top_k, shape.experts
            ));
        }
        Ok(shape)
    }
}

impl Device {
    /// The accelerator behind a roofline; none for times from elsewhere.
    #[must_use]
    pub fn accelerator(&self) -> Option<Accelerator> {
        match self {
            Self::A100With40G => Some(Accelerator::A100_40G),
            Self::A100With80G => Some(Accelerator::A100_80G),
            Self::H100 => Some(Accelerator::H100),
            Self::H200 => Some(Accelerator::H200),
            Self::B200 => Some(Accelerator::B200),
            Self::AmoePaper | Self::Measured(_) => None,
        }
    }
}

impl Measured {
    fn costs(&self, model: &model::Shape, folder: &Path) -> Result<Costs, String> {
        let path = folder.join(&self.profile);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read curve file {}: {error}", path.display()))?;
        let profile: Profile = serde_json::from_str(&text)
            .map_err(|error| format!("curve file {}: {error}", path.display()))?;
        let curve = |name: &str, points: &[(u32, u64)]| {
            CostCurve::new(points.to_vec()).map_err(|error| format!("hardware.{name}: {error}"))
        };
        Ok(Costs {
            attention: Attention::Curve(curve("attention", &self.attention)?),
            head: Head::Curve { curve: curve("head", &self.head)?, launch_ns: 0 },
            expert: profile.nodes[0].expert.clone(),
            launch_ns: self.launch_ns,
            ..free(model)
        })
    }
}

// === impl Costs ===

impl Costs {
    /// Nanoseconds of one layer's attention half for a batch of `tokens` whose caches hold
    /// `context_tokens` altogether: norms, projections, attention, gate, shared experts.
    #[must_use]
    pub fn attention(&self, tokens: u32, context_tokens: u64) -> u64 {
        if tokens == 0 {
            return 0;
        }
        match &self.attention {
            Attention::Curve(curve) => curve.ns(tokens),
            Attention::Roofline { projections, ps_per_context_token, launch_ns } => {
                launch_ns + projections.ns(tokens) + context_tokens * ps_per_context_token / 1000
            }
        }
    }

    /// Nanoseconds of the LM head and the sampler for `tokens` rows, and of the model's dense
    /// layers where it has some.
    #[must_use]
    pub fn head(&self, tokens: u32) -> u64 {
        match &self.head {
            Head::Curve { curve, launch_ns } if tokens > 0 => launch_ns + curve.ns(tokens),
            Head::Curve { .. } | Head::Free => 0,
        }
    }

    /// Nanoseconds of one launch over experts with these tokens each.
    #[must_use]
    pub fn launch(&self, tokens: impl IntoIterator<Item = u32>) -> u64 {
        let experts: u64 = tokens.into_iter().map(|tokens| self.expert.ns(tokens)).sum();
        if experts == 0 { 0 } else { self.launch_ns + experts }
    }

    /// The layer curve of a node with `resident` experts of a layer: its time against all of its
    /// (token, expert) pairs, spread as evenly as chance spreads them (GEM's profile).
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "pairs and times are far below 2^52"
    )]
    pub fn layer(&self, resident: u16) -> CostCurve {
        let experts = f64::from(resident.max(1));
        let mut edges: Vec<(u32, u64)> = Vec::new();
        for pairs in tile_edges().map(|edge| edge.saturating_mul(u32::from(resident.max(1)))) {
            let activated = experts * (1.0 - (1.0 - 1.0 / experts).powf(f64::from(pairs)));
            let each = (f64::from(pairs) / activated).ceil() as u32;
            let ns = self.launch_ns + (activated * self.expert.ns(each) as f64) as u64;
            let floor = edges.last().map_or(1, |&(_, ns)| ns);
            edges.push((pairs, ns.max(floor)));
        }
        CostCurve::new(edges).expect("edges ascend and times do not fall")
    }

    /// The layer curve of a node with `resident` experts of a layer under the routing that `trace`
    /// recorded, as GEM profiles it "per model and task": nodes are made up of experts drawn at
    /// random, and their times are averaged over nodes with about as many pairs.
    ///
    /// None if the trace has no tokens.
    #[must_use]
    pub fn layer_under(&self, trace: &Trace, resident: u16, seed: u64) -> Option<CostCurve> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..trace.experts()).collect();
        let mut nodes: Vec<(u32, u64)> = Vec::new();
        for step in 0..trace.steps() {
            for layer in 0..trace.layers() {
                let counts = trace.counts(step, layer);
                order.shuffle(&mut random);
                nodes.extend(order.chunks(usize::from(resident.max(1))).map(|experts| {
                    let tokens = experts.iter().map(|&expert| counts[expert]);
                    (tokens.clone().sum(), self.launch(tokens))
                }));
            }
        }
        nodes.retain(|&(pairs, _)| pairs > 0);
        nodes.sort_unstable();
        let mut edges: Vec<(u32, u64)> = Vec::new();
        for bin in nodes.chunks(nodes.len().div_ceil(PROFILE_POINTS).max(1)) {
            let pairs = bin[bin.len() - 1].0;
            let ns = bin.iter().map(|&(_, ns)| ns).sum::<u64>() / bin.len() as u64;
            match edges.last().copied() {
                // A bin that ends where the one before it did says nothing new.
                Some((before, _)) if before == pairs => {}
                Some((_, floor)) => edges.push((pairs, ns.max(floor))),
                None => edges.push((pairs, ns)),
            }
        }
        CostCurve::new(edges).ok()
    }
}

/// Points of a layer curve that was profiled under recorded routing.
const PROFILE_POINTS: usize = 48;

/// The edges of a kernel's tiles in tokens per expert: 16 wide while small, then 64, then 128.
fn tile_edges() -> impl Iterator<Item = u32> {
    let narrow = [1].into_iter().chain((16..64).step_by(16));
    narrow.chain((64..256).step_by(64)).chain((256..=4096).step_by(128))
}

/// AMoE's own step times (section 5, step breakdown: 2.7 ms and 0.8 ms; section 2: throughput grows
/// linearly up to 128 tokens, so time is constant up to there).
fn amoe_paper(model: &model::Shape) -> Costs {
    let flat = |ns| CostCurve::new(vec![(128, ns)]).expect("one point above 0");
    Costs { attention: Attention::Curve(flat(2_700_000)), expert: flat(800_000), ..free(model) }
}

/// A model's sizes, with times still to be filled in.
fn free(model: &model::Shape) -> Costs {
    let nothing = CostCurve::new(vec![(1, 1)]).expect("one point above 0");
    Costs {
        layers: model.layers,
        experts: model.experts,
        top_k: model.top_k,
        expert: nothing.clone(),
        launch_ns: 0,
        row_bytes: model.row_bytes(),
        kv_token_bytes: model.kv_bytes() * u64::from(model.layers + model.dense_layers),
        expert_bytes: model.expert_bytes(),
        attention: Attention::Curve(nothing),
        head: Head::Free,
    }
}
