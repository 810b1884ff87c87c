//! Packed weights side by side in huge pages, with the room of dropped ones used again.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::{HUGE_PAGE, Region};

/// Address space taken from the system at a time; only written pages become resident.
const CHUNK: usize = 64 << 20;
/// Blocks start on a small page boundary so that weight streams do.
const ALIGN: usize = 4096;

/// Hands out blocks of large chunks. Chunks live as long as the arena: a node that moves experts
/// reuses the room of those it dropped, because experts of one model have one size.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: Vec<Region>,
    /// Bytes used of the last chunk.
    used: usize,
    /// Dropped blocks by size, as (chunk, offset).
    free: BTreeMap<usize, Vec<(usize, usize)>>,
}

/// Owned bytes inside an arena; zeroed when first handed out, stale when reused.
#[derive(Debug)]
pub(crate) struct Block {
    arena: Arc<Arena>,
    start: NonNull<u8>,
    bytes: usize,
    chunk: usize,
    offset: usize,
}

// SAFETY: a block is exclusive owned memory; the arena behind it is Send + Sync.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Arena {
    /// A block of at least `bytes`, 4 KiB aligned, every byte of it set to zero.
    pub(crate) fn block(self: &Arc<Self>, bytes: usize) -> Block {
        let bytes = bytes.next_multiple_of(ALIGN).max(ALIGN);
        let mut state = self.lock();
        let reused = state.free.get_mut(&bytes).and_then(Vec::pop);
        let (chunk, offset) = reused.unwrap_or_else(|| state.extend(bytes));
        let start = state.chunks[chunk].as_ptr().wrapping_add(offset);
        let Some(start) = NonNull::new(start) else { unreachable!("chunks are not at address 0") };
        if reused.is_some() {
            // SAFETY: the block is inside its chunk and nobody else has it.
            unsafe { start.write_bytes(0, bytes) };
        }
        Block { arena: Arc::clone(self), start, bytes, chunk, offset }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn extend(&mut self, bytes: usize) -> (usize, usize) {
        let room = self.chunks.last().map_or(0, |chunk| chunk.len() - self.used);
        if bytes > room {
            self.chunks.push(Region::zeroed(bytes.next_multiple_of(HUGE_PAGE).max(CHUNK)));
            self.used = 0;
        }
        let offset = self.used;
        self.used += bytes;
        (self.chunks.len() - 1, offset)
    }
}

impl Block {
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` initialised bytes that only this block reaches.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let place = (self.chunk, self.offset);
        self.arena.lock().free.entry(self.bytes).or_default().push(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_block_is_reused_and_zeroed() {
        let arena = Arc::new(Arena::default());
        let mut first = arena.block(10_000);
        first.as_mut_slice().fill(7);
        let address = first.as_ptr();
        let other = arena.block(10_000);
        assert_ne!(other.as_ptr(), address);
        drop(first);
        let mut again = arena.block(10_000);
        assert_eq!(again.as_ptr(), address);
        assert!(again.as_mut_slice().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_block_larger_than_a_chunk_fits() {
        let arena = Arc::new(Arena::default());
        let mut block = arena.block(CHUNK + 1);
        assert!(block.bytes() > CHUNK);
        block.as_mut_slice()[CHUNK] = 1;
    }
}
