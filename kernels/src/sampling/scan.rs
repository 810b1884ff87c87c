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
    /// Maxima reordered by a selection, weights of a nucleus, or masses of chunks.
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

    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    unsafe fn find_maxima<L: Lanes>(&mut self, logits: &[f32]) {
        self.maxima.clear();
        for chunk in logits.chunks(CHUNK) {
            // SAFETY: the caller's promise.
            self.maxima.push(unsafe { largest::<L>(chunk) });
        }
    }

    /// The largest cut, at least `lowest`, that leaves a mass of `share` of all that is above `lowest`; found by
    /// bisection over the ordered bits of weights in [0, 1].
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    pub(super) unsafe fn nucleus<L: Lanes>(
        &mut self,
        weights: &[f32],
        lowest: f32,
        share: f32,
    ) -> f32 {
        // SAFETY: the caller's promise.
        let total = unsafe { mass_from::<L>(weights, lowest) };
        let wanted = share * total;
        // All weights below this together are less than what may be left out.
        #[expect(clippy::cast_precision_loss, reason = "a bound, not a count")]
        let small = 0.5 * (total - wanted) / weights.len() as f32;
        let (mut low, mut high) = (lowest.max(small).to_bits(), 1_f32.to_bits() + 1);
        self.selected.clear();
        for chunk in weights.chunks(CHUNK) {
            // SAFETY: the caller's promise.
            if unsafe { largest::<L>(chunk) } >= f32::from_bits(low) {
                self.selected.extend(chunk.iter().filter(|&&x| x >= f32::from_bits(low)));
            }
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            // SAFETY: the caller's promise.
            let mass = unsafe { mass_from::<L>(&self.selected, f32::from_bits(middle)) };
            if mass >= wanted {
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
        &mut self,
        weights: &[f32],
        cut: f32,
        fraction: f64,
    ) -> Option<u32> {
        self.selected.clear();
        for chunk in weights.chunks(CHUNK) {
            // SAFETY: the caller's promise.
            self.selected.push(unsafe { mass_from::<L>(chunk, cut) });
        }
        let total: f64 = self.selected.iter().map(|&mass| f64::from(mass)).sum();
        let mut left = total * fraction;
        let mut last = None;
        for (i, (chunk, &mass)) in weights.chunks(CHUNK).zip(&self.selected).enumerate() {
            let mass = f64::from(mass);
            if left >= mass {
                left -= mass;
                // Kept for the end: rounding may leave a little behind the last token.
                last = if mass > 0.0 { Some(i) } else { last };
                continue;
            }
            return kept(chunk, cut, left).map(|j| id(i * CHUNK + j));
        }
        let i = last?;
        kept(&weights[i * CHUNK..], cut, f64::INFINITY).map(|j| id(i * CHUNK + j))
    }
}

/// The place in `chunk` where the mass of weights from `cut` on exceeds `left`, or the last such weight.
fn kept(chunk: &[f32], cut: f32, mut left: f64) -> Option<usize> {
    let mut last = None;
    for (j, &weight) in chunk.iter().take(CHUNK).enumerate() {
        if weight > 0.0 && weight >= cut {
            last = Some(j);
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// The largest of `x` that is a number.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn largest<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: the caller's promise; a chunk has 16 floats.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        let mut whole = x.chunks_exact(LANES);
        for part in &mut whole {
            max = L::load(part.as_ptr()).max(max);
        }
        lanes::load_or::<L>(whole.remainder(), f32::NEG_INFINITY).max(max).largest()
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
    // SAFETY: the caller's promise; a chunk has 16 floats.
    unsafe {
        let max = largest::<L>(logits);
        let (max_lanes, log2_e) = (L::splat(max), L::splat(std::f32::consts::LOG2_E));
        let mut sum = L::splat(0.0);
        let mut whole = logits.chunks_exact(LANES);
        for part in &mut whole {
            sum = sum.add(L::load(part.as_ptr()).sub(max_lanes).mul(log2_e).exp2());
        }
        let rest = whole.remainder();
        let power = lanes::load_or::<L>(rest, f32::NEG_INFINITY).sub(max_lanes).mul(log2_e);
        sum = sum.add(power.exp2().first(rest.len(), L::splat(0.0)));
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
    // SAFETY: the caller's promise; a chunk has 16 floats.
    unsafe {
        let (max, scale, lowest) = (L::splat(max), L::splat(scale), L::splat(lowest));
        let mut from = logits.chunks_exact(LANES);
        let mut to = weights.chunks_exact_mut(LANES);
        for (from, to) in (&mut from).zip(&mut to) {
            let logit = L::load(from.as_ptr());
            let weight = logit.sub(max).mul(scale).exp2().where_at_least(logit, lowest);
            weight.store(to.as_mut_ptr());
        }
        let logit = lanes::load_or::<L>(from.remainder(), f32::NEG_INFINITY);
        let weight = logit.sub(max).mul(scale).exp2().where_at_least(logit, lowest);
        let rest = to.into_remainder();
        rest.copy_from_slice(&weight.array()[..rest.len()]);
    }
}

/// The sum of the weights that are at least `cut`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn mass_from<L: Lanes>(weights: &[f32], cut: f32) -> f32 {
    // SAFETY: the caller's promise; a part has 16 floats.
    unsafe {
        let cut = L::splat(cut);
        let mut sums = [L::splat(0.0); 4];
        let mut whole = weights.chunks_exact(4 * LANES);
        for wide in &mut whole {
            for (sum, part) in sums.iter_mut().zip(wide.chunks_exact(LANES)) {
                let weight = L::load(part.as_ptr());
                *sum = sum.add(weight.where_at_least(weight, cut));
            }
        }
        for (sum, part) in sums.iter_mut().zip(whole.remainder().chunks(LANES)) {
            let weight = lanes::load_or::<L>(part, 0.0);
            *sum = sum.add(weight.where_at_least(weight, cut));
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}
