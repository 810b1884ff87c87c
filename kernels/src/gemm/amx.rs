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

    use super::super::{Block, LANES};

    /// Tokens of one tile.
    const ROWS: usize = 16;
    /// Bytes of a full tile, which is also one step of one panel.
    const TILE: usize = 1024;
    /// Bytes of a tile's row.
    const LINE: usize = 64;

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
    /// that may use tiles; `sums` has room for four panels of 16 tokens or two of 32.
    pub(in crate::gemm) unsafe fn block(block: &Block, sums: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { if block.tokens <= ROWS { few(block, sums) } else { many(block, sums) } }
    }

    /// Starts fetching the 16 lines of a stream's tile two steps ahead.
    macro_rules! fetch {
        ($stream:literal) => {
            fetch!($stream, 0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960)
        };
        ($stream:literal, $($line:literal)+) => {
            concat!($("prefetcht0 [{", $stream, "} + {ahead} + ", $line, "]\n"),+)
        };
    }

    /// Up to 16 tokens: four streams of weights, one tile of tokens. Missing panels repeat the first.
    ///
    /// # Safety
    /// As [`block`].
    unsafe fn few(block: &Block, sums: *mut f32) {
        let tokens = block.tokens;
        let config = TileConfig::new([tokens, tokens, tokens, tokens, tokens, 16, 16, 16]);
        let panel = |index: usize| block.panels[if index < block.count { index } else { 0 }];
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
                "tilestored [{sums} + {line}], tmm0",
                "add {sums}, {size}",
                "tilestored [{sums} + {line}], tmm1",
                "add {sums}, {size}",
                "tilestored [{sums} + {line}], tmm2",
                "add {sums}, {size}",
                "tilestored [{sums} + {line}], tmm3",
                "tilerelease",
                config = in(reg) &raw const config,
                acts = inout(reg) block.acts => _,
                w0 = inout(reg) panel(0) => _,
                w1 = inout(reg) panel(1) => _,
                w2 = inout(reg) panel(2) => _,
                w3 = inout(reg) panel(3) => _,
                sums = inout(reg) sums => _,
                steps = inout(reg) block.steps => _,
                size = in(reg) tokens * LINE,
                line = in(reg) LINE,
                ahead = const 2 * TILE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// 17 to 32 tokens: two panels, two tiles of tokens.
    ///
    /// # Safety
    /// As [`block`].
    unsafe fn many(block: &Block, sums: *mut f32) {
        let rest = block.tokens - ROWS;
        let config = TileConfig::new([ROWS, ROWS, rest, rest, ROWS, rest, 16, 16]);
        let second = block.panels[if block.count > 1 { 1 } else { 0 }];
        let panel_sums = block.tokens * LANES;
        // SAFETY: as in `few`; the second tile of tokens stands behind all steps of the first, and
        // its sums behind the 16 lines of the first.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {line}]",
                "tileloadd tmm6, [{w0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {line}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "mov {line}, {lines}",
                "test {line}, {line}",
                "jz 4f",
                "3:",
                "prefetcht1 [{f0}]",
                "prefetcht1 [{f1}]",
                "add {f0}, 64",
                "add {f1}, 64",
                "dec {line}",
                "jnz 3b",
                "4:",
                "mov {line:e}, 64",
                "add {w0}, 1024",
                "add {w1}, 1024",
                "add {a0}, 1024",
                "add {a1}, {size}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{s0} + {line}], tmm0",
                "tilestored [{s1} + {line}], tmm1",
                "tilestored [{s0} + {line} + 1024], tmm2",
                "tilestored [{s1} + {line} + 1024], tmm3",
                "tilerelease",
                config = in(reg) &raw const config,
                a0 = inout(reg) block.acts => _,
                a1 = inout(reg) block.acts.add(block.steps * TILE) => _,
                w0 = inout(reg) block.panels[0] => _,
                w1 = inout(reg) second => _,
                s0 = in(reg) sums,
                s1 = in(reg) sums.add(panel_sums),
                f0 = inout(reg) block.fetch.from[0] => _,
                f1 = inout(reg) block.fetch.from[1] => _,
                lines = in(reg) block.fetch.lines,
                steps = inout(reg) block.steps => _,
                size = in(reg) rest * LINE,
                line = inout(reg) LINE => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
