//! Reads how positions turn queries and keys: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before it.

use kernels::{Llama3Scaling, Pairing, RopeScaling, RopeSpec, YarnScaling};

use crate::{ModelError, arch::POSITIONS_MAX, config::Config};

/// The part of the configuration that describes RoPE, in either form.
pub(crate) struct RopeConfig {
    parameters: Config,
    theta: f64,
    positions_max: usize,
}

impl RopeConfig {
    /// The object that holds the parameters, if there is one, and the base of the frequencies.
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
        if let Some((kind, _)) =
            parameters.iter().flat_map(Config::entries).find(|e| e.1.is_object())
        {
            return Err(config.unsupported(
                "rope_parameters",
                format!("holds an object for {kind}; all layers have to turn alike"),
            ));
        }
        let parameters = parameters.unwrap_or_else(|| config.empty_object("rope_scaling"));
        Ok(Self { theta: parameters.positive_or("rope_theta", theta)?, parameters, positions_max })
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

    /// RoPE that turns `dim` elements of a head.
    pub(crate) fn spec(&self, dim: usize, pairing: Pairing) -> Result<RopeSpec, ModelError> {
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(self.parameters.unsupported(
                "rope_theta",
                format!("RoPE turns pairs, but {dim} elements of a head are to be turned"),
            ));
        }
        Ok(RopeSpec {
            theta: self.theta,
            dim,
            pairing,
            scaling: self.scaling()?,
            positions: self.positions_max,
        })
    }

    /// DeepSeek's extra factor on the softmax scale, which goes with YaRN.
    pub(crate) fn softmax_factor(&self) -> Result<f64, ModelError> {
        let all = self.parameters.optional_positive_or_zero("mscale_all_dim")?;
        match (self.scaling()?, all) {
            (RopeScaling::Yarn(yarn), Some(all)) => {
                Ok(YarnScaling::mscale(yarn.factor, all).powi(2))
            }
            _ => Ok(1.0),
        }
    }

    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let parameters = &self.parameters;
        let key = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
        match parameters.optional_text(key)?.unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: parameters.positive("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3(Llama3Scaling {
                factor: parameters.positive("factor")?,
                low_freq_factor: parameters.positive("low_freq_factor")?,
                high_freq_factor: parameters.positive("high_freq_factor")?,
                original_max_position_embeddings: self.original()?,
            })),
            "yarn" => self.yarn(),
            other => Err(parameters.unsupported(
                key,
                format!("\"{other}\" is not supported; known are default, linear, llama3 and yarn"),
            )),
        }
    }

    fn yarn(&self) -> Result<RopeScaling, ModelError> {
        let parameters = &self.parameters;
        let mscale = parameters.optional_positive_or_zero("mscale")?;
        let all = parameters.optional_positive_or_zero("mscale_all_dim")?;
        Ok(RopeScaling::Yarn(YarnScaling {
            factor: parameters.positive("factor")?,
            beta_fast: parameters.positive_or("beta_fast", 32.0)?,
            beta_slow: parameters.positive_or("beta_slow", 1.0)?,
            original_max_position_embeddings: self.original()?,
            attention_factor: parameters.optional_positive("attention_factor")?,
            mscales: mscale.zip(all),
            truncate: parameters.flag_or("truncate", true)?,
        }))
    }

    fn original(&self) -> Result<usize, ModelError> {
        let key = "original_max_position_embeddings";
        let range = 1..=POSITIONS_MAX;
        Ok(self.parameters.optional_count(key, &range)?.unwrap_or(self.positions_max))
    }
}
