//! What sampling is where a request says nothing: as the model's authors recommend it, or as OpenAI's API does.

use std::{fmt, io, path::Path};

use serde::Deserialize;

use crate::{
    config::SamplingDefaults,
    model::{LoadError, read_json},
    request::Wishes,
};

/// Values for what a request leaves open; what is absent here too is as in OpenAI's API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Defaults {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

impl Defaults {
    /// Reads `generation_config.json` of a model's folder, if the defaults are to be the model's and it has one.
    ///
    /// # Errors
    /// The file is not what it should be, or recommends what no request could ask for.
    pub(crate) fn load(
        folder: &Path,
        whose: SamplingDefaults,
        vocab: u32,
    ) -> Result<Self, LoadError> {
        if whose == SamplingDefaults::Openai {
            return Ok(Self::default());
        }
        let path = folder.join("generation_config.json");
        let json = match read_json(&path) {
            Err(LoadError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            read => read?,
        };
        let wrong = |found: String| LoadError::Content {
            path: path.clone(),
            expected: "numbers that a request may sample by (`sampling_defaults = \"openai\"` does without)",
            found,
        };
        let defaults: Self =
            serde_json::from_value(json).map_err(|error| wrong(error.to_string()))?;
        defaults.fill(Wishes::default()).check(vocab).map_err(|refusal| wrong(refusal.message))?;
        if defaults != Self::default() {
            tracing::info!(
                %defaults,
                "requests that do not say how to sample do as the model recommends"
            );
        }
        Ok(defaults)
    }

    /// The wishes, and what they leave open as it is here.
    pub(crate) fn fill(&self, wishes: Wishes) -> Wishes {
        Wishes {
            temperature: wishes.temperature.or(self.temperature),
            top_p: wishes.top_p.or(self.top_p),
            top_k: wishes.top_k.or(self.top_k),
            min_p: wishes.min_p.or(self.min_p),
            repetition_penalty: wishes.repetition_penalty.or(self.repetition_penalty),
            ..wishes
        }
    }
}

impl fmt::Display for Defaults {
    /// What is recommended, and no more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("top_k", self.top_k.map(|k| k as f64)),
            ("min_p", self.min_p),
            ("repetition_penalty", self.repetition_penalty),
        ];
        let stated = named.iter().filter_map(|(name, value)| Some(format!("{name} {}", (*value)?)));
        f.write_str(&stated.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, whose: SamplingDefaults) -> Result<Defaults, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("generation_config.json"), file).unwrap();
        Defaults::load(folder.path(), whose, 100).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_s_own_values_go_over_the_model_s() {
        let file = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
                       "min_p": null, "eos_token_id": [1], "transformers_version": "4.51.0"}"#;
        let defaults = load(file, SamplingDefaults::Model).unwrap();
        let filled =
            defaults.fill(Wishes { temperature: Some(0.0), n: Some(2), ..Wishes::default() });
        let expected = Wishes {
            temperature: Some(0.0),
            top_k: Some(20),
            top_p: Some(0.95),
            n: Some(2),
            ..Wishes::default()
        };
        assert_eq!(filled, expected);
        assert_eq!(defaults.to_string(), "temperature 0.6, top_p 0.95, top_k 20");
        assert_eq!(load(file, SamplingDefaults::Openai), Ok(Defaults::default()));
    }

    #[test]
    fn a_model_that_recommends_nothing_is_as_openai_s() {
        let empty = tempfile::tempdir().unwrap();
        let defaults = Defaults::load(empty.path(), SamplingDefaults::Model, 100).unwrap();
        assert_eq!(defaults, Defaults::default());
        assert_eq!(load("{}", SamplingDefaults::Model), Ok(Defaults::default()));
    }

    #[test]
    fn what_no_request_could_ask_for_stops_the_start() {
        for (file, sentence) in [
            (r#"{"top_p": 7}"#, "`top_p`: expected a number above 0 and up to 1, found 7"),
            (r#"{"temperature": "warm"}"#, "generation_config.json: expected numbers"),
            ("[", "generation_config.json: expected JSON"),
        ] {
            let message = load(file, SamplingDefaults::Model).unwrap_err();
            assert!(message.contains(sentence), "{message}");
        }
    }
}
