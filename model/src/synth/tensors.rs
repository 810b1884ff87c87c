//! The tensors of a synthetic checkpoint, and the file they are drawn into by all threads at once.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use half::bf16;
use kernels::{Cpu, FP8_BLOCK, fp8_blocks};
use serde_json::{Map, Value, json};

use super::{
    SynthSpec,
    blocks::Blocks,
    normal::{Normal, stream},
};
use crate::quantization::SCALES;

/// Elements that one task draws and writes.
const TASK_ELEMENTS: usize = 1 << 20;

/// Distributions of weights; tensors of one distribution share its table.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Distribution {
    mean: f64,
    deviation: f64,
}

/// One tensor to draw.
#[derive(Clone, Debug)]
struct Drawn {
    name: String,
    rows: usize,
    cols: usize,
    /// Norm weights have one dimension.
    vector: bool,
    distribution: Distribution,
    /// Zeroes in row 0, so that nothing is added to residual channel 0.
    keeps_carrier: bool,
    /// What column 0 holds.
    column: Option<f32>,
    /// Codes instead of values, and scales behind them.
    fp8: bool,
    /// Where it begins in the file.
    offset: usize,
}

/// A written checkpoint file, open for patching.
pub(super) struct TensorsFile {
    file: File,
    tensors: Vec<Drawn>,
    /// Bytes of the file.
    pub(super) bytes: usize,
    /// Weights of the model.
    pub(super) parameters: usize,
}

impl TensorsFile {
    /// Draws every tensor of `spec` into a new file at `path`.
    pub(super) fn write(spec: &SynthSpec, cpu: &Cpu, path: &Path) -> io::Result<Self> {
        let mut tensors = list(spec);
        let (header, bytes) = lay_out(&mut tensors);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(bytes as u64)?;
        file.write_all_at(&header, 0)?;
        draw(spec.seed, cpu, &file, &tensors)?;
        let parameters = tensors.iter().map(|tensor| tensor.rows * tensor.cols).sum();
        Ok(Self { file, tensors, bytes, parameters })
    }

    /// Sets column 0 of a tensor and returns the tensor as it then is, in bf16.
    pub(super) fn set_column(&self, name: &str, values: &[f32]) -> io::Result<Vec<u8>> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name);
        let tensor = tensor.ok_or_else(|| io::Error::other(format!("no tensor {name}")))?;
        let mut stored = vec![0; tensor.rows * tensor.cols * 2];
        self.file.read_exact_at(&mut stored, tensor.offset as u64)?;
        for (row, value) in stored.chunks_exact_mut(tensor.cols * 2).zip(values) {
            row[..2].copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
        }
        self.file.write_all_at(&stored, tensor.offset as u64)?;
        Ok(stored)
    }
}

/// Every tensor of the model, in the order of the file. Scales keep activations near 1 through the depth.
fn list(spec: &SynthSpec) -> Vec<Drawn> {
    let (hidden, width) = (spec.hidden, spec.width);
    let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let root = |inputs: usize| (inputs as f64).powf(-0.5);
    let depth = 2.0 * root(2 * spec.layers);
    let matrix = |name: String, rows, cols, deviation| Drawn {
        name,
        rows,
        cols,
        vector: false,
        distribution: Distribution { mean: 0.0, deviation },
        keeps_carrier: false,
        column: None,
        fp8: false,
        offset: 0,
    };
    let projection = |name, rows, cols, deviation| Drawn {
        fp8: spec.fp8,
        ..matrix(name, rows, cols, deviation)
    };
    let norm = |name: String, len| Drawn {
        vector: true,
        distribution: Distribution { mean: 1.0, deviation: 0.05 },
        ..matrix(name, 1, len, 0.0)
    };
    let residual = |name: String, inputs| Drawn {
        keeps_carrier: true,
        ..projection(name, hidden, inputs, depth * root(inputs))
    };
    let mut tensors = vec![Drawn {
        column: Some(spec.carrier),
        ..matrix("model.embed_tokens.weight".to_owned(), spec.vocab, hidden, 1.0)
    }];
    for layer in 0..spec.layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
        tensors.extend([
            norm(name("input_layernorm"), hidden),
            projection(name("self_attn.q_proj"), queries, hidden, root(hidden)),
            projection(name("self_attn.k_proj"), keys, hidden, root(hidden)),
            projection(name("self_attn.v_proj"), keys, hidden, root(hidden)),
            residual(name("self_attn.o_proj"), queries),
            norm(name("self_attn.q_norm"), spec.head_dim),
            norm(name("self_attn.k_norm"), spec.head_dim),
            norm(name("post_attention_layernorm"), hidden),
            Drawn {
                column: Some(0.0),
                ..matrix(name("mlp.gate"), spec.experts, hidden, root(hidden))
            },
        ]);
        for expert in 0..spec.experts {
            let name = |part: &str| name(&format!("mlp.experts.{expert}.{part}"));
            tensors.extend([
                projection(name("gate_proj"), width, hidden, root(hidden)),
                projection(name("up_proj"), width, hidden, root(hidden)),
                residual(name("down_proj"), width),
            ]);
        }
    }
    tensors.push(norm("model.norm.weight".to_owned(), hidden));
    // Logits of deviation 2: greedy tokens are well defined in bf16, sampled text is varied.
    tensors.push(matrix("lm_head.weight".to_owned(), spec.vocab, hidden, 2.0 * root(hidden)));
    tensors
}

/// Gives every tensor its place; returns the file's beginning and its length.
fn lay_out(tensors: &mut [Drawn]) -> (Vec<u8>, usize) {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors.iter_mut() {
        tensor.offset = end;
        end += tensor.bytes();
        let dtype = if tensor.fp8 { "F8_E4M3" } else { "BF16" };
        let shape = match tensor.vector {
            true => vec![tensor.cols],
            false => vec![tensor.rows, tensor.cols],
        };
        let offsets = [tensor.offset, end];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        entries.insert(tensor.name.clone(), entry);
        if tensor.fp8 {
            let shape = fp8_blocks(tensor.rows, tensor.cols);
            let begin = end;
            end += shape[0] * shape[1] * size_of::<f32>();
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
            entries.insert(format!("{}{SCALES}", tensor.name), entry);
        }
    }
    let mut text = Value::Object(entries).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    for tensor in tensors {
        tensor.offset += header.len();
    }
    let bytes = header.len() + end;
    (header, bytes)
}

fn draw(seed: u64, cpu: &Cpu, file: &File, tensors: &[Drawn]) -> io::Result<()> {
    let mut tables: Vec<(Distribution, Normal)> = Vec::new();
    let mut tasks = Vec::new();
    for tensor in tensors {
        let kind = tensor.distribution;
        if !tables.iter().any(|(known, _)| *known == kind) {
            tables.push((kind, Normal::new(kind.mean, kind.deviation)));
        }
        // Whole rows of blocks, each with its scales.
        let rows_per_task = (TASK_ELEMENTS / tensor.cols).max(1).next_multiple_of(FP8_BLOCK);
        let firsts = (0..tensor.rows).step_by(rows_per_task);
        tasks.extend(firsts.map(|first| (tensor, first..(first + rows_per_task).min(tensor.rows))));
    }
    let buffers: Vec<_> =
        (0..cpu.threads()).map(|_| Mutex::new((Vec::new(), Blocks::default()))).collect();
    let failed = Mutex::new(None);
    cpu.for_each(tasks.len(), |task, worker| {
        let (tensor, rows) = &tasks[task];
        let mut buffer = buffers[worker].lock().unwrap_or_else(PoisonError::into_inner);
        let table = tables.iter().find(|(kind, _)| *kind == tensor.distribution);
        let Some((_, normal)) = table else { return };
        let (drawn, blocks) = &mut *buffer;
        drawn.resize(rows.len() * tensor.cols, [0; 2]);
        tensor.fill(seed, normal, rows.start, drawn);
        if let Err(error) = tensor.put(file, rows.start, drawn, blocks) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

impl Drawn {
    /// Bytes without scales.
    fn bytes(&self) -> usize {
        let elements = self.rows * self.cols;
        if self.fp8 { elements } else { elements * size_of::<bf16>() }
    }

    /// Writes rows from `first` on.
    fn put(
        &self,
        file: &File,
        first: usize,
        drawn: &[[u8; 2]],
        blocks: &mut Blocks,
    ) -> io::Result<()> {
        if !self.fp8 {
            let offset = self.offset + first * self.cols * size_of::<bf16>();
            return file.write_all_at(drawn.as_flattened(), offset as u64);
        }
        blocks.quantise(drawn, self.cols);
        file.write_all_at(&blocks.codes, (self.offset + first * self.cols) as u64)?;
        let [before, across] = fp8_blocks(first, self.cols);
        let offset = self.offset + self.bytes() + before * across * size_of::<f32>();
        file.write_all_at(&blocks.scales, offset as u64)
    }

    /// Draws rows from `first` on into `out`.
    fn fill(&self, seed: u64, normal: &Normal, first: usize, out: &mut [[u8; 2]]) {
        let tensor = stream(seed, &self.name);
        for (row, out) in (first..).zip(out.chunks_exact_mut(self.cols)) {
            if row == 0 && self.keeps_carrier {
                out.fill([0; 2]);
                continue;
            }
            // A row of its own stream, so that rows of any width begin with a whole hash.
            normal.fill(super::normal::mix(tensor ^ row as u64), 0, out);
            if let Some(value) = self.column {
                out[0] = bf16::from_f32(value).to_le_bytes();
            }
        }
    }
}
