//! The tiles of this thread, in use for as long as somebody holds them.

use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a full tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a full tile's row.
pub(crate) const LINE: usize = 64;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    line_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Configured tiles; dropping them gives the tile state back. Configuring waits for all work on tiles,
/// so it is done once for many products.
pub(crate) struct Tiles {
    /// Tiles belong to the thread.
    here: PhantomData<*const u8>,
}

impl Tiles {
    /// Eight tiles of full lines, of so many rows each.
    ///
    /// # Safety
    /// The process may use tiles, nothing on this thread does, and each number is from 1 to [`ROWS`].
    pub(crate) unsafe fn configure(rows: [u8; 8]) -> Self {
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            line_bytes: [0; 16],
            rows: [0; 16],
        };
        config.line_bytes[..8].fill(LINE as u16);
        config.rows[..8].copy_from_slice(&rows);
        // SAFETY: the caller's promise; the configuration is valid.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        Self { here: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles were configured, so the instruction is there.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
