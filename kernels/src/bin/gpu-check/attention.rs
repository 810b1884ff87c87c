//! Filling the cache and attending to it, against f64, and the same sequences cut into other chunks and batches.

use half::bf16;
use kernels::cuda::{
    Attention, Buffer, Cache, CacheShape, CudaError, Device, HeadNorms, KvSteps, PagedRows,
};

use crate::check::Checks;
use crate::random::Random;
use crate::sequences::{Pass, Sequences, angles};

const EPSILON: f32 = 1e-6;
/// Positions of each sequence; they reach into a second stretch of the kernels.
const LENGTHS: [usize; 3] = [1, 33, 530];
/// The long one's first positions are only written, for attention of many rows takes an emulator long.
const WRITTEN: usize = 490;

/// What a model does to its heads.
#[derive(Debug, Clone, Copy)]
struct Ways {
    norms: Norms,
    bias: bool,
    clip: Option<f32>,
    /// Elements of a head that turn.
    turned: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Norms {
    None,
    EachHead,
    AllHeads,
}

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    let qwen3 = Ways { norms: Norms::EachHead, bias: false, clip: None, turned: 128 };
    let glm = Ways { norms: Norms::None, bias: true, clip: None, turned: 32 };
    let olmoe = Ways { norms: Norms::AllHeads, bias: true, clip: Some(1.2), turned: 32 };
    let shape = |heads, kv_heads, dim| CacheShape { heads, kv_heads, dim, blocks: 40 };
    for (shape, ways) in
        [(shape(8, 2, 128), qwen3), (shape(12, 1, 64), glm), (shape(4, 4, 32), olmoe)]
    {
        let case = Case::random(shape, ways, seed);
        let mut room = case.room(device)?;
        let whole =
            case.run(device, &mut room, &[vec![(0, 0..1), (1, 0..33), (2, WRITTEN..530)]])?;
        let CacheShape { heads, kv_heads, dim, .. } = shape;
        let name = format!("attention, {heads} heads of {dim} on {kv_heads}, {:?}", ways.norms);
        for (sequence, position) in [(0, 0), (1, 3), (1, 31), (1, 32), (2, 511), (2, 529)] {
            let at = position - if sequence == 2 { WRITTEN } else { 0 };
            let got = &whole[sequence][at * heads * dim..][..heads * dim];
            let want: Vec<f64> =
                (0..heads).flat_map(|head| case.head((sequence, position), head)).collect();
            checks.close(got, &want, 1e-2, &format!("{name}, position {position}"));
        }
        room.attention = Attention::new(device, shape, (100, LENGTHS[2]))?;
        let alone = case.run(device, &mut room, &[vec![(2, WRITTEN..530)]])?;
        checks.expect(alone[2] == whole[2], &format!("{name}: the same bits alone"));
        let mut passes =
            vec![vec![(2, WRITTEN..513), (1, 0..32)], vec![(1, 32..33), (2, 513..526)]];
        passes.extend((526..530).map(|p| vec![(2, p..p + 1)]));
        passes[3].insert(0, (0, 0..1));
        let cut = case.run(device, &mut room, &passes)?;
        checks.expect(cut == whole, &format!("{name}: the same bits cut and decoded"));
    }
    Ok(())
}

/// The kernels, and what they keep from batch to batch.
struct Room {
    attention: Attention,
    cache: Cache,
    paged: PagedRows,
}

/// Some sequences, and all that is done to their rows.
struct Case {
    shape: CacheShape,
    ways: Ways,
    sequences: Sequences,
    /// Of each sequence: `[length, heads + 2 kv_heads, dim]`.
    qkv: Vec<Vec<bf16>>,
    bias: Vec<f32>,
    norms: [Vec<bf16>; 2],
    angles: Vec<f32>,
}

impl Case {
    fn random(shape: CacheShape, ways: Ways, seed: u64) -> Self {
        let mut random = Random(seed);
        let CacheShape { heads, kv_heads, dim, .. } = shape;
        let row = (heads + 2 * kv_heads) * dim;
        let sequences = Sequences::scattered(&mut random, &LENGTHS, shape.blocks);
        let widths = match ways.norms {
            Norms::None => [0; 2],
            Norms::EachHead => [dim; 2],
            Norms::AllHeads => [heads * dim, kv_heads * dim],
        };
        Self {
            shape,
            ways,
            sequences,
            qkv: LENGTHS.iter().map(|n| random.halves(n * row, 2.0)).collect(),
            bias: random.floats(if ways.bias { row } else { 0 }, 0.5),
            norms: widths.map(|width| random.halves(width, 1.5)),
            angles: angles(LENGTHS[2], ways.turned),
        }
    }

    /// A cache with the positions of the long sequence that are only written.
    fn room(&self, device: &Device) -> Result<Room, CudaError> {
        let mut room = Room {
            // So little memory that every batch takes several launches.
            attention: Attention::new(device, self.shape, (1, LENGTHS[2]))?,
            cache: Cache::new(device, self.shape)?,
            paged: PagedRows::new(device, LENGTHS[2], self.shape.blocks)?,
        };
        self.write(device, &mut room, &vec![(2, 0..WRITTEN)])?;
        Ok(room)
    }

    /// Each sequence's attention, `[positions, heads, dim]`, from batches of ranges of positions; what
    /// no batch has is empty.
    fn run(
        &self,
        device: &Device,
        room: &mut Room,
        passes: &[Pass],
    ) -> Result<Vec<Vec<bf16>>, CudaError> {
        let mut outputs = vec![Vec::new(); LENGTHS.len()];
        let scale = 1.0 / (self.shape.dim as f32).sqrt();
        for pass in passes {
            let query = self.write(device, room, pass)?;
            let mut out: Buffer<bf16> = device.alloc(query.len())?;
            device.poison(&mut out)?;
            let Room { attention, cache, paged } = &mut *room;
            attention.attend(device, (paged, &query), scale, cache, &mut out)?;
            let row = self.shape.heads * self.shape.dim;
            self.sequences.sort(pass, row, &device.download(&out)?, &mut outputs);
        }
        Ok(outputs)
    }

    /// Writes a batch's rows into the cache and returns their queries.
    fn write(
        &self,
        device: &Device,
        Room { attention, cache, paged }: &mut Room,
        pass: &Pass,
    ) -> Result<Buffer<bf16>, CudaError> {
        paged.set(device, self.shape.paging(), &self.sequences.spans(pass))?;
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let row = (heads + 2 * kv_heads) * dim;
        let qkv = self.sequences.gather(pass, row, &self.qkv);
        let [query, key] = &self.norms;
        let (query, key) = (device.upload(query)?, device.upload(key)?);
        let norms = HeadNorms { query: &query, key: &key, epsilon: EPSILON };
        let bias = device.upload(&self.bias)?;
        let steps = KvSteps {
            bias: self.ways.bias.then_some(&bias),
            norms: (self.ways.norms != Norms::None).then_some(norms),
            clip: self.ways.clip,
            angles: &device.upload(&self.angles)?,
            turned: self.ways.turned,
        };
        let mut query: Buffer<bf16> = device.alloc(paged.rows() * heads * dim)?;
        device.poison(&mut query)?;
        attention.write_kv(device, (&*paged, &device.upload(&qkv)?), steps, &mut query, cache)?;
        Ok(query)
    }

    /// Attention of one head of a position in f64.
    fn head(&self, (sequence, position): (usize, usize), head: usize) -> Vec<f64> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let kv_head = head / (heads / kv_heads);
        let query = self.prepared((sequence, position), head);
        let dot = |p| {
            let key = self.prepared((sequence, p), heads + kv_head);
            query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..=position).map(dot).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; dim];
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - largest).exp() / sum;
            let value = self.prepared((sequence, p), heads + kv_heads + kv_head);
            out.iter_mut().zip(&value).for_each(|(out, value)| *out += weight * value);
        }
        out
    }

    /// One head of a position, queries first, then keys, then values: with bias, norm, clamp and
    /// rotation as far as it has them.
    fn prepared(&self, (sequence, position): (usize, usize), head: usize) -> Vec<f64> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let (is_query, is_value) = (head < heads, head >= heads + kv_heads);
        let all = (heads + 2 * kv_heads) * dim;
        let row = &self.qkv[sequence][position * all..][..all];
        let biased =
            |i: usize| row[i].to_f64() + self.bias.get(i).map_or(0.0, |bias| f64::from(*bias));
        let mut x: Vec<f64> = (head * dim..(head + 1) * dim).map(biased).collect();
        let weight = &self.norms[usize::from(!is_query)];
        if !is_value && !weight.is_empty() {
            let (first, before) = if is_query { (0, head) } else { (heads, head - heads) };
            let wide = self.ways.norms == Norms::AllHeads;
            let (begin, own) = if wide { (first, before * dim) } else { (head, 0) };
            let normed = begin * dim..begin * dim + weight.len();
            let squares: f64 = normed.clone().map(|i| biased(i).powi(2)).sum();
            let scale = 1.0 / (squares / weight.len() as f64 + f64::from(EPSILON)).sqrt();
            let weight = &weight[own..own + dim];
            x.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w.to_f64());
        }
        if let Some(clip) = self.ways.clip {
            x.iter_mut().for_each(|x| *x = x.clamp(-f64::from(clip), f64::from(clip)));
        }
        if !is_value {
            let (angles, half) =
                (&self.angles[position * self.ways.turned..], self.ways.turned / 2);
            for i in 0..half {
                let (cosine, sine) = (f64::from(angles[i]), f64::from(angles[i + half]));
                (x[i], x[i + half]) =
                    (x[i] * cosine - x[i + half] * sine, x[i + half] * cosine + x[i] * sine);
            }
        }
        x
    }
}
