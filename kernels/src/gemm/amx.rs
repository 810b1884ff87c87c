//! Block kernels for AMX: weights are the right-hand tiles, tokens the rows of the left-hand ones.
//!
//! Inline assembly because the intrinsics are not stable. Each call configures the tiles for its
//! number of tokens and releases them, so no thread keeps tile state. An output is summed by one
//! accumulator tile over the whole inner length, whatever the number of tokens.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) use super::portable::block;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use x86::block;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use std::arch::asm;
    use std::mem::offset_of;

    use super::super::{Block, LANES};

    /// Tokens of one tile.
    const ROWS: usize = 16;
    /// Bytes of a full tile, which is also one step of one panel.
    const TILE: usize = 1024;
    /// Bytes of a tile's row.
    const LINE: usize = 64;
    /// Bytes from the line in use to the line being fetched, per stream.
    const AHEAD: usize = 2 * TILE;
    /// Steps of an inner block: two panels of it are 16 KiB, a third of L1.
    const INNER_STEPS: usize = 8;
    /// As [`AHEAD`], for inner blocks: the next one, by the time this one is used up.
    const INNER_AHEAD: usize = INNER_STEPS * TILE;

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        line_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl TileConfig {
        /// Full lines in all eight tiles, with these numbers of rows.
        fn new(rows: [usize; 8]) -> Self {
            let mut config = Self {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                line_bytes: [0; 16],
                rows: [0; 16],
            };
            for (tile, rows) in rows.into_iter().enumerate() {
                config.line_bytes[tile] = LINE as u16;
                config.rows[tile] = rows as u8;
            }
            config
        }
    }

    /// # Safety
    /// As [`super::super::fma::multiply`], with bf16 storage and packed bf16 tiles, in a process
    /// that may use tiles; `sums` has room for four panels of 16 tokens or two of more.
    pub(in crate::gemm) unsafe fn block(block: &Block, sums: *mut f32) {
        let tiles = block.tokens.div_ceil(ROWS);
        // SAFETY: the caller's promise; the last tiles and their sums stand behind the pairs'.
        unsafe {
            if tiles == 1 {
                return few(block, sums);
            }
            let stride = tiles * ROWS * LANES;
            let last = if tiles % 2 == 1 { 3 } else { 0 };
            let pairs = (tiles - last) / 2;
            if pairs > 0 {
                bulk(block, pairs, sums, stride);
            }
            if last > 0 {
                let acts = block.acts.add(pairs * 2 * block.steps * TILE);
                three(block, acts, sums.add(pairs * 2 * ROWS * LANES), stride);
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
    /// As [`block`].
    unsafe fn few(block: &Block, sums: *mut f32) {
        let tokens = block.tokens;
        let config = TileConfig::new([tokens, tokens, tokens, tokens, tokens, 16, 16, 16]);
        let index = |index: usize| if index < block.count { index } else { 0 };
        let panel = |i: usize| block.panels[index(i)];
        // SAFETY: a panel's sums, inside the caller's.
        let out = |i: usize| unsafe { sums.add(index(i) * tokens * LANES) };
        // SAFETY: every step reads one tile of each panel and of the tokens, all inside the
        // operands; the stores write `tokens` lines per panel into `sums`.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
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
                "tilerelease",
                config = in(reg) &raw const config,
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

    /// Three full tiles of tokens against two panels in one pass.
    ///
    /// # Safety
    /// As [`block`], for these tokens; `stride` floats lie between the panels' sums.
    unsafe fn three(block: &Block, acts: *const u8, sums: *mut f32, stride: usize) {
        let config = TileConfig::new([ROWS; 8]);
        let second = usize::from(block.count > 1);
        // SAFETY: every step reads one tile of each panel and of each tile of tokens, which stand
        // one behind the other; the stores write 48 lines per panel into `sums`.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "2:",
                fetch!("w0"),
                "tileloadd tmm7, [{w0} + {line}]",
                "tileloadd tmm6, [{a0} + {line}]",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tileloadd tmm6, [{a1} + {line}]",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tileloadd tmm6, [{a2} + {line}]",
                "tdpbf16ps tmm2, tmm6, tmm7",
                fetch!("w1"),
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
                "tilestored [{s1} + {line}], tmm3",
                "tilestored [{s1} + {line} + 1024], tmm4",
                "tilestored [{s1} + {line} + 2048], tmm5",
                "tilestored [{s0} + {line}], tmm0",
                "tilestored [{s0} + {line} + 1024], tmm1",
                "tilestored [{s0} + {line} + 2048], tmm2",
                "tilerelease",
                config = in(reg) &raw const config,
                a0 = inout(reg) acts => _,
                a1 = inout(reg) acts.add(block.steps * TILE) => _,
                a2 = inout(reg) acts.add(2 * block.steps * TILE) => _,
                w0 = inout(reg) block.panels[0] => _,
                w1 = inout(reg) block.panels[second] => _,
                s0 = in(reg) sums,
                s1 = in(reg) sums.add(second * stride),
                steps = inout(reg) block.steps => _,
                line = in(reg) LINE,
                ahead = const AHEAD,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Whole pairs of token tiles, against inner blocks of two panels that stay in L1 while the
    /// pairs pass. Sums rest in memory between inner blocks, which changes no bit.
    ///
    /// # Safety
    /// As [`three`].
    unsafe fn bulk(block: &Block, pairs: usize, sums: *mut f32, stride: usize) {
        let second = usize::from(block.count > 1);
        // A single pair leaves nothing to be kept in L1.
        let (inner_steps, ahead) =
            if pairs == 1 { (block.steps, AHEAD) } else { (INNER_STEPS, INNER_AHEAD) };
        for start in (0..block.steps).step_by(inner_steps) {
            let steps = inner_steps.min(block.steps - start);
            let mut inner = Inner {
                config: TileConfig::new([ROWS; 8]),
                steps,
                pairs,
                // Weights come in as fast as they are used up.
                fetch_lines: (TILE / LINE).div_ceil(pairs),
                next_pair: (2 * block.steps - steps) * TILE,
                weight_bytes: steps * TILE,
                first: usize::from(start == 0),
            };
            // SAFETY: these steps of the panels and of all pairs lie inside the operands.
            unsafe {
                let panels = [0, second].map(|i| block.panels[i].add(start * TILE));
                let acts = block.acts.add(start * TILE);
                let acts = [acts, acts.add(block.steps * TILE)];
                inner.run(panels, acts, [sums, sums.add(second * stride)], ahead);
            }
        }
    }

    /// What the assembly of one inner block reads from memory.
    #[repr(C)]
    struct Inner {
        config: TileConfig,
        steps: usize,
        pairs: usize,
        fetch_lines: usize,
        /// From the end of one pair's inner block to the beginning of the next pair's.
        next_pair: usize,
        weight_bytes: usize,
        /// 1 when there are no sums yet.
        first: usize,
    }

    impl Inner {
        /// # Safety
        /// Panels, tokens and sums of all steps and pairs must be readable, the sums writable.
        #[expect(clippy::too_many_lines, reason = "one loop in one block of assembly")]
        unsafe fn run(
            &mut self,
            panels: [*const u8; 2],
            acts: [*const u8; 2],
            sums: [*mut f32; 2],
            ahead: usize,
        ) {
            // SAFETY: the caller's promise; prefetches do not fault.
            unsafe {
                asm!(
                    "ldtilecfg [{inner}]",
                    "5:",
                    "cmp qword ptr [{inner} + {first}], 0",
                    "jne 6f",
                    "tileloadd tmm0, [{s0} + {line}]",
                    "tileloadd tmm1, [{s1} + {line}]",
                    "tileloadd tmm2, [{s0} + {line} + 1024]",
                    "tileloadd tmm3, [{s1} + {line} + 1024]",
                    "jmp 7f",
                    "6:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "7:",
                    "mov {steps}, [{inner} + {steps_at}]",
                    "2:",
                    "tileloadd tmm4, [{a0} + {line}]",
                    "tileloadd tmm6, [{w0} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w1} + {line}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a1} + {line}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "mov {count}, [{inner} + {lines_at}]",
                    "3:",
                    "prefetcht1 [{f0}]",
                    "prefetcht1 [{f1}]",
                    "add {f0}, 64",
                    "add {f1}, 64",
                    "dec {count}",
                    "jnz 3b",
                    "add {w0}, 1024",
                    "add {w1}, 1024",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{s1} + {line}], tmm1",
                    "tilestored [{s1} + {line} + 1024], tmm3",
                    "tilestored [{s0} + {line}], tmm0",
                    "tilestored [{s0} + {line} + 1024], tmm2",
                    "add {s0}, 2048",
                    "add {s1}, 2048",
                    "sub {w0}, [{inner} + {weights_at}]",
                    "sub {w1}, [{inner} + {weights_at}]",
                    "add {a0}, [{inner} + {next_at}]",
                    "add {a1}, [{inner} + {next_at}]",
                    "dec qword ptr [{inner} + {pairs_at}]",
                    "jnz 5b",
                    "tilerelease",
                    inner = in(reg) &raw mut *self,
                    a0 = inout(reg) acts[0] => _,
                    a1 = inout(reg) acts[1] => _,
                    w0 = inout(reg) panels[0] => _,
                    w1 = inout(reg) panels[1] => _,
                    s0 = inout(reg) sums[0] => _,
                    s1 = inout(reg) sums[1] => _,
                    f0 = inout(reg) panels[0].wrapping_add(ahead) => _,
                    f1 = inout(reg) panels[1].wrapping_add(ahead) => _,
                    line = in(reg) LINE,
                    steps = out(reg) _,
                    count = out(reg) _,
                    first = const offset_of!(Inner, first),
                    steps_at = const offset_of!(Inner, steps),
                    lines_at = const offset_of!(Inner, fetch_lines),
                    weights_at = const offset_of!(Inner, weight_bytes),
                    next_at = const offset_of!(Inner, next_pair),
                    pairs_at = const offset_of!(Inner, pairs),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
