//! Reads how positions turn queries and keys: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before it.

use crate::{ModelError, config::Config};

/// Frequencies are stretched like this for sequences longer than the model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, smooth between (Llama 3.1).
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are low.
        low: f64,
        /// Wavelengths below `original / high` are high.
        high: f64,
        /// Positions the model was first trained on.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071): a ramp over dimensions, and a factor on the attention.
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// Positions the model was first trained on.
        original: usize,
        /// Rotations over `original` above which a dimension is kept.
        beta_fast: f64,
        /// Rotations over `original` below which a dimension is divided.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
        /// Multiplies the cosines and sines.
        attention: f64,
    },
}

/// Rotary positions of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many elements of a head turn; even, and the first ones.
    pub dim: usize,
    /// Whether pairs are neighbours (DeepSeek) rather than halves of the head.
    pub interleaved: bool,
    /// Stretching.
    pub scaling: RopeScaling,
}

/// The part of the configuration that describes RoPE, in either form.
pub(crate) struct RopeConfig {
    parameters: Config,
    theta: f64,
    positions_max: usize,
}

impl RopeConfig {
    pub(crate) fn find(
        config: &Config,
        theta_default: f64,
        positions_max: usize,
    ) -> Result<Self, ModelError> {
        let theta = config.positive_or("rope_theta", theta_default)?;
        let parameters = match config.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => config.object("rope_scaling")?,
        };
        let parameters = parameters.unwrap_or_else(|| config.empty_object("rope_scaling"));
        Ok(Self {
            theta: parameters.positive_or("rope_theta", theta)?,
            parameters,
            positions_max,
        })
    }

    /// The share of a head that turns.
    pub(crate) fn partial(&self, config: &Config, default: f64) -> Result<f64, ModelError> {
        let key = "partial_rotary_factor";
        let outer = config.positive_or(key, default)?;
        let factor = self.parameters.positive_or(key, outer)?;
        if factor > 1.0 {
            return Err(config.expected(key, "a number up to 1"));
        }
        Ok(factor)
    }

    pub(crate) fn spec(&self, dim: usize, interleaved: bool) -> Result<RopeSpec, ModelError> {
        if dim == 0 || dim % 2 != 0 {
            return Err(self.parameters.unsupported(
                "rope_theta",
                format!("RoPE turns pairs, but {dim} elements of a head are to be turned"),
            ));
        }
        Ok(RopeSpec {
            theta: self.theta,
            dim,
            interleaved,
            scaling: self.scaling()?,
        })
    }

    /// DeepSeek's extra factor on the softmax scale, which goes with YaRN.
    pub(crate) fn softmax_factor(&self) -> Result<f64, ModelError> {
        let all = self
            .parameters
            .optional_positive_or_zero("mscale_all_dim")?;
        match (self.scaling()?, all) {
            (RopeScaling::Yarn { factor, .. }, Some(all)) => {
                Ok(magnitude(factor, all) * magnitude(factor, all))
            }
            _ => Ok(1.0),
        }
    }

    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let parameters = &self.parameters;
        let key = if parameters.get("rope_type").is_some() {
            "rope_type"
        } else {
            "type"
        };
        match parameters.optional_text(key)?.unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: parameters.positive("factor")?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: parameters.positive("factor")?,
                low: parameters.positive("low_freq_factor")?,
                high: parameters.positive("high_freq_factor")?,
                original: self.original()?,
            }),
            "yarn" => self.yarn(),
            other => Err(parameters.unsupported(
                key,
                format!("\"{other}\" is not supported; known are default, linear, llama3 and yarn"),
            )),
        }
    }

    fn yarn(&self) -> Result<RopeScaling, ModelError> {
        let parameters = &self.parameters;
        let factor = parameters.positive("factor")?;
        let mscale = parameters.optional_positive_or_zero("mscale")?;
        let all = parameters.optional_positive_or_zero("mscale_all_dim")?;
        let attention = match (
            parameters.optional_positive("attention_factor")?,
            mscale,
            all,
        ) {
            (Some(attention), _, _) => attention,
            (None, Some(mscale), Some(all)) => magnitude(factor, mscale) / magnitude(factor, all),
            (None, _, _) => magnitude(factor, 1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original: self.original()?,
            beta_fast: parameters.positive_or("beta_fast", 32.0)?,
            beta_slow: parameters.positive_or("beta_slow", 1.0)?,
            truncate: parameters.flag_or("truncate", true)?,
            attention,
        })
    }

    fn original(&self) -> Result<usize, ModelError> {
        let key = "original_max_position_embeddings";
        let range = 1..=crate::arch::POSITIONS_MAX;
        Ok(self
            .parameters
            .optional_count(key, &range)?
            .unwrap_or(self.positions_max))
    }
}

/// YaRN's growth of attention with the stretch: 0.1 · m · ln(factor) + 1.
fn magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * scale * factor.ln() + 1.0
    }
}
