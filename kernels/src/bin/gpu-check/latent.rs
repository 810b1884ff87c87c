//! Filling the cache of compressed rows and attending to it, against f64, and the same sequences cut into other chunks
//! and batches.

use half::bf16;
use kernels::cuda::{
    Buffer, CudaError, Device, HeadsView, LatentAttention, LatentCache, LatentShape, LatentSteps,
    PagedRows, Turn,
};

use crate::check::Checks;
use crate::random::Random;
use crate::sequences::{Pass, Sequences, angles};

const EPSILON: f32 = 1e-6;
/// Of a head's query that does not turn, in front of what does.
const STILL: usize = 24;
const TURNED: usize = 64;
const SCALE: f32 = 0.08;

/// A model's ways, and the sequences it is tried with.
#[derive(Debug, Clone, Copy)]
struct Ways {
    heads: usize,
    rank: usize,
    /// Rank of compressed queries, or what lies in their place.
    queries: usize,
    compressed: bool,
    bias: bool,
    neighbours: bool,
    /// Positions of each sequence, and those of the last one that are only written at first.
    lengths: [usize; 3],
    written: usize,
}

pub(crate) fn check(device: &Device, checks: &mut Checks, seed: u64) -> Result<(), CudaError> {
    // Into a second stretch of the kernels, several positions a tile.
    let few = Ways {
        heads: 6,
        rank: 128,
        queries: 72,
        compressed: true,
        bias: true,
        neighbours: true,
        lengths: [1, 33, 1060],
        written: 1015,
    };
    // Several slices of the heads, a position a tile.
    let many = Ways {
        heads: 80,
        rank: 512,
        queries: 16,
        compressed: false,
        bias: false,
        neighbours: false,
        lengths: [1, 33, 70],
        written: 62,
    };
    for ways in [few, many] {
        let case = Case::random(ways, seed);
        let mut room = case.room(device)?;
        let Ways { heads, rank, written, lengths: [_, second, end], .. } = ways;
        let all = vec![(0, 0..1), (1, 0..second), (2, written..end)];
        let whole = case.run(device, &mut room, &[all])?;
        let name = format!("latent attention, {heads} heads over {rank}");
        let last = [written, (written + 9).min(end - 2), end - 1];
        let positions = [(0, 0), (1, 3), (1, 31), (1, 32)];
        for (sequence, position) in positions.into_iter().chain(last.map(|p| (2, p))) {
            let at = position - if sequence == 2 { written } else { 0 };
            let got = &whole.attended[sequence][at * heads * rank..][..heads * rank];
            let want = case.attended((sequence, position));
            checks.close(got, &want, 1e-2, &format!("{name}, position {position}"));
        }
        if ways.compressed {
            let want: Vec<f64> = (0..second).flat_map(|p| case.compressed((1, p))).collect();
            checks.close(&whole.queries[1], &want, 5e-3, &format!("{name}, compressed queries"));
        }
        room.attention = LatentAttention::new(device, case.shape, (100, end))?;
        let alone = case.run(device, &mut room, &[vec![(2, written..end)]])?;
        let same = alone.attended[2] == whole.attended[2];
        checks.expect(same, &format!("{name}: the same bits alone"));
        let mut passes = vec![
            vec![(2, written..end - 5), (1, 0..second - 1)],
            vec![(1, second - 1..second), (2, end - 5..end - 3)],
        ];
        passes.extend((end - 3..end).map(|p| vec![(2, p..p + 1)]));
        passes[3].insert(0, (0, 0..1));
        let cut = case.run(device, &mut room, &passes)?;
        checks.expect(cut == whole, &format!("{name}: the same bits cut and decoded"));
        let nothing = case.run(device, &mut room, &[vec![]])?;
        checks.expect(nothing.attended.concat().is_empty(), &format!("{name}: none at all"));
    }
    Ok(())
}

/// The kernels, and what they keep from batch to batch.
struct Room {
    attention: LatentAttention,
    cache: LatentCache,
    paged: PagedRows,
}

/// Of each sequence's positions that were in a batch.
#[derive(Debug, PartialEq)]
struct Outputs {
    /// `[positions, heads, rank]`.
    attended: Vec<Vec<bf16>>,
    /// Compressed queries, `[positions, queries]`.
    queries: Vec<Vec<bf16>>,
}

/// Some sequences, and all that is done to their rows.
struct Case {
    ways: Ways,
    shape: LatentShape,
    sequences: Sequences,
    /// Of each sequence: `[length, queries + rank + turned]`.
    projected: Vec<Vec<bf16>>,
    /// Of each sequence: `[length, heads, rank + turned]`, queries whose last part is still to be written.
    absorbed: Vec<Vec<bf16>>,
    /// Of each sequence: `[length, heads, still + turned]`.
    unturned: Vec<Vec<bf16>>,
    bias: Vec<f32>,
    norms: [Vec<bf16>; 2],
    angles: Vec<f32>,
}

impl Case {
    fn random(ways: Ways, seed: u64) -> Self {
        let mut random = Random(seed);
        let Ways { heads, rank, queries, lengths, .. } = ways;
        let shape = LatentShape { heads, rank, turned: TURNED, blocks: 50 };
        let width = queries + rank + TURNED;
        let sequences = Sequences::scattered(&mut random, &lengths, shape.blocks);
        let mut drawn =
            |width: usize| lengths.iter().map(|n| random.halves(n * width, 2.0)).collect();
        Self {
            ways,
            shape,
            sequences,
            projected: drawn(width),
            absorbed: drawn(heads * (rank + TURNED)),
            unturned: drawn(heads * (STILL + TURNED)),
            bias: random.floats(if ways.bias { width } else { 0 }, 0.5),
            norms: [queries, rank].map(|width| random.halves(width, 1.5)),
            angles: angles(lengths[2], TURNED),
        }
    }

    fn turn<'a>(&self, angles: &'a Buffer<f32>) -> Turn<'a> {
        Turn { angles, neighbours: self.ways.neighbours }
    }

    /// A cache with the positions of the long sequence that are only written.
    fn room(&self, device: &Device) -> Result<Room, CudaError> {
        let longest = self.ways.lengths[2];
        let mut room = Room {
            // So little memory that every batch takes several launches.
            attention: LatentAttention::new(device, self.shape, (1, longest))?,
            cache: LatentCache::new(device, self.shape)?,
            paged: PagedRows::new(device, longest, self.shape.blocks)?,
        };
        self.write(device, &mut room, &vec![(2, 0..self.ways.written)])?;
        Ok(room)
    }

    fn run(&self, device: &Device, room: &mut Room, passes: &[Pass]) -> Result<Outputs, CudaError> {
        let Ways { heads, rank, queries, .. } = self.ways;
        let none = || vec![Vec::new(); self.ways.lengths.len()];
        let mut outputs = Outputs { attended: none(), queries: none() };
        for pass in passes {
            let compressed = self.write(device, room, pass)?;
            let width = if self.ways.compressed { queries } else { 0 };
            self.sequences.sort(pass, width, &compressed, &mut outputs.queries);
            let query = self.query(device, room, pass)?;
            let Room { attention, cache, paged } = &mut *room;
            let mut out: Buffer<bf16> = device.alloc(paged.rows() * heads * rank)?;
            device.poison(&mut out)?;
            attention.attend(device, (paged, &query), SCALE, cache, &mut out)?;
            let out = device.download(&out)?;
            self.sequences.sort(pass, heads * rank, &out, &mut outputs.attended);
        }
        Ok(outputs)
    }

    /// Writes a batch's rows into the cache and returns their compressed queries.
    fn write(
        &self,
        device: &Device,
        Room { attention, cache, paged }: &mut Room,
        pass: &Pass,
    ) -> Result<Vec<bf16>, CudaError> {
        paged.set(device, self.shape.paging(), &self.sequences.spans(pass))?;
        let Ways { queries, compressed, .. } = self.ways;
        let width = queries + self.shape.width();
        let projected = device.upload(&self.sequences.gather(pass, width, &self.projected))?;
        let [query, key] = &self.norms;
        let (query_norm, bias) = (device.upload(query)?, device.upload(&self.bias)?);
        let steps = LatentSteps {
            bias: self.ways.bias.then_some(&bias),
            query_norm: compressed.then_some(&query_norm),
            key_norm: &device.upload(key)?,
            epsilon: EPSILON,
        };
        let rank = if compressed { queries } else { 0 };
        let mut out: Buffer<bf16> = device.alloc(paged.rows() * rank)?;
        device.poison(&mut out)?;
        let angles = device.upload(&self.angles)?;
        let steps = (steps, self.turn(&angles));
        attention.write(device, (paged, &projected), steps, &mut out, cache)?;
        device.download(&out)
    }

    /// A batch's queries, turned.
    fn query(
        &self,
        device: &Device,
        Room { attention, paged, .. }: &Room,
        pass: &Pass,
    ) -> Result<Buffer<bf16>, CudaError> {
        let (heads, width, head) = (self.ways.heads, self.shape.width(), STILL + TURNED);
        let mut absorbed = self.sequences.gather(pass, heads * width, &self.absorbed);
        for query in absorbed.chunks_exact_mut(width) {
            query[self.ways.rank..].fill(bf16::NAN);
        }
        let mut query = device.upload(&absorbed)?;
        let unturned = self.sequences.gather(pass, heads * head, &self.unturned);
        let view = HeadsView { first: STILL, row: heads * head, head };
        let (unturned, angles) = (device.upload(&unturned)?, device.upload(&self.angles)?);
        attention.turn(device, (paged, self.turn(&angles)), (&unturned, view), &mut query)?;
        Ok(query)
    }

    /// Attention of all heads of a position in f64.
    fn attended(&self, (sequence, position): (usize, usize)) -> Vec<f64> {
        let rows: Vec<Vec<f64>> = (0..=position).map(|p| self.row((sequence, p))).collect();
        let head = |head| self.head(&self.query_of((sequence, position), head), &rows);
        (0..self.ways.heads).flat_map(head).collect()
    }

    fn query_of(&self, (sequence, position): (usize, usize), head: usize) -> Vec<f64> {
        let width = self.shape.width();
        let at = position * self.ways.heads + head;
        let absorbed = &self.absorbed[sequence][at * width..][..self.ways.rank];
        let turned = &self.unturned[sequence][at * (STILL + TURNED) + STILL..][..TURNED];
        let turned = turned.iter().map(|x| x.to_f64()).collect();
        let absorbed = absorbed.iter().map(|x| x.to_f64());
        absorbed.chain(self.turned(position, turned)).collect()
    }

    fn head(&self, query: &[f64], rows: &[Vec<f64>]) -> Vec<f64> {
        let score = |row: &Vec<f64>| {
            query.iter().zip(row).map(|(a, b)| a * b).sum::<f64>() * f64::from(SCALE)
        };
        let scores: Vec<f64> = rows.iter().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; self.ways.rank];
        for (row, score) in rows.iter().zip(&scores) {
            let weight = (score - largest).exp() / sum;
            out.iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
        }
        out
    }

    /// A position's row of the cache.
    fn row(&self, at: (usize, usize)) -> Vec<f64> {
        let x = self.biased(at);
        let Ways { rank, queries, .. } = self.ways;
        let mut row = normed(&x[queries..queries + rank], &self.norms[1]);
        row.extend(self.turned(at.1, x[queries + rank..].to_vec()));
        row
    }

    /// A position's compressed query.
    fn compressed(&self, at: (usize, usize)) -> Vec<f64> {
        normed(&self.biased(at)[..self.ways.queries], &self.norms[0])
    }

    fn biased(&self, (sequence, position): (usize, usize)) -> Vec<f64> {
        let width = self.ways.queries + self.shape.width();
        let row = &self.projected[sequence][position * width..][..width];
        let bias = |i: usize| self.bias.get(i).map_or(0.0, |bias| f64::from(*bias));
        row.iter().enumerate().map(|(i, x)| x.to_f64() + bias(i)).collect()
    }

    fn turned(&self, position: usize, mut x: Vec<f64>) -> Vec<f64> {
        let half = TURNED / 2;
        for i in 0..half {
            let angles = &self.angles[position * TURNED..];
            let (cosine, sine) = (f64::from(angles[i]), f64::from(angles[i + half]));
            let (a, b) = if self.ways.neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
            (x[a], x[b]) = (x[a] * cosine - x[b] * sine, x[b] * cosine + x[a] * sine);
        }
        x
    }
}

fn normed(x: &[f64], weight: &[bf16]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w.to_f64()).collect()
}
