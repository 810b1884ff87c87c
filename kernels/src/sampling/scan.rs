//! Passes over a vocabulary: the largest logits, weights, their sums, and the place of a draw.

use crate::lanes::{self, LANES, Lanes};

/// Logits that share one maximum when looking for the largest.
const CHUNK: usize = 8 * LANES;

/// Weights below this power of two are zero, banned tokens among them.
const NEGLIGIBLE: f32 = -100.0;

/// Reused buffers of the searches.
#[derive(Default)]
pub(super) struct Buffers {
    /// Largest logit of each chunk.
    maxima: Vec<f32>,
    /// The same, reordered by a selection.
    selected: Vec<f32>,
    found: Vec<(u32, f32)>,
}

impl Buffers {
    /// The lowest id with the largest logit. (0, -inf) when no logit is a number.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    pub(super) unsafe fn best<L: Lanes>(&mut self, logits: &[f32]) -> (u32, f32) {
        // SAFETY: the caller's promise.
        unsafe { self.find_maxima::<L>(logits) };
        let mut max = f32::NEG_INFINITY;
        let mut at = 0;
        for (i, &x) in self.maxima.iter().enumerate() {
            if x > max {
                (max, at) = (x, i);
            }
        }
        let from = at * CHUNK;
        let inside = logits[from..].iter().position(|&x| x == max).unwrap_or(0);
        (id(if max == f32::NEG_INFINITY { 0 } else { from + inside }), max)
    }

    /// The `count` largest logits with their ids, best first, lower ids first among equals.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    pub(super) unsafe fn largest<L: Lanes>(
        &mut self,
        logits: &[f32],
        count: usize,
    ) -> &[(u32, f32)] {
        self.found.clear();
        if count == 0 {
            return &self.found;
        }
        // SAFETY: the caller's promise.
        unsafe { self.find_maxima::<L>(logits) };
        // At least `count` logits reach the count-th largest maximum, so nothing below it is needed.
        let mut bound = f32::NEG_INFINITY;
        if count < self.maxima.len() {
            self.selected.clone_from(&self.maxima);
            bound = *self.selected.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
        }
        for (i, chunk) in logits.chunks(CHUNK).enumerate() {
            if self.maxima[i] >= bound {
                let reaching = chunk.iter().enumerate().filter(|&(_, &x)| x >= bound);
                self.found.extend(reaching.map(|(j, &x)| (id(i * CHUNK + j), x)));
            }
        }
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if count < self.found.len() {
            self.found.select_nth_unstable_by(count - 1, order);
            self.found.truncate(count);
        }
        self.found.sort_unstable_by(order);
        &self.found
    }

    #[inline(always)]
    unsafe fn find_maxima<L: Lanes>(&mut self, logits: &[f32]) {
        self.maxima.clear();
        for chunk in logits.chunks(CHUNK) {
            // SAFETY: the caller's promise.
            unsafe {
                let mut max = L::splat(f32::NEG_INFINITY);
                for part in chunk.chunks(LANES) {
                    max = lanes::load_or::<L>(part, f32::NEG_INFINITY).max(max);
                }
                self.maxima.push(max.largest());
            }
        }
    }
}

fn id(at: usize) -> u32 {
    u32::try_from(at).unwrap_or_else(|_| panic!("a vocabulary of more than 2^32 tokens"))
}

/// `ln(sum of e^logit)`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn log_sum_exp<L: Lanes>(logits: &[f32]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut largest = L::splat(f32::NEG_INFINITY);
        for part in logits.chunks(LANES) {
            largest = lanes::load_or::<L>(part, f32::NEG_INFINITY).max(largest);
        }
        let max = largest.largest();
        let (max_lanes, log2_e) = (L::splat(max), L::splat(std::f32::consts::LOG2_E));
        let mut sum = L::splat(0.0);
        for part in logits.chunks(LANES) {
            let power = lanes::load_or::<L>(part, f32::NEG_INFINITY).sub(max_lanes).mul(log2_e);
            sum = sum.add(power.exp2());
        }
        max + sum.sum().ln()
    }
}

/// `weights = 2^((logit - max) * scale)`, zero for logits below `lowest` and where it is negligible.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn weights<L: Lanes>(
    logits: &[f32],
    (max, scale, lowest): (f32, f32, f32),
    weights: &mut [f32],
) {
    let lowest = lowest.max(max + NEGLIGIBLE / scale);
    for (part, weights) in logits.chunks(LANES).zip(weights.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        let power = unsafe {
            let logit = lanes::load_or::<L>(part, f32::NEG_INFINITY);
            logit.sub(L::splat(max)).mul(L::splat(scale)).exp2().array()
        };
        for ((weight, power), &logit) in weights.iter_mut().zip(power).zip(part) {
            *weight = if logit >= lowest { power } else { 0.0 };
        }
    }
}

/// The sum of the weights that are at least `cut`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn mass_from<L: Lanes>(weights: &[f32], cut: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let cut = L::splat(cut);
        let mut sums = [L::splat(0.0); 4];
        for wide in weights.chunks(4 * LANES) {
            for (sum, part) in sums.iter_mut().zip(wide.chunks(LANES)) {
                *sum = sum.add(lanes::load_or::<L>(part, 0.0).zero_below(cut));
            }
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

/// The largest cut, at least `lowest`, that leaves a mass of `wanted`; found by bisection over the ordered bits of
/// weights in [0, 1].
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn nucleus<L: Lanes>(weights: &[f32], lowest: f32, wanted: f32) -> f32 {
    let (mut low, mut high) = (lowest.to_bits(), 1_f32.to_bits() + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        // SAFETY: the caller's promise.
        if unsafe { mass_from::<L>(weights, f32::from_bits(middle)) } >= wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    f32::from_bits(low)
}

/// The token at `fraction` of the way through the mass of weights from `cut` on, in order of id.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn at_fraction<L: Lanes>(
    weights: &[f32],
    cut: f32,
    fraction: f64,
) -> Option<u32> {
    let mass = |chunk: &[f32]| {
        // SAFETY: the caller's promise.
        f64::from(unsafe { mass_from::<L>(chunk, cut) })
    };
    let total: f64 = weights.chunks(CHUNK).map(mass).sum();
    let mut left = total * fraction;
    let mut last = None;
    for (i, chunk) in weights.chunks(CHUNK).enumerate() {
        let here = mass(chunk);
        if here == 0.0 {
            continue;
        }
        // Rounding may leave a little at the end of a chunk: then its last token is the one.
        let mut kept = chunk.iter().enumerate().filter(|&(_, &x)| x > 0.0 && x >= cut);
        if left >= here {
            left -= here;
            last = kept.next_back().map(|(j, _)| id(i * CHUNK + j));
            continue;
        }
        for (j, &weight) in kept {
            last = Some(id(i * CHUNK + j));
            left -= f64::from(weight);
            if left < 0.0 {
                return last;
            }
        }
        return last;
    }
    last
}
