//! Hands out the blocks of a paged KV cache and finds those that a new sequence begins with. Knows numbers only, never the memory
//! behind them.
//!
//! A block whose positions are all computed is *named* by its tokens and by the block before it. Keys and values
//! depend on nothing else, to the bit, so that a sequence that begins alike shares the block. Named blocks that nobody holds any
//! more are kept and give way to new ones, the one not used for longest first.

mod evicted;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use self::evicted::Evicted;

/// One in so many blocks may be kept before it has earned that.
const EARNED_BEFOREHAND: u32 = 64;

/// Which blocks stay when nobody holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// None: no sequence shares a block.
    Nothing,
    /// A few, and those that memory is there for that was used before; more only after a sequence came that more would
    /// have served. For memory that becomes resident when it is first used.
    Earned,
    /// All, while there are others. For memory that is there from the start.
    Everything,
}

/// The blocks of one attention node's KV cache.
#[derive(Debug)]
pub struct KvBlocks {
    /// Those that were ever handed out. The memory of the others was never touched.
    blocks: Vec<Block>,
    total: u32,
    block_tokens: usize,
    /// Handed out before, held by nobody and without a name; the one freed last is handed out first.
    empty: Vec<u32>,
    /// Named and held by nobody, by when they were let go. No block was let go after the block before it, so
    /// that none stays here whose beginning is gone.
    idle: BTreeMap<u64, u32>,
    /// Those that begin sequences, by their tokens.
    first: BTreeMap<Box<[u32]>, u32>,
    /// Counts blocks that were let go.
    clock: u64,
    retention: Retention,
    /// How many idle blocks memory is touched for rather than taking the oldest one's.
    idle_max: usize,
    evicted: Evicted,
}

/// What is known of a block.
#[derive(Debug, Default)]
struct Block {
    /// Sequences that hold it.
    holders: u32,
    name: Option<Name>,
    /// Named blocks that follow it, by their tokens.
    next: BTreeMap<Box<[u32]>, u32>,
}

/// What a block holds.
#[derive(Debug)]
struct Name {
    before: Option<u32>,
    tokens: Box<[u32]>,
    /// Of all tokens up to its last.
    hash: u64,
    /// Where it is among the idle ones, if it is.
    idle: Option<u64>,
}

// === impl KvBlocks ===

impl KvBlocks {
    /// A pool of `total` free blocks of `block_tokens` positions each.
    #[must_use]
    pub fn new(total: u32, block_tokens: usize, retention: Retention) -> Self {
        let idle_max = match retention {
            Retention::Nothing => 0,
            Retention::Earned => (total / EARNED_BEFOREHAND) as usize,
            Retention::Everything => total as usize,
        };
        Self {
            blocks: Vec::new(),
            total,
            block_tokens,
            empty: Vec::new(),
            idle: BTreeMap::new(),
            first: BTreeMap::new(),
            clock: 0,
            retention,
            idle_max,
            evicted: Evicted::new(total as usize),
        }
    }

    /// Blocks needed for `positions`.
    #[must_use]
    pub fn needed(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_tokens)
    }

    /// Blocks nobody holds.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.total as usize - self.blocks.len() + self.empty.len() + self.idle.len()
    }

    /// Blocks in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Blocks that are kept although nobody holds them.
    #[must_use]
    pub fn idle_count(&self) -> usize {
        self.idle.len()
    }

    /// Gives a sequence of `tokens` that holds nothing yet the blocks of `positions`: those there are of its beginning, then
    /// empty ones. Answers how many of its positions are computed, never all of `tokens`; takes
    /// nothing and answers `None` when the pool has too few blocks.
    #[must_use]
    pub fn begin(
        &mut self,
        held: &mut Vec<u32>,
        tokens: &[u32],
        positions: usize,
    ) -> Option<usize> {
        debug_assert!(held.is_empty(), "a sequence begins with nothing");
        // The last token's outputs are wanted, not only its keys and values.
        let whole = &tokens[..tokens.len().saturating_sub(1)];
        let (shared, idle) = self.shared(whole);
        if self.needed(positions).saturating_sub(shared) + idle > self.free_count() {
            return None;
        }
        let mut before = None;
        for tokens in whole.chunks_exact(self.block_tokens).take(shared) {
            let Some(block) = self.find(before, tokens) else { break };
            self.hold(block);
            held.push(block);
            before = Some(block);
        }
        self.learn(before, &whole[shared * self.block_tokens..]);
        let covered = self.grow(held, positions);
        debug_assert!(covered, "there were enough");
        Some(shared * self.block_tokens)
    }

    /// The end of the first block that a sequence of `tokens` would share if it were computed, which it is not yet; none if
    /// that would be no whole block, or nothing is shared.
    #[must_use]
    pub fn next_to_share(&self, tokens: &[u32]) -> Option<usize> {
        let whole = &tokens[..tokens.len().saturating_sub(1)];
        let end = (self.shared(whole).0 + 1) * self.block_tokens;
        (self.retention != Retention::Nothing && end <= whole.len()).then_some(end)
    }

    /// Extends `held` until it covers `positions`; takes nothing and answers false when the pool has
    /// too few blocks.
    #[must_use]
    pub fn grow(&mut self, held: &mut Vec<u32>, positions: usize) -> bool {
        let missing = self.needed(positions).saturating_sub(held.len());
        if missing > self.free_count() {
            return false;
        }
        held.extend((0..missing).map_while(|_| self.take()));
        true
    }

    /// Names the blocks of a sequence all of whose positions are computed. `tokens` are those computed so far. Where
    /// another sequence computed the same, this one holds that block instead of its own from now on.
    pub fn name(&mut self, held: &mut [u32], tokens: &[u32]) {
        if self.retention == Retention::Nothing {
            return;
        }
        let whole = tokens.len() / self.block_tokens;
        let unnamed = |&at: &usize| self.blocks[held[at] as usize].name.is_none();
        let named = whole - (0..whole).rev().take_while(unnamed).count();
        for at in named..whole {
            let before = at.checked_sub(1).map(|before| held[before]);
            let tokens = &tokens[at * self.block_tokens..][..self.block_tokens];
            if let Some(known) = self.find(before, tokens) {
                self.hold(known);
                let own = std::mem::replace(&mut held[at], known);
                self.let_go(own);
            } else {
                self.name_block(held[at], before, tokens);
            }
        }
    }

    /// Takes back all of `held`.
    ///
    /// # Panics
    /// When a block comes back that nobody holds.
    pub fn release(&mut self, held: &mut Vec<u32>) {
        // The last first: a beginning serves more sequences than what follows it.
        held.drain(..).rev().for_each(|block| self.let_go(block));
    }

    /// Named blocks that these tokens begin with, and how many of them are idle.
    fn shared(&self, tokens: &[u32]) -> (usize, usize) {
        let (mut before, mut idle) = (None, 0);
        let mut found = 0;
        for tokens in tokens.chunks_exact(self.block_tokens) {
            let Some(block) = self.find(before, tokens) else { break };
            idle += usize::from(self.blocks[block as usize].holders == 0);
            found += 1;
            before = Some(block);
        }
        (found, idle)
    }

    /// The named block of these tokens after `before`, or at the beginning.
    fn find(&self, before: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let next = match before {
            Some(before) => &self.blocks[before as usize].next,
            None => &self.first,
        };
        next.get(tokens).copied()
    }

    fn hold(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        state.holders += 1;
        if let Some(at) = state.name.as_mut().and_then(|name| name.idle.take()) {
            self.idle.remove(&at);
        }
    }

    fn let_go(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        assert!(state.holders > 0, "a KV block was given back twice");
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        match &mut state.name {
            Some(name) => {
                name.idle = Some(self.clock);
                self.idle.insert(self.clock, block);
                self.clock += 1;
            }
            None => self.empty.push(block),
        }
    }

    /// A block for one holder; its memory is that of an empty one if possible.
    fn take(&mut self) -> Option<u32> {
        let untouched = self.blocks.len() < self.total as usize;
        let block = if let Some(block) = self.empty.pop() {
            block
        } else if untouched && self.idle.len() <= self.idle_max {
            self.blocks.push(Block::default());
            #[expect(
                clippy::cast_possible_truncation,
                reason = "fewer than `total`, which is a u32"
            )]
            let newest = (self.blocks.len() - 1) as u32;
            newest
        } else {
            self.evict()?
        };
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    /// Takes the name of the block that has been idle for longest.
    fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.idle.pop_first()?;
        let state = &mut self.blocks[block as usize];
        debug_assert!(state.next.is_empty(), "what follows was let go before");
        if let Some(name) = state.name.take() {
            match name.before {
                Some(before) => self.blocks[before as usize].next.remove(&name.tokens),
                None => self.first.remove(&name.tokens),
            };
            self.evicted.note(name.hash);
        }
        Some(block)
    }

    fn name_block(&mut self, block: u32, before: Option<u32>, tokens: &[u32]) {
        let hash = hash(self.hash_at(before), tokens);
        let next = match before {
            Some(before) => &mut self.blocks[before as usize].next,
            None => &mut self.first,
        };
        next.insert(tokens.into(), block);
        self.blocks[block as usize].name =
            Some(Name { before, tokens: tokens.into(), hash, idle: None });
    }

    fn hash_at(&self, block: Option<u32>) -> u64 {
        let name = block.and_then(|block| self.blocks[block as usize].name.as_ref());
        name.map_or(0, |name| name.hash)
    }

    /// A sequence goes on with these tokens after its last shared block: as many blocks as were evicted of them would
    /// have served it, had memory been touched for them.
    fn learn(&mut self, before: Option<u32>, tokens: &[u32]) {
        let mut last = self.hash_at(before);
        for tokens in tokens.chunks_exact(self.block_tokens) {
            last = hash(last, tokens);
            if !self.evicted.forget(last) {
                break;
            }
            self.idle_max = (self.idle_max + 1).min(self.total as usize);
        }
    }
}

/// Hash of all tokens up to the last of `tokens`, from the hash of those before.
fn hash(before: u64, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (before, tokens).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
