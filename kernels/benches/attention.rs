//! Times attention, sampling and the small operators beside what the machine can read.
//!
//! `cargo bench -p kernels --bench attention [-- THREADS [ISA]]`
#![expect(clippy::print_stdout, reason = "a bench reports on the terminal")]

use std::hint::black_box;
use std::time::Instant;

use kernels::{
    AttentionScratch, BLOCK_TOKENS, Columns, ColumnsMut, Compute, Cpu, CpuOptions, Draw, KvCache,
    KvLayout, Pairing, Rope, RopeScaling, RopeSpec, RouterSpec, Routing, SamplingScratch,
    SamplingSpec, Scoring, Span, TokenCounts, attend, rms_norm, rms_norm_heads, sample,
    top_k_route, write_kv,
};

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let threads = args.next().map_or(2, |arg| arg.parse().expect("a number of threads"));
    let isa = args.next().map(|arg| arg.parse().expect("an instruction set"));
    let options = CpuOptions { threads, compute: Compute::Bf16, isa, pin: true };
    let cpu = Cpu::new(&options).expect("a CPU backend");
    println!("{} threads, {}, {}", cpu.threads(), cpu.isa(), cpu.compute());
    println!("machine reads {:.1} GB/s", read_rate(&cpu));
    decode(&cpu);
    prefill(&cpu);
    sampling(&cpu);
    small(&cpu);
}

/// Seconds of one call: the best of several, since others use the machine too.
fn best(times: usize, mut f: impl FnMut()) -> f64 {
    f();
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..times).map(time).fold(f64::INFINITY, f64::min)
}

/// GB/s of plain reads of 1 GiB in huge pages.
fn read_rate(cpu: &Cpu) -> f64 {
    const PIECE: usize = 1 << 17;
    let mut words = Vec::<u64>::with_capacity(1 << 27);
    // SAFETY: the advice does not change what the range holds.
    unsafe {
        libc::madvise(
            words.as_mut_ptr().wrapping_byte_add(4095).map_addr(|a| a & !4095).cast(),
            (1 << 30) - 4096,
            libc::MADV_HUGEPAGE,
        );
    }
    words.resize(1 << 27, 1);
    let seconds = best(5, || {
        cpu.for_each(words.len() / PIECE, |task, _| {
            let piece = &words[task * PIECE..(task + 1) * PIECE];
            let mut sums = [0_u64; 64];
            for line in piece.chunks_exact(64) {
                for (sum, word) in sums.iter_mut().zip(line) {
                    *sum ^= word;
                }
            }
            black_box(sums);
        });
    });
    (words.len() * 8) as f64 / seconds / 1e9
}

struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    dims: (usize, usize),
    batch: usize,
    context: usize,
    layers: usize,
}

fn decode(cpu: &Cpu) {
    let qwen = |name, batch, context, layers| Case {
        name,
        heads: 32,
        kv_heads: 4,
        dims: (128, 128),
        batch,
        context,
        layers,
    };
    let small = |name, batch, context, layers| Case {
        name,
        heads: 16,
        kv_heads: 16,
        dims: (64, 64),
        batch,
        context,
        layers,
    };
    let latent = |name, batch, context, layers| Case {
        name,
        heads: 128,
        kv_heads: 1,
        dims: (576, 512),
        batch,
        context,
        layers,
    };
    for case in [
        qwen("32 heads over 4 of 128", 64, 144, 12),
        qwen("32 heads over 4 of 128", 64, 4096, 2),
        qwen("32 heads over 4 of 128", 1, 4096, 24),
        small("16 heads of 64", 64, 144, 8),
        small("16 heads of 64", 1, 1024, 64),
        latent("128 heads over a latent", 8, 1024, 8),
        latent("128 heads over a latent", 1, 4096, 8),
    ] {
        decode_case(cpu, &case);
    }
}

fn decode_case(cpu: &Cpu, case: &Case) {
    let Case { name, heads, kv_heads, dims: (k_dim, v_dim), batch, context, layers } = *case;
    let each = context.div_ceil(BLOCK_TOKENS);
    let layout = KvLayout { layers, kv_heads, k_dim, v_dim };
    let mut kv = KvCache::new(cpu, layout, each * batch).expect("a cache");
    let blocks: Vec<Vec<u32>> = (0..batch)
        .map(|s| (0..each).map(|i| u32::try_from(i * batch + s).expect("small")).collect())
        .collect();
    let keys = vec![0.01; context * kv_heads * k_dim];
    let values = vec![0.01; context * kv_heads * v_dim];
    for layer in 0..layers {
        for blocks in &blocks {
            let span = Span { rows: 0..context, first_position: 0, blocks };
            let k = Columns::dense(&keys, kv_heads * k_dim);
            let v = Columns::dense(&values, kv_heads * v_dim);
            write_kv(cpu, &mut kv, layer, &[span], k, v);
        }
    }
    let spans: Vec<Span<'_>> = blocks
        .iter()
        .enumerate()
        .map(|(i, blocks)| Span { rows: i..i + 1, first_position: context - 1, blocks })
        .collect();
    let q = vec![0.5; batch * heads * k_dim];
    let mut out = vec![0.0; batch * heads * v_dim];
    let mut scratch = AttentionScratch::default();
    let seconds = best(5, || {
        for layer in 0..layers {
            let q = Columns::dense(&q, heads * k_dim);
            attend(cpu, &kv, (layer, &spans), q, 0.1, &mut out, &mut scratch);
        }
    });
    let per_layer = seconds / layers as f64;
    let bytes = batch * context * kv_heads * (k_dim + v_dim) * 2;
    println!(
        "decode  {name:24} batch {batch:2} context {context:4}: {:8.1} us per layer, {:5.1} GB/s of KV",
        per_layer * 1e6,
        bytes as f64 / per_layer / 1e9
    );
}

fn prefill(cpu: &Cpu) {
    for (name, heads, kv_heads, k_dim, v_dim, tokens) in [
        ("16 heads of 64", 16, 16, 64, 64, 512_usize),
        ("32 heads over 4 of 128", 32, 4, 128, 128, 512),
        ("32 heads over 4 of 128", 32, 4, 128, 128, 4096),
        ("128 heads over a latent", 128, 1, 576, 512, 512),
    ] {
        let layout = KvLayout { layers: 1, kv_heads, k_dim, v_dim };
        let each = tokens.div_ceil(BLOCK_TOKENS);
        let mut kv = KvCache::new(cpu, layout, each).expect("a cache");
        let blocks: Vec<u32> = (0..each).map(|b| u32::try_from(b).expect("small")).collect();
        let spans = [Span { rows: 0..tokens, first_position: 0, blocks: &blocks }];
        let k = vec![0.01; tokens * kv_heads * k_dim];
        let v = vec![0.01; tokens * kv_heads * v_dim];
        let k = Columns::dense(&k, kv_heads * k_dim);
        let v = Columns::dense(&v, kv_heads * v_dim);
        let write = best(5, || write_kv(cpu, &mut kv, 0, &spans, k, v));
        let q = vec![0.5; tokens * heads * k_dim];
        let q = Columns::dense(&q, heads * k_dim);
        let mut out = vec![0.0; tokens * heads * v_dim];
        let mut scratch = AttentionScratch::default();
        let seconds = best(5, || attend(cpu, &kv, (0, &spans), q, 0.1, &mut out, &mut scratch));
        let flops = (tokens * (tokens + 1) * heads * (k_dim + v_dim)) as f64;
        println!(
            "prefill {name:24} {tokens:4} tokens: {:8.2} ms per layer, {:6.0} GFLOP/s; storing {:.2} ms",
            seconds * 1e3,
            flops / seconds / 1e9,
            write * 1e3
        );
    }
}

fn sampling(cpu: &Cpu) {
    const VOCABULARY: usize = 151_936;
    let mut state = 1_u32;
    let mut logits = vec![0.0_f32; 64 * VOCABULARY];
    for logit in &mut logits {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let uniform = f64::from(state) / f64::from(u32::MAX);
        *logit = (-4.0 * (uniform + 1e-9).ln()) as f32;
    }
    let plain = SamplingSpec::default();
    let specs = [
        ("greedy", SamplingSpec { temperature: 0.0, ..plain.clone() }),
        ("greedy, 5 logprobs", {
            SamplingSpec { temperature: 0.0, logprobs: Some(5), ..plain.clone() }
        }),
        ("temperature", plain.clone()),
        ("top-k 50", SamplingSpec { top_k: 50, ..plain.clone() }),
        ("top-p 0.95", SamplingSpec { top_p: 0.95, ..plain.clone() }),
        ("top-k, top-p, min-p, 5 logprobs", {
            SamplingSpec { top_k: 50, top_p: 0.95, min_p: 0.01, logprobs: Some(5), ..plain }
        }),
    ];
    let counts = TokenCounts::new(&(0..1000).collect::<Vec<_>>());
    let mut scratch = SamplingScratch::default();
    let mut out = Vec::new();
    for (name, spec) in &specs {
        let draw =
            Draw { spec, counts: &counts, banned: &[], allowed: None, given: None, position: 7 };
        let mut time = |rows: usize| {
            let draws = vec![draw; rows];
            let logits = &mut logits[..rows * VOCABULARY];
            1e6 * best(7, || sample(cpu, logits, &draws, &mut scratch, &mut out))
        };
        let (one, many) = (time(1), time(64));
        println!("sample  {name:32} {VOCABULARY} tokens: {one:6.0} us alone, {many:6.0} us for 64");
    }
}

fn small(cpu: &Cpu) {
    for rows in [1, 64, 512] {
        let width = 2048;
        let x = vec![0.5; rows * width];
        let weight = vec![1.0; width];
        let mut y = vec![0.0; rows * width];
        let dense = Columns::dense(&x, width);
        let norm = best(9, || rms_norm(cpu, dense, &weight, 1e-6, &mut y));
        let heads = best(9, || {
            rms_norm_heads(cpu, ColumnsMut::dense(&mut y, width), &weight[..128], 1e-6);
        });
        let rope = Rope::new(&RopeSpec {
            theta: 1e6,
            dim: 128,
            pairing: Pairing::Halves,
            scaling: RopeScaling::None,
            positions: 4096,
        });
        let positions: Vec<u32> = (0..rows).map(|i| u32::try_from(i).expect("small")).collect();
        let rotate = best(9, || {
            rope.apply(cpu, ColumnsMut::dense(&mut y, width), (128, 0), &positions);
        });
        let spec = RouterSpec {
            experts: 128,
            top_k: 8,
            scoring: Scoring::Softmax,
            normalize: true,
            groups: None,
            scale: 1.0,
        };
        let logits: Vec<f32> =
            (0..rows * 128).map(|i| ((i * 7919) % 1009) as f32 / 500.0).collect();
        let mut routing = Routing::default();
        let route = best(9, || top_k_route(cpu, &spec, &logits, &mut routing));
        println!(
            "small   {rows:3} rows: norm of 2048 {:6.1} us, 16 head norms {:6.1} us, rope {:6.1} us, top 8 of 128 {:6.1} us",
            norm * 1e6,
            heads * 1e6,
            rotate * 1e6,
            route * 1e6
        );
    }
}
