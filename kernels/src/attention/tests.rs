use super::*;
use crate::kv::{KvLayout, write_kv};
use crate::random::{backends, bits, cpu, numbers, stored};
use crate::{Columns, Isa};

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
}

/// Plain, grouped by 4, by 7 over tile edges, latent with odd dims, latent with many heads.
const SHAPES: [Shape; 5] = [
    Shape { heads: 2, kv_heads: 2, k_dim: 64, v_dim: 64 },
    Shape { heads: 8, kv_heads: 2, k_dim: 32, v_dim: 32 },
    Shape { heads: 7, kv_heads: 1, k_dim: 80, v_dim: 80 },
    Shape { heads: 4, kv_heads: 1, k_dim: 39, v_dim: 23 },
    Shape { heads: 40, kv_heads: 1, k_dim: 96, v_dim: 64 },
];

/// One sequence's queries, keys and values.
struct Sequence {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    fn new(shape: Shape, tokens: usize, seed: u64) -> Self {
        let Shape { heads, kv_heads, k_dim, v_dim } = shape;
        let mut q = numbers(seed, tokens * heads * k_dim);
        q.iter_mut().for_each(|x| *x *= 3.0);
        let k = numbers(seed + 1, tokens * kv_heads * k_dim);
        Self { shape, q, k, v: numbers(seed + 2, tokens * kv_heads * v_dim) }
    }

    fn layout(&self, layers: usize) -> KvLayout {
        let Shape { kv_heads, k_dim, v_dim, .. } = self.shape;
        KvLayout { layers, kv_heads, k_dim, v_dim }
    }

    fn q_width(&self) -> usize {
        self.shape.heads * self.shape.k_dim
    }

    fn out_width(&self) -> usize {
        self.shape.heads * self.shape.v_dim
    }

    fn tokens(&self) -> usize {
        self.q.len() / self.q_width()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.k_dim as f32).sqrt()
    }
}

/// Serves batches: in each, some tokens of some sequences.
struct Server<'a> {
    cpu: &'a Cpu,
    kv: KvCache,
    layer: usize,
    sequences: &'a [Sequence],
    blocks: Vec<Vec<u32>>,
    done: Vec<usize>,
    out: Vec<Vec<f32>>,
    scratch: AttentionScratch,
}

impl<'a> Server<'a> {
    /// Blocks of the sequences are interleaved and in no order.
    fn new(cpu: &'a Cpu, sequences: &'a [Sequence]) -> Self {
        let longest = sequences.iter().map(Sequence::tokens).max().unwrap();
        let each = longest.div_ceil(BLOCK_TOKENS);
        let count = each * sequences.len();
        let kv = KvCache::new(cpu, sequences[0].layout(2), count + 1).unwrap();
        let block = |s: usize, i: usize| ((i * sequences.len() + s) * 7 + 3) % count;
        let step = if count.is_multiple_of(7) { 1 } else { 7 };
        let blocks = (0..sequences.len())
            .map(|s| {
                (0..each)
                    .map(|i| if step == 7 { block(s, i) } else { i * sequences.len() + s } as u32)
                    .collect()
            })
            .collect();
        Self {
            cpu,
            kv,
            layer: 1,
            sequences,
            blocks,
            done: vec![0; sequences.len()],
            out: sequences.iter().map(|s| vec![0.0; s.tokens() * s.out_width()]).collect(),
            scratch: AttentionScratch::default(),
        }
    }

    /// One batch: the next `tokens` of each named sequence.
    fn step(&mut self, parts: &[(usize, usize)]) {
        let first = &self.sequences[0];
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        let mut spans = Vec::new();
        let mut rows = 0;
        for &(s, tokens) in parts {
            let sequence = &self.sequences[s];
            let range = self.done[s]..self.done[s] + tokens;
            let cut = |x: &[f32]| {
                let width = x.len() / sequence.tokens();
                x[range.start * width..range.end * width].to_vec()
            };
            q.extend(cut(&sequence.q));
            k.extend(cut(&sequence.k));
            v.extend(cut(&sequence.v));
            let used = &self.blocks[s][..range.end.div_ceil(BLOCK_TOKENS)];
            spans.push(Span {
                rows: rows..rows + tokens,
                first_position: range.start,
                blocks: used,
            });
            rows += tokens;
        }
        let k = Columns::dense(&k, first.shape.kv_heads * first.shape.k_dim);
        let v = Columns::dense(&v, first.shape.kv_heads * first.shape.v_dim);
        write_kv(self.cpu, &mut self.kv, self.layer, &spans, k, v);
        let mut out = vec![f32::NAN; rows * first.out_width()];
        let q = Columns::dense(&q, first.q_width());
        let at = (self.layer, &spans[..]);
        attend(self.cpu, &self.kv, at, q, first.scale(), &mut out, &mut self.scratch);
        for (span, &(s, tokens)) in spans.iter().zip(parts) {
            let width = first.out_width();
            let to = self.done[s] * width..(self.done[s] + tokens) * width;
            let from = span.rows.start * width..span.rows.end * width;
            self.out[s][to].copy_from_slice(&out[from]);
        }
        for &(s, tokens) in parts {
            self.done[s] += tokens;
        }
    }

    /// One sequence alone, in chunks of `chunk` tokens.
    fn alone(cpu: &'a Cpu, sequence: &'a Sequence, chunk: usize) -> Vec<f32> {
        let mut server = Server::new(cpu, std::slice::from_ref(sequence));
        while server.done[0] < sequence.tokens() {
            let tokens = chunk.min(sequence.tokens() - server.done[0]);
            server.step(&[(0, tokens)]);
        }
        server.out.remove(0)
    }
}

/// The same in f64, from the definition.
fn reference(sequence: &Sequence, compute: Compute) -> Vec<f64> {
    let Shape { heads, kv_heads, k_dim, v_dim } = sequence.shape;
    let mut out = Vec::new();
    for token in 0..sequence.tokens() {
        for head in 0..heads {
            let q = &sequence.q[(token * heads + head) * k_dim..][..k_dim];
            let row = |x: &[f32], past: usize, dim: usize| -> Vec<f64> {
                let at = (past * kv_heads + head / (heads / kv_heads)) * dim;
                x[at..at + dim].iter().map(|&x| stored(compute, x)).collect()
            };
            let score = |past: usize| -> f64 {
                let k = row(&sequence.k, past, k_dim);
                q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>()
                    * f64::from(sequence.scale())
            };
            let scores: Vec<f64> = (0..=token).map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let mut sums = vec![0.0; v_dim];
            for (past, s) in scores.iter().enumerate() {
                let weight = (s - max).exp() / total;
                for (sum, v) in sums.iter_mut().zip(row(&sequence.v, past, v_dim)) {
                    *sum += weight * v;
                }
            }
            out.extend(sums);
        }
    }
    out
}

fn worst(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).abs()).fold(0.0, |a, b| {
        assert!(!b.is_nan(), "not a number");
        a.max(b)
    })
}

/// AMX rounds queries and weights to bf16; everything else is f32.
fn tolerance(cpu: &Cpu) -> f64 {
    if cpu.isa() == Isa::Amx && cpu.compute() == Compute::Bf16 { 1e-2 } else { 2e-6 }
}

#[test]
fn agrees_with_the_definition() {
    for cpu in backends() {
        for shape in SHAPES {
            let sequence = Sequence::new(shape, 75, 11);
            let error =
                worst(&Server::alone(&cpu, &sequence, 40), &reference(&sequence, cpu.compute()));
            let (isa, compute) = (cpu.isa(), cpu.compute());
            assert!(error < tolerance(&cpu), "{isa} {compute} {shape:?}: {error}");
        }
    }
}

#[test]
fn agrees_with_the_definition_over_several_stretches() {
    let shape = Shape { heads: 3, kv_heads: 1, k_dim: 16, v_dim: 16 };
    let sequence = Sequence::new(shape, 2 * STRETCH + 70, 5);
    for cpu in backends() {
        let error =
            worst(&Server::alone(&cpu, &sequence, 333), &reference(&sequence, cpu.compute()));
        assert!(error < tolerance(&cpu), "{} {}: {error}", cpu.isa(), cpu.compute());
    }
}

#[test]
fn chunks_of_any_size_give_the_same_bits() {
    for cpu in backends() {
        for shape in SHAPES {
            let sequence = Sequence::new(shape, 75, 21);
            let whole = bits(&Server::alone(&cpu, &sequence, 75));
            for chunk in [1, 7, 16] {
                let got = bits(&Server::alone(&cpu, &sequence, chunk));
                assert!(got == whole, "{} {} {shape:?} by {chunk}", cpu.isa(), cpu.compute());
            }
        }
    }
}

#[test]
fn decode_beyond_a_stretch_gives_the_bits_of_prefill() {
    let shape = Shape { heads: 2, kv_heads: 1, k_dim: 32, v_dim: 32 };
    let sequence = Sequence::new(shape, STRETCH + 40, 31);
    for cpu in backends() {
        let whole = bits(&Server::alone(&cpu, &sequence, STRETCH + 40));
        for chunk in [1, 7, 16] {
            let got = bits(&Server::alone(&cpu, &sequence, chunk));
            assert!(got == whole, "{} {} by {chunk}", cpu.isa(), cpu.compute());
        }
    }
}

#[test]
fn neighbours_do_not_change_a_row() {
    for cpu in backends() {
        for shape in SHAPES {
            let sequences: Vec<_> =
                [70, 33, 64].map(|n| Sequence::new(shape, n, 40 + n as u64)).into();
            let mut server = Server::new(&cpu, &sequences);
            server.step(&[(0, 40), (1, 33), (2, 1)]);
            server.step(&[(2, 62)]);
            server.step(&[(2, 1), (0, 29)]);
            server.step(&[(0, 1)]);
            for (sequence, got) in sequences.iter().zip(&server.out) {
                let alone = bits(&Server::alone(&cpu, sequence, sequence.tokens()));
                assert!(bits(got) == alone, "{} {} {shape:?}", cpu.isa(), cpu.compute());
            }
        }
    }
}

#[test]
fn what_an_earlier_owner_left_in_a_block_does_not_matter() {
    let shape = SHAPES[0];
    let mut poison = Sequence::new(shape, 64, 1);
    poison.k.fill(f32::NAN);
    poison.v.fill(f32::INFINITY);
    let sequences = [poison, Sequence::new(shape, 37, 2)];
    for cpu in backends() {
        let mut server = Server::new(&cpu, &sequences);
        server.step(&[(0, 64)]);
        server.blocks[1] = server.blocks[0].clone();
        server.step(&[(1, 37)]);
        let alone = bits(&Server::alone(&cpu, &sequences[1], 37));
        assert!(bits(&server.out[1]) == alone, "{} {}", cpu.isa(), cpu.compute());
    }
}

#[test]
fn threads_do_not_change_a_row() {
    let sequence = Sequence::new(SHAPES[1], 200, 3);
    for two in backends() {
        let one = cpu(two.isa(), two.compute(), 1);
        let got = [&one, &two].map(|cpu| bits(&Server::alone(cpu, &sequence, 100)));
        assert!(got[0] == got[1], "{} {}", two.isa(), two.compute());
    }
}

#[test]
fn instruction_sets_without_amx_agree_to_the_bit() {
    for compute in [Compute::Bf16, Compute::F32] {
        for shape in SHAPES {
            let sequence = Sequence::new(shape, 50, 9);
            let all = [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter();
            let results: Vec<_> = all
                .filter(|isa| isa.is_available())
                .map(|isa| bits(&Server::alone(&cpu(isa, compute, 1), &sequence, 50)))
                .collect();
            assert!(results.iter().all(|bits| *bits == results[0]), "{compute} {shape:?}");
        }
    }
}
