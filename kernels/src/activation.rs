//! What stands between gate/up and down of an expert.

use crate::lanes::Lanes;

/// The elementwise function of an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `(up + 1) * gate * sigmoid(alpha * gate)`, with gate at most `limit` and up within
    /// `±limit` (gpt-oss).
    ClampedSwish { alpha: f32, limit: f32 },
}

impl Activation {
    /// Sixteen elements at once.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    pub(crate) unsafe fn apply<L: Lanes>(self, gate: L, up: L) -> L {
        // SAFETY: the caller vouches for the instruction set.
        let splat = |x| unsafe { L::splat(x) };
        match self {
            Self::Silu => swish(gate, splat(1.0), splat).mul(up),
            Self::ClampedSwish { alpha, limit } => {
                let at_most =
                    |x: L, limit: L| negate(negate(x, splat).max(negate(limit, splat)), splat);
                let gate = at_most(gate, splat(limit));
                let up = at_most(up.max(splat(-limit)), splat(limit));
                swish(gate, splat(alpha), splat).mul(up.add(splat(1.0)))
            }
        }
    }
}

/// `x * sigmoid(alpha * x)`.
#[inline(always)]
fn swish<L: Lanes>(x: L, alpha: L, splat: impl Fn(f32) -> L) -> L {
    // 2^126 is where exp2 ends; beyond it the quotient is below 1e-36 in any case.
    let power = x.mul(alpha).mul(splat(std::f32::consts::LOG2_E)).max(splat(-126.0));
    x.div(negate(power, &splat).exp2().add(splat(1.0)))
}

#[inline(always)]
fn negate<L: Lanes>(x: L, splat: impl Fn(f32) -> L) -> L {
    x.mul(splat(-1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::lanes::{Kernel, run};

    struct Apply(Activation, [f32; 16], [f32; 16]);

    impl Kernel for Apply {
        type Output = [f32; 16];

        #[inline(always)]
        unsafe fn run<L: Lanes>(self) -> [f32; 16] {
            // SAFETY: the caller vouches for the instruction set; both arrays have 16 floats.
            unsafe { self.0.apply(L::load(self.1.as_ptr()), L::load(self.2.as_ptr())).array() }
        }
    }

    #[test]
    fn both_functions_follow_their_formulas_with_the_same_bits_everywhere() {
        let ends = [0.0, -0.0, 100.0, -100.0, 1e30, -1e30, 88.0, -88.0];
        let gate: [f32; 16] =
            std::array::from_fn(|i| if i < 8 { ends[i] } else { i as f32 * 0.7 - 8.0 });
        let up: [f32; 16] = std::array::from_fn(|i| i as f32 * 0.9 - 7.0);
        for activation in [Activation::Silu, Activation::ClampedSwish { alpha: 1.702, limit: 7.0 }]
        {
            let expected = run(Isa::Portable, Apply(activation, gate, up));
            for (i, got) in expected.iter().enumerate() {
                let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
                let exact = match activation {
                    Activation::Silu => g / (1.0 + (-g).exp()) * u,
                    Activation::ClampedSwish { .. } => {
                        let g = g.min(7.0);
                        g / (1.0 + (-1.702 * g).exp()) * (u.clamp(-7.0, 7.0) + 1.0)
                    }
                };
                let error = (f64::from(*got) - exact).abs();
                assert!(error <= 1e-6 * exact.abs() + 1e-6, "{activation:?} of {g}, {u}: {got}");
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let got = run(isa, Apply(activation, gate, up));
                assert_eq!(got.map(f32::to_bits), expected.map(f32::to_bits), "{isa}");
            }
        }
    }
}
