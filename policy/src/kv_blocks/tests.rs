//! Blocks by hand, then any order of events against what the blocks must hold.

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4;

fn pool(total: u32, retention: Retention) -> KvBlocks {
    KvBlocks::new(total, BLOCK, retention)
}

/// A sequence that computes `tokens` and holds its blocks.
fn run(pool: &mut KvBlocks, tokens: &[u32]) -> (Vec<u32>, usize) {
    let mut held = Vec::new();
    let computed = pool.begin(&mut held, tokens, tokens.len() + 1).unwrap();
    pool.name(&mut held, tokens);
    (held, computed)
}

/// The same, to its end; how many of its positions it found computed.
fn finish(pool: &mut KvBlocks, tokens: &[u32]) -> usize {
    let (mut held, computed) = run(pool, tokens);
    pool.release(&mut held);
    computed
}

fn tokens(kind: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|at| kind * 1000 + at).collect()
}

#[test]
fn grows_by_whole_blocks_and_all_or_nothing() {
    let mut pool = pool(4, Retention::Nothing);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    assert!(pool.grow(&mut a, 5));
    assert_eq!(a, [0, 1]);
    assert!(pool.grow(&mut a, 8), "two blocks cover 8 positions");
    assert_eq!(a.len(), 2);
    assert!(!pool.grow(&mut b, 9), "three blocks are not there");
    assert!(b.is_empty());
    assert!(pool.grow(&mut b, 8));
    assert_eq!(pool.free_count(), 0);
    pool.release(&mut a);
    assert!(pool.grow(&mut b, 9));
    assert_eq!(b, [2, 3, 0], "the block freed last comes first");
}

#[test]
#[should_panic(expected = "given back twice")]
fn a_block_cannot_come_back_twice() {
    let mut pool = pool(1, Retention::Nothing);
    let mut held = Vec::new();
    assert!(pool.grow(&mut held, 1));
    pool.release(&mut held.clone());
    pool.release(&mut held);
}

#[test]
fn what_begins_alike_shares_its_whole_blocks() {
    let mut pool = pool(8, Retention::Everything);
    let (first, computed) = run(&mut pool, &tokens(1, 10));
    assert_eq!((first.len(), computed), (3, 0));
    let mut other = tokens(1, 9);
    other[8] = 77;
    let (second, computed) = run(&mut pool, &other);
    assert_eq!(computed, 8);
    assert_eq!(second[..2], first[..2]);
    assert_eq!(pool.free_count(), 8 - 4, "of two times three blocks two are one");
    other[0] = 78;
    assert_eq!(finish(&mut pool, &other), 0, "the same tokens after another beginning");
}

#[test]
fn the_last_token_is_always_computed() {
    let mut pool = pool(8, Retention::Everything);
    assert_eq!(finish(&mut pool, &tokens(1, 8)), 0);
    assert_eq!(finish(&mut pool, &tokens(1, 8)), 4);
    assert_eq!(finish(&mut pool, &tokens(1, 9)), 8);
}

#[test]
fn what_would_be_shared_next_is_a_whole_block_and_not_the_last_token() {
    let mut pool = pool(8, Retention::Everything);
    let long = tokens(1, 12);
    assert_eq!(
        [4, 5, 12].map(|count| pool.next_to_share(&long[..count])),
        [None, Some(4), Some(4)]
    );
    finish(&mut pool, &long[..8]);
    assert_eq!(
        [9, 12, 13].map(|count| pool.next_to_share(&tokens(1, count))),
        [None, None, Some(12)]
    );
    let nothing = KvBlocks::new(8, BLOCK, Retention::Nothing);
    assert_eq!(nothing.next_to_share(&long), None);
}

#[test]
fn two_that_compute_the_same_end_with_one_copy() {
    let mut pool = pool(8, Retention::Everything);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    assert_eq!(pool.begin(&mut a, &tokens(1, 8), 9), Some(0));
    assert_eq!(pool.begin(&mut b, &tokens(1, 8), 9), Some(0));
    assert_eq!(pool.free_count(), 2);
    pool.name(&mut a, &tokens(1, 8));
    pool.name(&mut b, &tokens(1, 4));
    assert_eq!((a[0] == b[0], a[1] == b[1]), (true, false));
    pool.name(&mut b, &tokens(1, 8));
    assert_eq!(a[1], b[1]);
    assert_eq!(pool.free_count(), 4);
    pool.release(&mut a);
    assert_eq!(pool.free_count(), 5, "the other one holds two of three");
    pool.release(&mut b);
    assert_eq!(pool.free_count(), 8);
}

#[test]
fn the_longest_idle_goes_first_and_ends_before_beginnings() {
    let mut pool = pool(4, Retention::Everything);
    assert_eq!(finish(&mut pool, &tokens(1, 8)), 0);
    assert_eq!(finish(&mut pool, &tokens(2, 4)), 0);
    // Three are named and one is empty: the sequence takes that and the end of the first.
    assert_eq!(finish(&mut pool, &tokens(3, 4)), 0);
    assert_eq!(pool.idle_count(), 3);
    assert_eq!(finish(&mut pool, &tokens(1, 9)), 4, "its beginning is still there");
}

#[test]
fn without_retention_nothing_is_shared() {
    let mut pool = pool(8, Retention::Nothing);
    assert_eq!(finish(&mut pool, &tokens(1, 9)), 0);
    assert_eq!(finish(&mut pool, &tokens(1, 9)), 0);
    assert_eq!(pool.idle_count(), 0);
}

#[test]
fn memory_is_touched_for_idle_blocks_only_where_it_would_have_served() {
    let mut pool = pool(63, Retention::Earned);
    for kind in 0..50 {
        finish(&mut pool, &tokens(kind, 16));
    }
    assert_eq!(pool.blocks.len(), 5, "strangers one after the other need what one needs");
    // Two talk by turns: each finds the other in its place, once.
    let (one, two) = (tokens(60, 16), tokens(61, 16));
    assert_eq!([&one, &two].map(|tokens| finish(&mut pool, tokens)), [0, 0]);
    assert_eq!([&one, &two].map(|tokens| finish(&mut pool, tokens)), [0, 12]);
    assert_eq!([&one, &two].map(|tokens| finish(&mut pool, tokens)), [12, 12]);
    assert!(pool.blocks.len() <= 12, "{}", pool.blocks.len());
}

/// What a test's sequence knows of itself.
#[derive(Debug)]
struct Running {
    tokens: Vec<u32>,
    computed: usize,
    held: Vec<u32>,
}

/// A pool, the sequences that hold its blocks, and what was written into every block: all tokens up to each position.
struct World {
    pool: KvBlocks,
    running: Vec<Running>,
    written: BTreeMap<(u32, usize), Vec<u32>>,
}

impl World {
    fn begin(&mut self, tokens: Vec<u32>) {
        let mut held = Vec::new();
        let before = self.pool.free_count();
        match self.pool.begin(&mut held, &tokens, tokens.len() + 1) {
            None => assert!(held.is_empty() && self.pool.free_count() == before),
            Some(computed) => {
                assert!(computed < tokens.len());
                self.running.push(Running { tokens, computed, held });
            }
        }
    }

    /// Computes up to `count` more positions, as a chunk or a token does.
    fn compute(&mut self, at: usize, count: usize) {
        let Running { tokens, computed, held } = &mut self.running[at];
        let end = (*computed + count).min(tokens.len());
        for position in *computed..end {
            let place = (held[position / BLOCK], position % BLOCK);
            self.written.insert(place, tokens[..=position].to_vec());
        }
        *computed = end;
        self.pool.name(held, &tokens[..end]);
    }

    fn decode(&mut self, at: usize, token: u32) {
        let Running { tokens, computed, held } = &mut self.running[at];
        if *computed == tokens.len() && self.pool.grow(held, tokens.len() + 1) {
            tokens.push(token);
        }
    }

    fn end(&mut self, at: usize) {
        let mut running = self.running.swap_remove(at);
        self.pool.release(&mut running.held);
    }

    fn check(&self) {
        let mut holders = BTreeMap::<u32, u32>::new();
        for Running { tokens, computed, held } in &self.running {
            for position in 0..*computed {
                let place = (held[position / BLOCK], position % BLOCK);
                assert_eq!(self.written[&place], tokens[..=position], "position {position}");
            }
            held.iter().for_each(|&block| *holders.entry(block).or_default() += 1);
        }
        let free = self.pool.total() as usize - holders.len();
        assert_eq!(self.pool.free_count(), free, "every block is held or free");
        for (number, block) in self.pool.blocks.iter().enumerate() {
            let number = number as u32;
            assert_eq!(block.holders, holders.get(&number).copied().unwrap_or(0));
            assert!(
                block.next.values().all(|&next| self.pool.blocks[next as usize].name.is_some())
            );
        }
    }
}

proptest! {
    #[test]
    fn blocks_hold_what_their_sequences_computed(
        events in prop::collection::vec((0..6_u8, any::<prop::sample::Index>(), 1..14_usize, 0..2_u32), 1..200),
        total in 4..12_u32,
        retention in prop::sample::select(vec![Retention::Nothing, Retention::Earned, Retention::Everything]),
    ) {
        let pool = pool(total, retention);
        let mut world = World { pool, running: Vec::new(), written: BTreeMap::new() };
        for (event, which, count, token) in events {
            let at = (!world.running.is_empty()).then(|| which.index(world.running.len()));
            match (event, at) {
                // Two tokens make few beginnings, so that many are shared.
                (0 | 1, _) => world.begin((0..count).map(|at| (token + at as u32 / 5) % 2).collect()),
                (2 | 3, Some(at)) => world.compute(at, count),
                (4, Some(at)) => world.decode(at, token),
                (5, Some(at)) => world.end(at),
                (_, _) => {}
            }
            world.check();
        }
        while !world.running.is_empty() {
            world.end(0);
        }
        prop_assert_eq!(world.pool.free_count(), total as usize);
    }
}
