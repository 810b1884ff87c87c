//! Improvements: of all layers' best swaps the one that gains most per replica, until a limit is reached.

use super::{
    super::{
        board::{Board, Scratch, Swap},
        times::Times,
    },
    Limits, Revision, Work,
};

// === impl Work ===

impl Work<'_> {
    pub(super) fn improve(
        &mut self,
        limits: &Limits,
        mut replicas_left: u64,
        revision: &mut Revision,
    ) {
        let Some(trace) = self.problem.trace else { return };
        let times = Times::new(&self.problem.curves, trace);
        let counts: Vec<Vec<&[u32]>> = (0..self.problem.layers)
            .map(|layer| (0..trace.steps()).map(|step| trace.counts(step, layer)).collect())
            .collect();
        let rooms = vec![0; self.held.len()];
        let boards = self.tables.iter().zip(&counts);
        let boards: Vec<Board<'_>> =
            boards.map(|(table, counts)| Board::new(&times, counts, table, &rooms)).collect();
        let before: u64 = boards.iter().map(Board::cost).sum();
        let open = vec![false; self.held.len()];
        let best = vec![None; boards.len()];
        let held = self.held.clone();
        let mut climb = Climb { work: self, boards, open, best, held, scratch: Scratch::default() };
        climb.open();
        (0..climb.boards.len()).for_each(|layer| climb.search(layer));
        let mut swaps_left = limits.swaps_max;
        let mut limited = false;
        while let Some(layer) = climb.choose() {
            limited = swaps_left == 0 || climb.replicas(layer) > replicas_left;
            if limited {
                break;
            }
            swaps_left -= 1;
            replicas_left -= climb.replicas(layer);
            climb.make(layer);
        }
        let after: u64 = climb.boards.iter().map(Board::cost).sum();
        let (tables, held) = (climb.boards.iter().map(Board::table).collect(), climb.held);
        let saved = u128::from(before - after) * 1000;
        let worth =
            after < before && saved >= u128::from(before) * u128::from(limits.gain_permille);
        revision.limited = limited;
        revision.cost_ns = Some((before, if worth { after } else { before }));
        if worth {
            (self.tables, self.held) = (tables, held);
        }
    }
}

/// Boards of all layers, each with its best swap.
#[derive(Debug)]
struct Climb<'a, 'b> {
    work: &'a Work<'b>,
    boards: Vec<Board<'a>>,
    /// Hosts that take replicas without giving any.
    open: Vec<bool>,
    best: Vec<Option<Swap>>,
    /// Replicas per host over all layers.
    held: Vec<u64>,
    scratch: Scratch,
}

// === impl Climb ===

impl Climb<'_, '_> {
    /// Opens hosts that have room and hold less than their share, closes the others; layers that
    /// counted on what has changed are searched again.
    fn open(&mut self) {
        let share = self.work.share();
        for host in 0..self.held.len() {
            let slots = u64::from(self.work.problem.hosts[host].slots);
            let open = self.held[host] < share.min(slots);
            if open == self.open[host] {
                continue;
            }
            self.open[host] = open;
            self.boards.iter_mut().for_each(|board| board.set_open(host, open));
            // Slots have moved up, and what was best may be possible no more, or something better may be.
            (0..self.boards.len()).for_each(|layer| self.search(layer));
        }
    }

    fn search(&mut self, layer: usize) {
        let board = &self.boards[layer];
        let mut stragglers = board.stragglers().into_iter();
        self.best[layer] = stragglers.find_map(|host| board.best_swap(host, &mut self.scratch));
    }

    /// The layer whose best swap gains most per replica to be loaded.
    fn choose(&self) -> Option<usize> {
        let layers = (0..self.boards.len()).filter(|&layer| self.best[layer].is_some());
        layers.max_by_key(|&layer| {
            let after = self.best[layer].map_or(0, |swap| swap.cost);
            let gain = self.boards[layer].cost().saturating_sub(after);
            (gain.saturating_mul(2) / self.replicas(layer), std::cmp::Reverse(layer))
        })
    }

    /// Replicas that a layer's best swap makes nodes load.
    fn replicas(&self, layer: usize) -> u64 {
        let board = &self.boards[layer];
        let full = |&(host, place): &(usize, usize)| board.held()[host][place] != board.experts();
        self.best[layer]
            .map_or(1, |swap| [swap.from, swap.to].iter().filter(|at| full(at)).count() as u64)
    }

    fn make(&mut self, layer: usize) {
        let Some(swap) = self.best[layer] else { return };
        if self.replicas(layer) == 1 {
            // The slower host always has something to give, so the free slot is the other one's.
            self.held[swap.from.0] -= 1;
            self.held[swap.to.0] += 1;
        }
        self.boards[layer].swap(swap.from, swap.to);
        for host in [swap.from.0, swap.to.0] {
            self.boards[layer].set_open(host, self.open[host]);
        }
        self.search(layer);
        self.open();
    }
}
