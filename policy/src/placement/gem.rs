//! GEM: experts are placed so that all nodes finish together, each by its own measured speed.
//!
//! The paper's text gives the idea and no algorithm; this is our own. Per layer, minimise the sum over
//! steps of the slowest host's time, under equal slots:
//!
//! - *Starts*: experts in order of tokens, each to the host that would finish first; the same, to the
//!   host where it adds least to the cost; EPLB's packing; the linear cut.
//! - *Descent*: take the host that is the slowest for the longest time; of all swaps that relieve it take
//!   the best; when none helps, ask the next slowest. A swap is judged by per-step sums ([`Board`]).
//!   Where experts have replicas and no swap helps, give a slot to another expert ([`Exchange`]).
//! - *Kicks*: a few random changes to the best table so far and another descent, until several in a
//!   row gave nothing or the layer's budget of work is spent. Work is counted, not timed, and seeds
//!   are given: equal input, equal plan.
//!
//! Spare slots hold further replicas, at first those that EPLB chooses. As EPLB's table is among the
//! starts, and the linear one where there are no spare slots, the result never costs more than theirs.

use std::cmp::Reverse;

use super::{
    board::{Board, Exchange, Scratch},
    cost, eplb, linear,
    problem::{HostIndex, LayerTable, Problem},
    rooms::{self, Rooms},
    times::Times,
};

/// Steps of judged swaps per layer; a core does some hundred million a second.
const WORK_MAX: u64 = 4_000_000;
/// Kicks in a row that gave nothing, after which a layer is done.
const KICKS_IN_VAIN_MAX: u32 = 24;
/// Random swaps of a kick.
const KICK_SWAPS: u64 = 3;

pub(super) fn place(problem: &Problem<'_>) -> Vec<LayerTable> {
    let Some(trace) = problem.trace else {
        // Nothing is known of the load, so the best guess is that all experts are alike.
        return eplb::place(problem);
    };
    let times = Times::new(&problem.curves, trace);
    let rooms = rooms::all(problem);
    rooms
        .iter()
        .enumerate()
        .map(|(layer, rooms)| {
            let counts = (0..trace.steps()).map(|step| trace.counts(step, layer)).collect();
            let seed = problem.input.seed ^ (layer as u64) << 32;
            let loads = problem.loads(layer);
            let eplb = eplb::place_layer(&loads, rooms, problem.input.grouping);
            Search { times: &times, counts, rooms, loads }.run(eplb, Random(seed))
        })
        .collect()
}

/// The search for one layer.
#[derive(Debug)]
struct Search<'a> {
    times: &'a Times<'a>,
    /// `[step][expert]`.
    counts: Vec<&'a [u32]>,
    rooms: &'a Rooms,
    /// Per expert, over all steps.
    loads: Vec<u64>,
}

// === impl Search ===

impl Search<'_> {
    fn run(&self, eplb: LayerTable, mut random: Random) -> LayerTable {
        let mut scratch = Scratch::default();
        let starts = self.starts(eplb);
        let mut best: Option<Board<'_>> = None;
        for table in starts {
            let mut board = Board::new(self.times, &self.counts, &table, self.rooms);
            while scratch.work < WORK_MAX && swap(&mut board, &mut scratch) {}
            if best.as_ref().is_none_or(|best| board.cost() < best.cost()) {
                best = Some(board);
            }
        }
        let mut best = best.expect("there are starts");
        descend(&mut best, &mut scratch);
        let mut in_vain = 0;
        while in_vain < KICKS_IN_VAIN_MAX && scratch.work < WORK_MAX {
            let mut board = best.clone();
            kick(&mut board, &mut random);
            descend(&mut board, &mut scratch);
            in_vain += 1;
            if board.cost() < best.cost() {
                (best, in_vain) = (board, 0);
            }
        }
        best.table()
    }

    fn starts(&self, eplb: LayerTable) -> Vec<LayerTable> {
        let replicas: Vec<usize> = eplb.iter().map(Vec::len).collect();
        let mut starts = vec![eplb];
        starts.extend(Greedy::new(self, &replicas).place(Greedy::finish));
        starts.extend(Greedy::new(self, &replicas).place(Greedy::cost));
        if self.rooms.iter().map(|&room| room as usize).sum::<usize>() == self.loads.len() {
            starts.push(linear::cut(self.rooms));
        }
        starts
    }
}

/// Random swaps, and a slot for another expert where there are further replicas.
fn kick(board: &mut Board<'_>, random: &mut Random) {
    let hosts = board.held().len() as u64;
    for _ in 0..KICK_SWAPS {
        let mut draw = || {
            let host = random.below(hosts) as usize;
            let slots = board.held()[host].len() as u64;
            (slots > 0).then(|| (host, random.below(slots) as usize))
        };
        let (Some(from), Some(to)) = (draw(), draw()) else { continue };
        let piece = |(host, place): (usize, usize)| (host, board.held()[host][place]);
        if from.0 != to.0 && board.may_swap(piece(from), piece(to)) {
            board.swap(from, to);
        }
    }
    let host = random.below(hosts) as usize;
    let slots = board.held()[host].len() as u64;
    let expert = random.below(board.experts() as u64) as usize;
    if slots > 0 {
        let exchange = Exchange { slot: (host, random.below(slots) as usize), expert };
        if board.may_exchange(exchange) {
            board.exchange(exchange);
        }
    }
}

/// Swaps, and exchanges where no swap helps, until nothing helps or the work is done.
fn descend(board: &mut Board<'_>, scratch: &mut Scratch) {
    while scratch.work < WORK_MAX && (swap(board, scratch) || exchange(board, scratch)) {}
}

/// Makes the best swap with the worst straggler that has one that helps; whether there was one.
fn swap(board: &mut Board<'_>, scratch: &mut Scratch) -> bool {
    let mut stragglers = board.stragglers().into_iter();
    let swap = stragglers.find_map(|host| board.best_swap(host, scratch));
    swap.map(|swap| board.swap(swap.from, swap.to)).is_some()
}

/// As [`swap`], with exchanges.
fn exchange(board: &mut Board<'_>, scratch: &mut Scratch) -> bool {
    let mut stragglers = board.stragglers().into_iter();
    let exchange = stragglers.find_map(|host| board.best_exchange(host, scratch));
    exchange.map(|exchange| board.exchange(exchange)).is_some()
}

/// A table that is filled expert by expert, those with most tokens per replica first.
#[derive(Debug)]
struct Greedy<'a> {
    search: &'a Search<'a>,
    replicas: &'a [usize],
    free: Rooms,
    /// `[host][step]`: tokens.
    sums: Vec<Vec<u32>>,
    /// Slowest host's time per step.
    slowest: Vec<u64>,
}

// === impl Greedy ===

impl<'a> Greedy<'a> {
    fn new(search: &'a Search<'a>, replicas: &'a [usize]) -> Self {
        let steps = search.counts.len();
        Self {
            search,
            replicas,
            free: search.rooms.clone(),
            sums: vec![vec![0; steps]; search.rooms.len()],
            slowest: vec![0; steps],
        }
    }

    /// Puts every replica on the host where `key` is least. None if a replica finds only hosts that
    /// hold its expert already.
    fn place(mut self, key: impl Fn(&Self, usize, usize) -> u64) -> Option<LayerTable> {
        let loads = &self.search.loads;
        let mut order: Vec<usize> = (0..loads.len()).collect();
        order.sort_by_key(|&expert| Reverse(loads[expert] / self.replicas[expert] as u64));
        let mut table = vec![Vec::new(); loads.len()];
        for &expert in &order {
            for _ in 0..self.replicas[expert] {
                let hosts: &mut Vec<HostIndex> = &mut table[expert];
                let open = (0..HostIndex::MAX).zip(&self.free);
                let open = open.filter(|(host, free)| **free > 0 && !hosts.contains(host));
                let best = open.map(|(host, _)| host).min_by_key(|&host| {
                    let at = usize::from(host);
                    (key(&self, at, expert), Reverse(self.free[at]))
                });
                let host = best?;
                hosts.push(host);
                self.put(expert, usize::from(host));
            }
        }
        Some(table)
    }

    fn put(&mut self, expert: usize, host: usize) {
        self.free[host] -= 1;
        let times = self.search.times.of(host);
        for step in 0..self.search.counts.len() {
            self.sums[host][step] += self.tokens(expert, step);
            self.slowest[step] = self.slowest[step].max(times.ns(self.sums[host][step]));
        }
    }

    /// When `host` would finish a mean step with `expert`.
    fn finish(&self, host: usize, expert: usize) -> u64 {
        let steps = 0..self.search.counts.len();
        let tokens = steps.clone().map(|step| self.sums[host][step] + self.tokens(expert, step));
        let mean = tokens.map(u64::from).sum::<u64>() / steps.len() as u64;
        self.search.times.of(host).ns(u32::try_from(mean).unwrap_or(u32::MAX))
    }

    /// The cost so far with `expert` on `host`.
    fn cost(&self, host: usize, expert: usize) -> u64 {
        let times = self.search.times.of(host);
        let slowest = self.slowest.iter().enumerate().map(|(step, &slowest)| {
            slowest.max(times.ns(self.sums[host][step] + self.tokens(expert, step)))
        });
        slowest.sum()
    }

    fn tokens(&self, expert: usize, step: usize) -> u32 {
        cost::share(self.search.counts[step][expert], self.replicas[expert])
    }
}

/// A stream of numbers that a seed determines (`SplitMix64`).
#[derive(Debug)]
struct Random(u64);

// === impl Random ===

impl Random {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
