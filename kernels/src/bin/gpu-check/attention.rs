//! Filling the cache and attending to it, against f64, and the same sequence in two batches.

use half::bf16;
use kernels::cuda::{
    Attention, Buffer, Cache, CacheShape, CudaError, DecodeRows, Device, HeadNorms, KvRows,
};

use crate::check::Checks;
use crate::random::Random;

const KV_BLOCK: usize = 32;
const EPSILON: f32 = 1e-6;

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let wide = CacheShape { heads: 8, kv_heads: 2, dim: 128, blocks: 40 };
    let narrow = CacheShape { heads: 12, kv_heads: 1, dim: 64, blocks: 40 };
    for (shape, norms) in [(wide, true), (narrow, false)] {
        let case = Case::random(shape, &[1, 33, 700], (norms, seed));
        let got = case.run(device, &[0, 1, 2])?;
        let want = case.reference();
        let CacheShape { heads, kv_heads, dim, .. } = shape;
        let width = heads * dim;
        for (row, length) in case.lengths.iter().enumerate() {
            let name =
                format!("attention, {heads} heads of {dim} on {kv_heads}, {length} positions");
            let part = row * width..(row + 1) * width;
            checks.close(&got[part.clone()], &want[part.clone()], 1e-2, &name);
            let same = case.run(device, &[row])? == got[part];
            checks.expect(same, &format!("{name}: the same bits alone"));
        }
    }
    Ok(())
}

/// Sequences whose positions all go through `write_kv`, the last of each then attends.
struct Case {
    shape: CacheShape,
    lengths: Vec<usize>,
    /// Each sequence's blocks, scattered over the cache.
    blocks: Vec<Vec<u32>>,
    /// Of each sequence: `[length, heads + 2 kv_heads, dim]`.
    qkv: Vec<Vec<bf16>>,
    norms: Option<[Vec<bf16>; 2]>,
    angles: Vec<f32>,
}

impl Case {
    fn random(shape: CacheShape, lengths: &[usize], (norms, seed): (bool, u64)) -> Self {
        let mut random = Random(seed);
        let row = (shape.heads + 2 * shape.kv_heads) * shape.dim;
        let mut free: Vec<u32> = (0..shape.blocks as u32).collect();
        let mut take = |_| free.swap_remove(random.below(free.len() as u32) as usize);
        let blocks = lengths.iter().map(|n| (0..n.div_ceil(KV_BLOCK)).map(&mut take).collect());
        let blocks = blocks.collect();
        let most = lengths.iter().max().copied().unwrap_or(0);
        let half = shape.dim / 2;
        let angle =
            |position: usize, i: usize| position as f64 / 10_000_f64.powf(i as f64 / half as f64);
        let cosines_and_sines = |position| {
            let cosines = (0..half).map(move |i| angle(position, i).cos() as f32);
            cosines.chain((0..half).map(move |i| angle(position, i).sin() as f32))
        };
        Self {
            shape,
            lengths: lengths.to_vec(),
            blocks,
            qkv: lengths.iter().map(|n| random.halves(n * row, 2.0)).collect(),
            norms: norms.then(|| [(); 2].map(|()| random.halves(shape.dim, 1.5))),
            angles: (0..most).flat_map(cosines_and_sines).collect(),
        }
    }

    /// The last position's attention of some of the sequences, as one batch.
    fn run(&self, device: &Device, rows: &[usize]) -> Result<Vec<bf16>, CudaError> {
        let CacheShape { heads, dim, .. } = self.shape;
        let most = rows.iter().map(|row| self.blocks[*row].len()).max().unwrap_or(0);
        let longest = rows.iter().map(|row| self.lengths[*row]).max().unwrap_or(0);
        let mut attention = Attention::new(device, self.shape, (rows.len(), longest))?;
        let mut cache = Cache::new(device, self.shape)?;
        let mut last = Vec::new();
        for row in rows {
            let query = self.fill(device, &attention, *row, &mut cache)?;
            last.extend_from_slice(&query[(self.lengths[*row] - 1) * heads * dim..]);
        }
        let padded = |row: &usize| {
            let blocks = self.blocks[*row].iter().copied();
            blocks.chain(std::iter::repeat(u32::MAX)).take(most).collect::<Vec<u32>>()
        };
        let blocks: Vec<u32> = rows.iter().flat_map(padded).collect();
        let length: Vec<u32> = rows.iter().map(|row| self.lengths[*row] as u32).collect();
        let decode = DecodeRows {
            query: &device.upload(&last)?,
            blocks: &device.upload(&blocks)?,
            length: &device.upload(&length)?,
            longest,
            scale: 1.0 / (dim as f32).sqrt(),
        };
        let mut out: Buffer<bf16> = device.alloc(rows.len() * heads * dim)?;
        device.poison(&mut out)?;
        attention.decode(device, decode, &cache, &mut out)?;
        device.download(&out)
    }

    /// Puts all positions of a sequence into the cache and returns their queries.
    fn fill(
        &self,
        device: &Device,
        attention: &Attention,
        row: usize,
        cache: &mut Cache,
    ) -> Result<Vec<bf16>, CudaError> {
        let length = self.lengths[row];
        let slot =
            |p: usize| self.blocks[row][p / KV_BLOCK] * KV_BLOCK as u32 + (p % KV_BLOCK) as u32;
        let slots: Vec<u32> = (0..length).map(slot).collect();
        let positions: Vec<u32> = (0..length as u32).collect();
        let norms = match &self.norms {
            Some([query, key]) => Some((device.upload(query)?, device.upload(key)?)),
            None => None,
        };
        let norms = norms.as_ref();
        let rows = KvRows {
            qkv: &device.upload(&self.qkv[row])?,
            angles: &device.upload(&self.angles)?,
            position: &device.upload(&positions)?,
            slot: &device.upload(&slots)?,
            norms: norms.map(|(query, key)| HeadNorms { query, key, epsilon: EPSILON }),
        };
        let mut query: Buffer<bf16> = device.alloc(length * self.shape.heads * self.shape.dim)?;
        device.poison(&mut query)?;
        attention.write_kv(device, rows, &mut query, cache)?;
        device.download(&query)
    }

    fn reference(&self) -> Vec<f64> {
        let heads = |row| (0..self.shape.heads).map(move |head| (row, head));
        (0..self.lengths.len())
            .flat_map(heads)
            .flat_map(|(row, head)| self.head(row, head))
            .collect()
    }

    /// Attention of the last position's head in f64.
    fn head(&self, row: usize, head: usize) -> Vec<f64> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let kv_head = head / (heads / kv_heads);
        let (last, length) = (self.lengths[row] - 1, self.lengths[row]);
        let query = self.prepared(row, last, head, Some(0));
        let dot = |p| {
            let key = self.prepared(row, p, heads + kv_head, Some(1));
            query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..length).map(dot).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; dim];
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - largest).exp() / sum;
            let value = self.prepared(row, p, heads + kv_heads + kv_head, None);
            out.iter_mut().zip(&value).for_each(|(out, value)| *out += weight * value);
        }
        out
    }

    /// One head of a position, normed by weight `norm` and rotated where it is a query or a key.
    fn prepared(&self, row: usize, position: usize, head: usize, norm: Option<usize>) -> Vec<f64> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let at = (position * (heads + 2 * kv_heads) + head) * dim;
        let mut x: Vec<f64> = self.qkv[row][at..at + dim].iter().map(|x| x.to_f64()).collect();
        let Some(norm) = norm else { return x };
        if let Some(norms) = &self.norms {
            let squares: f64 = x.iter().map(|x| x * x).sum();
            let scale = 1.0 / (squares / dim as f64 + f64::from(EPSILON)).sqrt();
            x.iter_mut().zip(&norms[norm]).for_each(|(x, w)| *x *= scale * w.to_f64());
        }
        let (angles, half) = (&self.angles[position * dim..], dim / 2);
        for i in 0..half {
            let (cosine, sine) = (f64::from(angles[i]), f64::from(angles[i + half]));
            (x[i], x[i + half]) =
                (x[i] * cosine - x[i + half] * sine, x[i + half] * cosine + x[i] * sine);
        }
        x
    }
}
