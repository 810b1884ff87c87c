//! Inverse frequencies under each scaling rule, rounded to f32 step by step as transformers'
//! `modeling_rope_utils` does.

use std::f64::consts::PI;

use super::{RopeSpec, rounded};

/// How a model stretches its rotations beyond the length it was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by the factor.
    Linear { factor: f64 },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3(Llama3Scaling),
    /// YaRN (arXiv 2309.00071).
    Yarn(YarnScaling),
}

/// Parameters of `rope_type: "llama3"`, under their names in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

/// Parameters of `rope_type: "yarn"`, under their names in `config.json`. DeepSeek's further factor on the softmax
/// scale is not part of the rotation: see [`YarnScaling::mscale`].
#[derive(Clone, Debug, PartialEq)]
pub struct YarnScaling {
    pub factor: f64,
    /// 32 where the file says nothing.
    pub beta_fast: f64,
    /// 1 where the file says nothing.
    pub beta_slow: f64,
    pub original_max_position_embeddings: usize,
    /// `attention_factor`; computed from the others when absent.
    pub attention_factor: Option<f64>,
    /// `mscale` and `mscale_all_dim`, when both are there and not zero.
    pub mscales: Option<(f64, f64)>,
    /// Whether the ramp's ends are rounded outwards to whole dims; true where the file says nothing.
    pub truncate: bool,
}

impl YarnScaling {
    /// `0.1 * mscale * ln(factor) + 1` (1 for factors up to 1): DeepSeek multiplies its softmax scale by the square
    /// of this with `mscale_all_dim`.
    #[must_use]
    pub fn mscale(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    fn amplitude(&self) -> f64 {
        let computed = || match self.mscales {
            Some((one, all)) => Self::mscale(self.factor, one) / Self::mscale(self.factor, all),
            None => Self::mscale(self.factor, 1.0),
        };
        self.attention_factor.unwrap_or_else(computed)
    }
}

/// The `dim / 2` inverse frequencies and the amplitude of a spec.
pub(super) fn of(spec: &RopeSpec) -> (Vec<f32>, f32) {
    let powers = powers(spec);
    let plain = powers.iter().map(|power| 1.0 / power);
    match &spec.scaling {
        RopeScaling::None => (plain.collect(), 1.0),
        RopeScaling::Linear { factor } => (plain.map(|x| x / rounded(*factor)).collect(), 1.0),
        RopeScaling::Llama3(scaling) => (plain.map(|x| llama3(x, scaling)).collect(), 1.0),
        RopeScaling::Yarn(scaling) => (yarn(&powers, spec, scaling), rounded(scaling.amplitude())),
    }
}

/// `theta^(2i / dim)`.
fn powers(spec: &RopeSpec) -> Vec<f32> {
    let exponent = |i: usize| real(2 * i) / real(spec.dim);
    (0..spec.dim / 2).map(|i| rounded(spec.theta.powf(f64::from(rounded(exponent(i)))))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts of dims and positions are far below 2^53")]
fn real(x: usize) -> f64 {
    x as f64
}

fn llama3(inverse_frequency: f32, scaling: &Llama3Scaling) -> f32 {
    let original = rounded(real(scaling.original_max_position_embeddings));
    let factor = rounded(scaling.factor);
    let (low, high) = (rounded(scaling.low_freq_factor), rounded(scaling.high_freq_factor));
    let wavelength = rounded(2.0 * PI) / inverse_frequency;
    if wavelength > original / low {
        return inverse_frequency / factor;
    }
    if wavelength < original / high {
        return inverse_frequency;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * inverse_frequency / factor + smooth * inverse_frequency
}

fn yarn(powers: &[f32], spec: &RopeSpec, scaling: &YarnScaling) -> Vec<f32> {
    let original = real(scaling.original_max_position_embeddings);
    let dim_of = |rotations: f64| {
        real(spec.dim) * (original / (rotations * 2.0 * PI)).ln() / (2.0 * spec.theta.ln())
    };
    let (mut low, mut high) = (dim_of(scaling.beta_fast), dim_of(scaling.beta_slow));
    if scaling.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    low = low.max(0.0);
    high = high.min(real(spec.dim - 1));
    if low >= high && high >= low {
        high += 0.001;
    }
    let ramp = |i: usize| rounded((real(i) - low) / (high - low)).clamp(0.0, 1.0);
    let factor = rounded(scaling.factor);
    let mix = |(i, power): (usize, &f32)| {
        let extrapolated = 1.0 - ramp(i);
        (1.0 / (factor * power)) * (1.0 - extrapolated) + (1.0 / power) * extrapolated
    };
    powers.iter().enumerate().map(mix).collect()
}
