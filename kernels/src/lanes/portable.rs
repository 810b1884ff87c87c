//! Sixteen lanes in plain Rust: the copy for any processor.
use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Self(out)
    }
}

impl Lanes for Portable {
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 floats.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> [Self; 2] {
        // SAFETY: the caller vouches for 32 values.
        let pairs = unsafe { from.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let half = |i: usize| Self(pairs.map(|pair| f32::from_bits(u32::from(pair[i]) << 16)));
        [half(0), half(1)]
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for 16 places.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn where_at_least(self, key: Self, bound: Self) -> Self {
        let mut out = self.0;
        for ((x, key), bound) in out.iter_mut().zip(key.0).zip(bound.0) {
            *x = if key >= bound { *x } else { 0.0 };
        }
        Self(out)
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        // Fused, so that all instruction sets give the same bits.
        let mut out = self.0;
        for ((a, by), plus) in out.iter_mut().zip(by.0).zip(plus.0) {
            *a = a.mul_add(by, plus);
        }
        Self(out)
    }

    #[inline(always)]
    fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 rounds to even; exact below 2^22, and exp2 stays below 2^10.
        const MAGIC: f32 = 12_582_912.0;
        Self(self.0.map(|x| (x + MAGIC) - MAGIC))
    }

    #[inline(always)]
    fn times_power_of_two(self, n: Self) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "n is whole and its biased exponent is 1..=254, or the lane is masked off"
        )]
        self.zip(n, |x, n| x * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        let mut out = other.0;
        for (i, (to, from)) in out.iter_mut().zip(self.0).enumerate() {
            if i < n {
                *to = from;
            }
        }
        Self(out)
    }
}
