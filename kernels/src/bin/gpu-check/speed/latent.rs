//! How fast latent attention is.

use half::bf16;
use kernels::Span;
use kernels::cuda::{
    Buffer, CudaError, Device, HeadMatrices, HeadProduct, HeadsView, LatentAttention, LatentCache,
    LatentShape, LatentSteps, PagedRows, Probe, Turn,
};

use super::{Mover, median};
use crate::random::Random;
use crate::speed::movers::{last_rows, random_halves};

const HALF: usize = size_of::<bf16>();
/// Elements of a head's query that do not turn.
const STILL: usize = 128;
/// Elements that do.
const TURNED: usize = 64;

/// Fills a cache with `sequences` of `longest` positions, then attends once for each, and for a chunk at the end of
/// one; and takes a query for each into the compressed space.
pub(super) fn measure(
    device: &Device,
    probe: &Probe,
    (heads, rank): (usize, usize),
    (sequences, longest): (usize, usize),
) -> Result<[Mover; 4], CudaError> {
    let each = longest.div_ceil(kernels::BLOCK_TOKENS);
    let shape = LatentShape { heads, rank, turned: TURNED, blocks: sequences * each };
    let (chunk, width) = (longest.div_ceil(16), shape.width());
    let rows = sequences.max(chunk);
    let mut attention = LatentAttention::new(device, shape, (rows, longest))?;
    let mut cache = LatentCache::new(device, shape)?;
    let blocks: Vec<u32> = (0..shape.blocks as u32).collect();
    let positions = sequences * longest;
    let mut paged = PagedRows::new(device, positions, blocks.len())?;
    let spans = |rows, sequences| -> Vec<Span<'_>> {
        last_rows(&blocks, (each, longest), rows).take(sequences).collect()
    };
    let projected = random_halves(device, probe, positions * width)?;
    let (norm, angles) =
        (random_halves(device, probe, rank)?, Random(3).floats(longest * TURNED, 1.0));
    let turn = Turn { angles: &device.upload(&angles)?, neighbours: true };
    let steps = LatentSteps { bias: None, query_norm: None, key_norm: &norm, epsilon: 1e-6 };
    let mut nothing = device.alloc(0)?;
    paged.set(device, shape.paging(), &spans(longest, sequences))?;
    let write = median(device, || {
        attention.write(device, (&paged, &projected), (steps, turn), &mut nothing, &mut cache)
    })?;
    let query = random_halves(device, probe, rows * heads * width)?;
    let mut out = device.alloc(rows * heads * rank)?;
    let mut attend = |spans: &[Span<'_>]| {
        paged.set(device, shape.paging(), spans)?;
        median(device, || attention.attend(device, (&paged, &query), 0.072, &cache, &mut out))
    };
    let (decode, prefill) = (attend(&spans(1, sequences))?, attend(&spans(chunk, 1))?);
    // A query's score and its value for one position of one head.
    let pair = 2.0 * heads as f64 * (width + rank) as f64;
    let once = longest * width + chunk * heads * (width + rank);
    Ok([
        Mover {
            what: format!("norm and cache compressed rows, {positions}"),
            milliseconds: write,
            bytes: (2 * positions * width * HALF) as f64,
            operations: 0.0,
        },
        Mover {
            what: format!("decode latent attention, {sequences} x {longest}"),
            milliseconds: decode,
            bytes: (positions * width * HALF) as f64,
            operations: pair * positions as f64,
        },
        Mover {
            what: format!("latent attention of a chunk, {chunk} of {longest}"),
            milliseconds: prefill,
            bytes: (once * HALF) as f64,
            operations: pair * chunk as f64 * (longest as f64 - chunk as f64 / 2.0),
        },
        absorb(device, probe, &shape, sequences)?,
    ])
}

/// Queries of some rows into the compressed space.
fn absorb(
    device: &Device,
    probe: &Probe,
    shape: &LatentShape,
    rows: usize,
) -> Result<Mover, CudaError> {
    let LatentShape { heads, rank, .. } = *shape;
    let (head, width) = (STILL + shape.turned, shape.width());
    let weights = random_halves(device, probe, heads * rank * STILL)?;
    let matrices = HeadMatrices::new((heads, rank, STILL), weights)?;
    let product = HeadProduct::new(device)?;
    let query = random_halves(device, probe, rows * heads * head)?;
    let mut out: Buffer<bf16> = device.alloc(rows * heads * width)?;
    let view = |head: usize| HeadsView { first: 0, row: heads * head, head };
    let milliseconds = median(device, || {
        product.launch(device, (&matrices, rows), (&query, view(head)), (&mut out, view(width)))
    })?;
    Ok(Mover {
        what: format!("absorb queries of {heads} heads, {rows} rows"),
        milliseconds,
        bytes: (matrices.bytes() + rows * heads * (STILL + rank) * HALF) as f64,
        operations: 2.0 * (rows * heads * rank * STILL) as f64,
    })
}
