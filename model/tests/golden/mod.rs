//! A golden: a tiny checkpoint with the logits and greedy continuations that `transformers` gives for it.

use std::{fs, path::PathBuf, sync::Arc};

use model::{Checkpoint, Compute, Cpu, CpuOptions, Isa, Reference};
use safetensors::SafeTensors;
use serde_json::Value;

pub(crate) struct Golden {
    pub(crate) name: &'static str,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) cases: Vec<Case>,
}

pub(crate) struct Case {
    pub(crate) prompt: Vec<u32>,
    /// `[prompt, vocab]`.
    pub(crate) logits: Vec<f32>,
    pub(crate) greedy: Vec<u32>,
    /// The smallest distance of the best to the second logit along `greedy`.
    pub(crate) min_margin: f32,
}

impl Golden {
    pub(crate) fn open(name: &'static str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name);
        let json: Value =
            serde_json::from_slice(&fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let logits = fs::read(dir.join("logits.safetensors")).unwrap();
        let logits = SafeTensors::deserialize(&logits).unwrap();
        let cases = json["cases"].as_array().unwrap().iter().enumerate();
        let cases = cases
            .map(|(number, case)| Case {
                prompt: tokens(&case["prompt"]),
                logits: floats(logits.tensor(&format!("prompt{number}")).unwrap().data()),
                greedy: tokens(&case["greedy"]),
                min_margin: case["min_margin"].as_f64().unwrap() as f32,
            })
            .collect();
        Self { name, checkpoint: Arc::new(Checkpoint::open(&dir).unwrap()), cases }
    }

    /// The whole model, with room for a few hundred positions.
    pub(crate) fn load(&self, compute: Compute, isa: Option<Isa>) -> Reference {
        let options = CpuOptions { threads: 2, compute, isa, pin: false };
        let cpu = Arc::new(Cpu::new(&options).unwrap());
        Reference::load(&self.checkpoint, &cpu, 32).unwrap()
    }
}

fn tokens(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap().iter();
    list.map(|token| token.as_u64().unwrap() as u32).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}
