//! Which rows of a batch are which positions of which sequences, and where those lie in the paged cache.

use super::attention::KV_BLOCK;
use super::device::{Buffer, Device};
use super::error::{CudaError, require, size};
use super::pinned::Pinned;
use crate::Span;

/// A batch's map on the device, set anew for each batch in the same memory.
#[derive(Debug)]
pub struct PagedRows {
    rows_max: usize,
    blocks_max: usize,
    /// Of the caches that the rows are for.
    paging: Option<Paging>,
    rows: usize,
    longest: usize,
    decoded: Tiles,
    chunks: Tiles,
    staging: Pinned<u32>,
    /// Positions, tables, tiles and blocks, one after another.
    words: Buffer<u32>,
}

/// Tiles of one kind among the words: pairs of a first row and a number of rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tiles {
    /// The first pair's word.
    pub(super) at: usize,
    pub(super) count: usize,
    /// Most rows of one.
    pub(super) rows: usize,
    /// Most positions that a row of theirs sees.
    pub(super) longest: usize,
}

/// How batches are cut up for the kernels of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Blocks of 32 positions in the cache.
    pub(super) blocks: usize,
    /// Rows that a tile of a chunk has at most.
    pub(super) tile_rows: usize,
}

impl PagedRows {
    /// For batches of at most `rows` rows whose sequences have at most `blocks` blocks together.
    ///
    /// # Errors
    /// When device or host have no memory for it.
    pub fn new(device: &Device, rows: usize, blocks: usize) -> Result<Self, CudaError> {
        // A row has a position and a table, and may be a tile of two words.
        let words = 4 * rows + blocks;
        Ok(Self {
            rows_max: rows,
            blocks_max: blocks,
            paging: None,
            rows: 0,
            longest: 0,
            decoded: Tiles::default(),
            chunks: Tiles::default(),
            staging: Pinned::new(device, words)?,
            words: device.alloc(words)?,
        })
    }

    /// Takes the rows of `spans`, which follow one another from row 0 on, in caches of this `paging`.
    ///
    /// # Errors
    /// When they do not, name blocks that are not there or too few, or are more than there is room for.
    pub fn set(
        &mut self,
        device: &Device,
        paging: Paging,
        spans: &[Span<'_>],
    ) -> Result<(), CudaError> {
        let (rows, blocks) = self.check(paging, spans)?;
        (self.rows, self.paging) = (rows, Some(paging));
        let words = self.staging.values_mut()?;
        let (positions, rest) = words.split_at_mut(rows);
        let (tables, rest) = rest.split_at_mut(rows);
        let (tiles, rest) = rest.split_at_mut(2 * rows);
        let mut table = 0;
        for span in spans {
            for (position, row) in (span.first_position..).zip(span.rows.clone()) {
                positions[row] = size(position)?;
                tables[row] = size(table)?;
            }
            rest[table..table + span.blocks.len()].copy_from_slice(span.blocks);
            table += span.blocks.len();
        }
        let mut tiles = TileList { tiles, count: 0 };
        self.decoded = tiles.of(spans, |span| span.rows.len() == 1, 1)?;
        self.chunks = tiles.of(spans, |span| span.rows.len() > 1, paging.tile_rows)?;
        for kind in [&mut self.decoded, &mut self.chunks] {
            kind.at += 2 * rows;
        }
        self.longest = self.decoded.longest.max(self.chunks.longest);
        self.staging.send(device, 4 * rows + blocks, &mut self.words)
    }

    /// Rows of the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether its blocks are those of a cache of this paging.
    pub(super) fn is_for(&self, paging: Paging) -> bool {
        self.paging == Some(paging)
    }

    /// The most positions that a row sees.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Spans of one row, then the others.
    pub(super) fn tiles(&self) -> [Tiles; 2] {
        [self.decoded, self.chunks]
    }

    /// Addresses of positions, tables and blocks.
    pub(super) fn pointers(&self) -> [u64; 3] {
        [0, self.rows, 4 * self.rows].map(|word| self.word(word))
    }

    /// The address of a word.
    pub(super) fn word(&self, at: usize) -> u64 {
        self.words.pointer() + (at * size_of::<u32>()) as u64
    }

    /// Rows and blocks of all spans.
    fn check(&self, paging: Paging, spans: &[Span<'_>]) -> Result<(usize, usize), CudaError> {
        let (mut rows, mut blocks) = (0, 0);
        for span in spans {
            let end = span.first_position + span.rows.len();
            let follows = span.rows.start == rows && !span.rows.is_empty();
            let covered = span.blocks.len() * KV_BLOCK >= end;
            let inside = span.blocks.iter().all(|block| (*block as usize) < paging.blocks);
            require(follows && covered && inside, || {
                let (rows, count) = (&span.rows, span.blocks.len());
                format!("rows {rows:?} up to position {end} in {count} blocks of {}", paging.blocks)
            })?;
            rows = span.rows.end;
            blocks += span.blocks.len();
        }
        require(rows <= self.rows_max && blocks <= self.blocks_max, || {
            let (rows_max, blocks_max) = (self.rows_max, self.blocks_max);
            format!("{rows} rows in {blocks} blocks: there is room for {rows_max} in {blocks_max}")
        })?;
        Ok((rows, blocks))
    }
}

/// Tiles as they are written down.
struct TileList<'a> {
    tiles: &'a mut [u32],
    count: usize,
}

impl TileList<'_> {
    /// Cuts the chosen spans into tiles of at most `rows` rows.
    fn of(
        &mut self,
        spans: &[Span<'_>],
        chosen: impl Fn(&Span<'_>) -> bool,
        rows: usize,
    ) -> Result<Tiles, CudaError> {
        let mut tiles = Tiles { at: 2 * self.count, count: 0, rows, longest: 0 };
        for span in spans.iter().filter(|span| chosen(span)) {
            for first in span.rows.clone().step_by(rows) {
                let count = rows.min(span.rows.end - first);
                self.tiles[2 * self.count] = size(first)?;
                self.tiles[2 * self.count + 1] = size(count)?;
                self.count += 1;
                tiles.count += 1;
            }
            tiles.longest = tiles.longest.max(span.first_position + span.rows.len());
        }
        Ok(tiles)
    }
}
