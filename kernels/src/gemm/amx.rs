//! Block kernels for AMX: weights are the right-hand tiles, tokens the rows of the left-hand ones.
//!
//! Inline assembly because the intrinsics are not stable. Each product configures the tiles for its
//! number of tokens and releases them, so no thread keeps tile state. An output is summed by one
//! accumulator tile over the whole inner length, whatever the number of tokens.

use std::arch::asm;

use super::order::Ahead;
use super::{Block, LANES, STEPS_AT_ONCE};
use crate::tiles::{self, LINE, ROWS};

/// Bytes of a full tile, which is also one step of one panel.
const TILE: usize = 1024;
/// Bytes from the line in use to the line being fetched, per stream, for up to 16 tokens.
const AHEAD: usize = 2 * TILE;
/// The same for more tokens where nothing was fetched before, in two stages: a few lines wake the
/// stream into L2 well ahead, and every line is in L1 one step before its use. All lines from
/// memory to L1 at once would hold the fill buffers that tokens need on their way from L2.
const NEAR: usize = TILE;
const FAR: usize = 3 * TILE;

/// Tiles for the blocks of one product.
pub(super) struct Tiles {
    _configured: tiles::Tiles,
}

impl Tiles {
    /// For blocks of `tokens` tokens, or of whole tiles of them.
    ///
    /// # Safety
    /// The process may use tiles, and nothing on this thread does.
    pub(super) unsafe fn configure(tokens: usize) -> Self {
        let tokens = tokens.min(ROWS) as u8;
        // Tokens and sums stand in the first five, weights pass through the last three.
        let mut rows = [ROWS as u8; 8];
        rows[..5].fill(tokens);
        // SAFETY: the caller's promise.
        Self { _configured: unsafe { tiles::Tiles::configure(rows) } }
    }

    /// # Safety
    /// `block` has bf16 panels and packed bf16 tiles of its number of steps, of as many tokens as
    /// were configured, and `sums` has room for the tokens of its panels.
    pub(super) unsafe fn multiply(&self, block: &Block, sums: *mut f32, meanwhile: impl FnMut()) {
        // SAFETY: the caller's promise, and tiles are configured while `self` lives.
        unsafe {
            match block.tokens.div_ceil(ROWS) {
                1 => few(block, sums),
                2 => Pass::<2>::new(block, sums).run(block.steps, meanwhile),
                3 => Pass::<3>::new(block, sums).run(block.steps, meanwhile),
                tiles => unreachable!("{tiles} tiles in a block"),
            }
        }
    }
}

/// Starts fetching the 16 lines of a stream's tile [`AHEAD`] bytes on.
macro_rules! fetch {
    ($stream:literal) => {
        fetch!($stream, 0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960)
    };
    ($stream:literal, $($line:literal)+) => {
        concat!($("prefetcht0 [{", $stream, "} + {ahead} + ", $line, "]\n"),+)
    };
}

/// Up to 16 tokens: four streams of weights, one tile of tokens. Missing panels repeat the first
/// one's work.
///
/// # Safety
/// As [`Tiles::multiply`].
unsafe fn few(block: &Block, sums: *mut f32) {
    let tokens = block.tokens;
    let index = |index: usize| if index < block.count { index } else { 0 };
    let panel = |i: usize| block.panels[index(i)];
    // SAFETY: a panel's sums, inside the caller's.
    let out = |i: usize| unsafe { sums.add(index(i) * tokens * LANES) };
    // SAFETY: every step reads one tile of each panel and of the tokens, all inside the
    // operands; the stores write `tokens` lines per panel into `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{acts} + {line}]",
            fetch!("w0"),
            "tileloadd tmm5, [{w0} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            fetch!("w1"),
            "tileloadd tmm6, [{w1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            fetch!("w2"),
            "tileloadd tmm7, [{w2} + {line}]",
            "tdpbf16ps tmm2, tmm4, tmm7",
            fetch!("w3"),
            "tileloadd tmm5, [{w3} + {line}]",
            "tdpbf16ps tmm3, tmm4, tmm5",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "add {w2}, 1024",
            "add {w3}, 1024",
            "add {acts}, {size}",
            "dec {steps}",
            "jnz 2b",
            // In this order a repeated panel stores the same sums again.
            "mov {w1}, [{out} + 8]",
            "mov {w2}, [{out} + 16]",
            "mov {w3}, [{out} + 24]",
            "mov {w0}, [{out}]",
            "tilestored [{w3} + {line}], tmm3",
            "tilestored [{w2} + {line}], tmm2",
            "tilestored [{w1} + {line}], tmm1",
            "tilestored [{w0} + {line}], tmm0",
            acts = inout(reg) block.acts => _,
            w0 = inout(reg) panel(0) => _,
            w1 = inout(reg) panel(1) => _,
            w2 = inout(reg) panel(2) => _,
            w3 = inout(reg) panel(3) => _,
            out = in(reg) [out(0), out(1), out(2), out(3)].as_ptr(),
            steps = inout(reg) block.steps => _,
            size = in(reg) tokens * LINE,
            line = in(reg) LINE,
            ahead = const AHEAD,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Starts fetching a stream for its next steps.
macro_rules! fetch_stages {
    ($stream:literal) => {
        concat!(
            fetch_stages!($stream, "prefetcht1", "far", 0 256 512 768),
            fetch_stages!($stream, "prefetcht0", "near",
                0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960)
        )
    };
    ($stream:literal, $hint:literal, $ahead:literal, $($line:literal)+) => {
        concat!($($hint, " [{", $stream, "} + {", $ahead, "} + ", $line, "]\n"),+)
    };
}

/// A step's fetches: of the panels that come next into L2, or of the next steps of these.
macro_rules! fetch_step {
    () => {
        concat!(
            "mov {left}, {lines}\n",
            "test {left}, {left}\n",
            "jz 4f\n",
            "3:\n",
            "prefetcht1 [{n0}]\n",
            "prefetcht1 [{n1}]\n",
            "add {n0}, 64\n",
            "add {n1}, 64\n",
            "dec {left}\n",
            "jnz 3b\n",
            "jmp 5f\n",
            "4:\n",
            fetch_stages!("w0"),
            fetch_stages!("w1"),
            "5:\n",
        )
    };
}

/// `TILES` full tiles of tokens against two panels, a few steps at a time.
///
/// The tiles hold the sums from one piece of assembly to the next: no other code uses tiles.
struct Pass<const TILES: usize> {
    acts: [*const u8; TILES],
    panels: [*const u8; 2],
    sums: [*mut f32; 2],
    ahead: Ahead,
}

impl<const TILES: usize> Pass<TILES> {
    /// # Safety
    /// As [`Tiles::multiply`], for that many tiles of tokens.
    unsafe fn new(block: &Block, sums: *mut f32) -> Self {
        let second = usize::from(block.count > 1);
        let stride = second * TILES * ROWS * LANES;
        Self {
            acts: std::array::from_fn(|i| block.acts.wrapping_add(i * block.steps * TILE)),
            panels: [block.panels[0], block.panels[second]],
            sums: [sums, sums.wrapping_add(stride)],
            ahead: block.ahead,
        }
    }

    /// On to later steps.
    fn advance(&mut self, steps: usize) {
        self.acts = self.acts.map(|acts| acts.wrapping_add(steps * TILE));
        self.panels = self.panels.map(|panel| panel.wrapping_add(steps * TILE));
        let fetched = steps * self.ahead.lines * LINE;
        self.ahead.panels = self.ahead.panels.map(|panel| panel.wrapping_add(fetched));
    }
}

/// The whole inner length, for as many tiles as there is an implementation.
macro_rules! run_pass {
    ($tiles:literal) => {
        impl Pass<$tiles> {
            /// # Safety
            /// Made for this number of steps, which is not 0; tiles are configured.
            unsafe fn run(mut self, steps: usize, mut meanwhile: impl FnMut()) {
                // SAFETY: the caller's promise; the tiles are zeroed first.
                unsafe {
                    zero();
                    for first in (0..steps).step_by(STEPS_AT_ONCE) {
                        let count = STEPS_AT_ONCE.min(steps - first);
                        self.multiply(count);
                        self.advance(count);
                        meanwhile();
                    }
                    self.store();
                }
            }
        }
    };
}

run_pass!(2);
run_pass!(3);

/// # Safety
/// Tiles are configured.
unsafe fn zero() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

impl Pass<2> {
    /// Adds `steps` steps to the sums, in tiles 0 and 2 for one panel and 1 and 3 for the other.
    ///
    /// # Safety
    /// That many steps are left, not 0.
    unsafe fn multiply(&self, steps: usize) {
        // SAFETY: as in `Pass::<3>::multiply`.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{a0} + {line}]",
                "tileloadd tmm6, [{w0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch_step!(),
                "tileloadd tmm7, [{w1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {line}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {w0}, 1024",
                "add {w1}, 1024",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}], tmm5",
                a0 = inout(reg) self.acts[0] => _,
                a1 = inout(reg) self.acts[1] => _,
                w0 = inout(reg) self.panels[0] => _,
                w1 = inout(reg) self.panels[1] => _,
                sums = in(reg) self.sums[0],
                steps = inout(reg) steps => _,
                n0 = inout(reg) self.ahead.panels[0] => _,
                n1 = inout(reg) self.ahead.panels[1] => _,
                lines = in(reg) self.ahead.lines,
                left = out(reg) _,
                line = in(reg) LINE,
                near = const NEAR,
                far = const FAR,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Stores the sums.
    ///
    /// # Safety
    /// `multiply` has added all steps.
    unsafe fn store(self) {
        // SAFETY: writes 32 lines per panel into the sums.
        unsafe {
            asm!(
                "tilestored [{s1} + {line}], tmm1",
                "tilestored [{s1} + {line} + 1024], tmm3",
                "tilestored [{s0} + {line}], tmm0",
                "tilestored [{s0} + {line} + 1024], tmm2",
                s0 = in(reg) self.sums[0],
                s1 = in(reg) self.sums[1],
                line = in(reg) LINE,
                options(nostack),
            );
        }
    }
}

impl Pass<3> {
    /// Adds `steps` steps to the sums, in tiles 0 to 2 for one panel and 3 to 5 for the other.
    ///
    /// # Safety
    /// That many steps are left, not 0.
    unsafe fn multiply(&self, steps: usize) {
        // SAFETY: every step reads one tile of each panel and of each tile of tokens, which are
        // there by the caller's promise; prefetches do not fault. What the store writes is
        // overwritten by `store`: it is there because a core puts its tile stores to sleep half
        // a microsecond after the last one, and waking them takes a quarter.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm7, [{w0} + {line}]",
                "tileloadd tmm6, [{a0} + {line}]",
                "tdpbf16ps tmm0, tmm6, tmm7",
                fetch_step!(),
                "tileloadd tmm6, [{a1} + {line}]",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tileloadd tmm6, [{a2} + {line}]",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tileloadd tmm7, [{w1} + {line}]",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "tileloadd tmm6, [{a0} + {line}]",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "tileloadd tmm6, [{a1} + {line}]",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "add {w0}, 1024",
                "add {w1}, 1024",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {a2}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}], tmm6",
                a0 = inout(reg) self.acts[0] => _,
                a1 = inout(reg) self.acts[1] => _,
                a2 = inout(reg) self.acts[2] => _,
                w0 = inout(reg) self.panels[0] => _,
                w1 = inout(reg) self.panels[1] => _,
                sums = in(reg) self.sums[0],
                steps = inout(reg) steps => _,
                n0 = inout(reg) self.ahead.panels[0] => _,
                n1 = inout(reg) self.ahead.panels[1] => _,
                lines = in(reg) self.ahead.lines,
                left = out(reg) _,
                line = in(reg) LINE,
                near = const NEAR,
                far = const FAR,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Stores the sums.
    ///
    /// # Safety
    /// `multiply` has added all steps.
    unsafe fn store(self) {
        // SAFETY: writes 48 lines per panel into the sums.
        unsafe {
            asm!(
                "tilestored [{s1} + {line}], tmm3",
                "tilestored [{s1} + {line} + 1024], tmm4",
                "tilestored [{s1} + {line} + 2048], tmm5",
                "tilestored [{s0} + {line}], tmm0",
                "tilestored [{s0} + {line} + 1024], tmm1",
                "tilestored [{s0} + {line} + 2048], tmm2",
                s0 = in(reg) self.sums[0],
                s1 = in(reg) self.sums[1],
                line = in(reg) LINE,
                options(nostack),
            );
        }
    }
}
