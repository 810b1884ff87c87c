//! Hands out the blocks of a paged KV cache. Knows numbers only, never the memory behind them.

/// The free blocks of one attention node's KV cache.
///
/// The block freed last is handed out first: its memory is the likeliest to be in cache, and memory
/// that was never needed is never touched.
#[derive(Debug)]
pub struct KvBlocks {
    free: Vec<u32>,
    total: u32,
    block_tokens: usize,
}

impl KvBlocks {
    /// A pool of `total` free blocks of `block_tokens` positions each.
    #[must_use]
    pub fn new(total: u32, block_tokens: usize) -> Self {
        Self { free: (0..total).rev().collect(), total, block_tokens }
    }

    /// Blocks needed for `tokens` positions.
    #[must_use]
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks nobody holds.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Extends `held` until it covers `tokens` positions; takes nothing and answers false when the
    /// pool has too few blocks.
    #[must_use]
    pub fn grow(&mut self, held: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(held.len());
        if missing > self.free.len() {
            return false;
        }
        held.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes back all of `held`.
    ///
    /// # Panics
    /// When more blocks come back than were handed out.
    pub fn release(&mut self, held: &mut Vec<u32>) {
        self.free.extend(held.drain(..).rev());
        assert!(self.free.len() <= self.total as usize, "a KV block was given back twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_whole_blocks_and_all_or_nothing() {
        let mut pool = KvBlocks::new(4, 16);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(pool.grow(&mut a, 17));
        assert_eq!(a, [0, 1]);
        assert!(pool.grow(&mut a, 32), "two blocks cover 32 positions");
        assert_eq!(a.len(), 2);
        assert!(!pool.grow(&mut b, 33), "three blocks are not there");
        assert!(b.is_empty());
        assert!(pool.grow(&mut b, 32));
        assert_eq!(pool.free_count(), 0);
        pool.release(&mut a);
        assert!(pool.grow(&mut b, 33));
        assert_eq!(b, [2, 3, 0], "the block freed last comes first");
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_block_cannot_come_back_twice() {
        let mut pool = KvBlocks::new(1, 16);
        pool.release(&mut vec![0]);
    }
}
