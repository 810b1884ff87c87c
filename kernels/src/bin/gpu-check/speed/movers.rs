//! How fast the kernels are that mostly move bytes.

use half::bf16;
use kernels::cuda::{
    Attention, Buffer, Cache, CacheShape, CudaError, Device, KvSteps, PagedRows, Probe, RouteSpec,
    Rows, Terms,
};
use kernels::{BLOCK_TOKENS, Span};

use super::{Mover, latent, median};
use crate::random::Random;

/// Shapes are those of Qwen3-30B-A3B, and of DeepSeek-V3 for latent attention, unless `tiny`.
pub(super) fn measure(device: &Device, probe: &Probe, tiny: bool) -> Result<Vec<Mover>, CudaError> {
    let rows = if tiny { 2 } else { 8192 };
    let (sequences, longest) = if tiny { (1, 3) } else { (64, 4096) };
    let heads = if tiny { (4, 128) } else { (128, 512) };
    let mut movers = vec![add_norm(device, probe, rows)?, route(device, rows)?];
    movers.extend(attention(device, probe, (sequences, longest))?);
    movers.extend(latent::measure(device, probe, heads, (sequences, longest))?);
    Ok(movers)
}

pub(super) fn random_halves(
    device: &Device,
    probe: &Probe,
    len: usize,
) -> Result<Buffer<bf16>, CudaError> {
    let mut buffer = device.alloc(len)?;
    probe.fill(device, &mut buffer, (1, 1.0)).map(|()| buffer)
}

fn add_norm(device: &Device, probe: &Probe, rows: usize) -> Result<Mover, CudaError> {
    const WIDTH: usize = 2048;
    const COUNT: usize = 8;
    let kernels = Rows::new(device)?;
    let mut residual = device.upload(&Random(1).floats(rows * WIDTH, 1.0))?;
    let values = random_halves(device, probe, rows * COUNT * WIDTH)?;
    let place: Vec<u32> = (0..(rows * COUNT) as u32).collect();
    let terms = Terms { values: &values, place: &device.upload(&place)?, count: COUNT, bias: None };
    let weight = random_halves(device, probe, WIDTH)?;
    let mut out = device.alloc(rows * WIDTH)?;
    let milliseconds = median(device, || {
        kernels.add_norm(device, &mut residual, terms, (&weight, 1e-6), &mut out)
    })?;
    let bytes = rows * WIDTH * (2 * COUNT + 4 + 4 + 2);
    let what = format!("add {COUNT} terms and norm, {rows} x {WIDTH}");
    Ok(Mover { what, milliseconds, bytes: bytes as f64, operations: 0.0 })
}

fn route(device: &Device, rows: usize) -> Result<Mover, CudaError> {
    let spec = RouteSpec {
        experts: 128,
        top_k: 8,
        groups: (1, 1),
        sigmoid: false,
        normalize: true,
        scale: 1.0,
    };
    let kernels = Rows::new(device)?;
    let logits = device.upload(&Random(2).floats(rows * spec.experts, 4.0))?;
    let mut chosen = device.alloc(rows * spec.top_k)?;
    let mut weight = device.alloc(rows * spec.top_k)?;
    let milliseconds =
        median(device, || kernels.route(device, &spec, (&logits, None), &mut chosen, &mut weight))?;
    let bytes = rows * (spec.experts * 4 + spec.top_k * 8);
    let what = format!("gate, {rows} rows, 8 of 128");
    Ok(Mover { what, milliseconds, bytes: bytes as f64, operations: 0.0 })
}

/// Fills a cache with `sequences` of `longest` positions, then attends once for each, and for a
/// chunk at the end of one.
fn attention(
    device: &Device,
    probe: &Probe,
    (sequences, longest): (usize, usize),
) -> Result<[Mover; 3], CudaError> {
    let each = longest.div_ceil(BLOCK_TOKENS);
    let shape = CacheShape { heads: 32, kv_heads: 4, dim: 128, blocks: sequences * each };
    let (all, width) = (shape.heads + 2 * shape.kv_heads, shape.heads * shape.dim);
    let chunk = longest.div_ceil(8);
    let mut attention = Attention::new(device, shape, (sequences.max(chunk), longest))?;
    let mut cache = Cache::new(device, shape)?;
    let blocks: Vec<u32> = (0..(sequences * each) as u32).collect();
    let mut paged = PagedRows::new(device, sequences * longest, blocks.len())?;
    let spans = |rows, sequences| -> Vec<Span<'_>> {
        last_rows(&blocks, (each, longest), rows).take(sequences).collect()
    };
    let positions = sequences * longest;
    let qkv = random_halves(device, probe, positions * all * shape.dim)?;
    let angles = device.upload(&Random(3).floats(longest * shape.dim, 1.0))?;
    let steps = KvSteps { bias: None, norms: None, clip: None, angles: &angles, turned: shape.dim };
    let mut query = device.alloc(positions * width)?;
    paged.set(device, shape.paging(), &spans(longest, sequences))?;
    let write = median(device, || {
        attention.write_kv(device, (&paged, &qkv), steps, &mut query, &mut cache)
    })?;
    let mut out = device.alloc(sequences.max(chunk) * width)?;
    let mut attend = |spans: &[Span<'_>]| {
        paged.set(device, shape.paging(), spans)?;
        median(device, || attention.attend(device, (&paged, &query), 0.088, &cache, &mut out))
    };
    let (decode, prefill) = (attend(&spans(1, sequences))?, attend(&spans(chunk, 1))?);
    let head = shape.dim * size_of::<bf16>();
    let (written, read) = (2 * positions * all * head, 2 * positions * shape.kv_heads * head);
    let once = 2 * longest * shape.kv_heads * head + 2 * chunk * shape.heads * head;
    // A query's score and its value for one position.
    let pair = 4.0 * width as f64;
    let pairs = chunk as f64 * (longest as f64 - chunk as f64 / 2.0);
    Ok([
        Mover {
            what: format!("rotate and cache, {positions} rows"),
            milliseconds: write,
            bytes: written as f64,
            operations: 0.0,
        },
        Mover {
            what: format!("decode attention, {sequences} x {longest}"),
            milliseconds: decode,
            bytes: read as f64,
            operations: pair * positions as f64,
        },
        Mover {
            what: format!("attention of a chunk, {chunk} of {longest}"),
            milliseconds: prefill,
            bytes: once as f64,
            operations: pair * pairs,
        },
    ])
}

/// The last `rows` positions of sequences of `longest` positions in `each` blocks.
pub(super) fn last_rows(
    blocks: &[u32],
    (each, longest): (usize, usize),
    rows: usize,
) -> impl Iterator<Item = Span<'_>> {
    let span = move |(i, blocks)| Span {
        rows: i * rows..(i + 1) * rows,
        first_position: longest - rows,
        blocks,
    };
    blocks.chunks_exact(each).enumerate().map(span)
}
