//! The experts of one layer on hosts, with what every host has to do in every step, so that a swap is
//! judged in as many operations as there are steps.

mod exchange;

pub(super) use exchange::Exchange;

use super::{
    cost,
    problem::{HostIndex, LayerTable},
    times::Times,
};

/// What lies in a slot: an expert, or the number of experts for a free slot.
pub(super) type Piece = usize;

/// Steps between two looks at whether a swap can still win.
const STRIDE: usize = 8;

/// A layer's table under search.
#[derive(Clone, Debug)]
pub(super) struct Board<'a> {
    times: &'a Times<'a>,
    steps: usize,
    experts: usize,
    /// `[step][expert]`: tokens of the expert, all replicas together.
    counts: &'a [&'a [u32]],
    /// Replicas of each expert; none for a free slot.
    replicas: Vec<usize>,
    /// `[expert][step]`: tokens of one replica. One more row, of zeros, stands for a free slot.
    rows: Vec<u32>,
    /// Per host, one entry per slot.
    held: Vec<Vec<Piece>>,
    /// `[host][step]`: tokens.
    sums: Vec<u32>,
    /// `[host][step]`: nanoseconds.
    finish: Vec<u64>,
    /// The three slowest hosts of each step, slowest first.
    slowest: Vec<[Finish; 3]>,
    /// Σ over steps of the slowest host's time.
    cost: u64,
}

/// When a host finishes a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Finish {
    ns: u64,
    /// Of no meaning at 0 ns.
    host: usize,
}

/// Two pieces that change places, and the cost thereafter. Either of them may be a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Swap {
    pub(super) cost: u64,
    /// Host and place among its slots.
    pub(super) from: (usize, usize),
    pub(super) to: (usize, usize),
}

/// Room for intermediate results, kept from search to search.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Per step: the slowest of the hosts that do not take part.
    others: Vec<u64>,
    /// Sum of `others` from each step on.
    rest: Vec<u64>,
    /// Per step: tokens of both hosts that take part.
    both: Vec<u32>,
    /// Per step: tokens of the host without the piece that it gives.
    kept: Vec<u32>,
    /// The cost to stay below.
    bound: u64,
    /// Swaps judged so far, times steps.
    pub(super) work: u64,
}

// === impl Board ===

impl<'a> Board<'a> {
    /// The board of a table. `counts` are the layer's tokens `[step][expert]`; `rooms` the slots per
    /// host, at least as many as the table uses.
    pub(super) fn new(
        times: &'a Times<'a>,
        counts: &'a [&'a [u32]],
        table: &LayerTable,
        rooms: &[u32],
    ) -> Self {
        let (steps, experts) = (counts.len(), table.len());
        let mut replicas: Vec<usize> = table.iter().map(Vec::len).collect();
        replicas.push(0);
        let mut held: Vec<Vec<Piece>> = vec![Vec::new(); rooms.len()];
        for (expert, hosts) in table.iter().enumerate() {
            for &host in hosts {
                held[usize::from(host)].push(expert);
            }
        }
        for (pieces, &room) in held.iter_mut().zip(rooms) {
            pieces.resize(pieces.len().max(room as usize), experts);
        }
        let mut board = Self {
            times,
            steps,
            experts,
            counts,
            replicas,
            rows: vec![0; (experts + 1) * steps],
            held,
            sums: vec![0; rooms.len() * steps],
            finish: vec![0; rooms.len() * steps],
            slowest: vec![Default::default(); steps],
            cost: 0,
        };
        for expert in 0..experts {
            board.share_out(expert);
        }
        for host in 0..rooms.len() {
            board.recount(host);
        }
        board.rank();
        board
    }

    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    pub(super) fn experts(&self) -> usize {
        self.experts
    }

    /// The pieces of each host.
    pub(super) fn held(&self) -> &[Vec<Piece>] {
        &self.held
    }

    pub(super) fn table(&self) -> LayerTable {
        let mut table = vec![Vec::new(); self.experts];
        for (host, pieces) in (0..HostIndex::MAX).zip(&self.held) {
            for &piece in pieces.iter().filter(|&&piece| piece != self.experts) {
                table[piece].push(host);
            }
        }
        table
    }

    /// Hosts that are the slowest of some step, those first whose slow steps take longest together.
    pub(super) fn stragglers(&self) -> Vec<usize> {
        let mut weights = vec![0_u64; self.held.len()];
        for [slowest, ..] in self.slowest.iter().filter(|[slowest, ..]| slowest.ns > 0) {
            weights[slowest.host] += slowest.ns;
        }
        let mut hosts: Vec<usize> = (0..weights.len()).filter(|&host| weights[host] > 0).collect();
        hosts.sort_by_key(|&host| std::cmp::Reverse(weights[host]));
        hosts
    }

    /// The swap between `host` and any other host that leaves the least cost, if that is less than
    /// now. Only swaps that relieve `host` where it is the slowest are looked at.
    pub(super) fn best_swap(&self, host: usize, scratch: &mut Scratch) -> Option<Swap> {
        let mut best = None;
        let relief = self.relief(host);
        scratch.bound = self.cost;
        for other in (0..self.held.len()).filter(|&other| other != host) {
            self.look_at(host, other, scratch);
            if scratch.rest.first().is_none_or(|&rest| rest >= scratch.bound) {
                continue;
            }
            for (place, &piece) in self.held[host].iter().enumerate() {
                self.look_without(host, piece, scratch);
                for (place_there, &there) in self.held[other].iter().enumerate() {
                    if relief[piece] <= relief[there]
                        || !self.may_swap((host, piece), (other, there))
                    {
                        continue;
                    }
                    let cost = self.judge((host, other), there, scratch);
                    if cost < scratch.bound {
                        scratch.bound = cost;
                        best = Some(Swap { cost, from: (host, place), to: (other, place_there) });
                    }
                }
            }
        }
        best
    }

    /// What `host` would be relieved of without each piece: tokens in the steps that it is the slowest of.
    fn relief(&self, host: usize) -> Vec<u64> {
        let slow: Vec<usize> =
            (0..self.steps).filter(|&step| self.slowest[step][0].host == host).collect();
        let tokens = |piece| slow.iter().map(|&step| u64::from(self.row(piece)[step])).sum();
        (0..=self.experts).map(tokens).collect()
    }

    /// Whether the pieces differ and neither host holds what it would get.
    pub(super) fn may_swap(&self, from: (usize, Piece), to: (usize, Piece)) -> bool {
        let gets = |host: usize, piece| piece == self.experts || !self.held[host].contains(&piece);
        from.1 != to.1 && gets(from.0, to.1) && gets(to.0, from.1)
    }

    /// Gives a host one free slot, or none. Places of pieces change.
    pub(super) fn set_open(&mut self, host: usize, open: bool) {
        self.held[host].retain(|&piece| piece != self.experts);
        if open {
            self.held[host].push(self.experts);
        }
    }

    /// Makes a swap.
    pub(super) fn swap(&mut self, from: (usize, usize), to: (usize, usize)) {
        let piece = self.held[from.0][from.1];
        self.held[from.0][from.1] = std::mem::replace(&mut self.held[to.0][to.1], piece);
        self.recount(from.0);
        self.recount(to.0);
        self.rank();
    }

    /// The cost after `host` has got `piece` for what it has given, if it is below `bound`.
    #[inline(never)] // Alone, the loop keeps what it needs in registers.
    fn judge(&self, (host, other): (usize, usize), piece: Piece, scratch: &mut Scratch) -> u64 {
        let (times, times_there) = (self.times.of(host), self.times.of(other));
        let Scratch { others, rest, both, kept, work, bound } = scratch;
        let mut cost = 0;
        let mut steps = kept.iter().zip(self.row(piece)).zip(&*both).zip(&*others);
        for rest in rest.iter().step_by(STRIDE) {
            if cost + rest >= *bound {
                return u64::MAX;
            }
            *work += STRIDE as u64;
            for (((&kept, &tokens), &both), &others) in steps.by_ref().take(STRIDE) {
                let here = kept + tokens;
                cost += times.ns(here).max(times_there.ns(both - here)).max(others);
            }
        }
        cost
    }

    /// Prepares `scratch` for swaps between two hosts.
    fn look_at(&self, host: usize, other: usize, scratch: &mut Scratch) {
        let others = self.slowest.iter().map(|slowest| {
            let third = slowest.iter().find(|finish| finish.host != host && finish.host != other);
            third.map_or(0, |finish| finish.ns)
        });
        scratch.work += self.steps as u64;
        scratch.others.clear();
        scratch.others.extend(others);
        scratch.rest.resize(self.steps, 0);
        let mut sum = 0;
        for (rest, others) in scratch.rest.iter_mut().zip(&scratch.others).rev() {
            sum += others;
            *rest = sum;
        }
        scratch.both.clear();
        scratch.both.extend(self.sums(host).iter().zip(self.sums(other)).map(|(a, b)| a + b));
    }

    /// Prepares `scratch` for swaps of `piece` on `host`.
    fn look_without(&self, host: usize, piece: Piece, scratch: &mut Scratch) {
        scratch.kept.clear();
        scratch.kept.extend(self.sums(host).iter().zip(self.row(piece)).map(|(a, b)| a - b));
    }

    fn row(&self, piece: Piece) -> &[u32] {
        &self.rows[piece * self.steps..][..self.steps]
    }

    fn sums(&self, host: usize) -> &[u32] {
        &self.sums[host * self.steps..][..self.steps]
    }

    /// Divides an expert's tokens by its replicas.
    fn share_out(&mut self, expert: Piece) {
        let row = &mut self.rows[expert * self.steps..][..self.steps];
        for (tokens, counts) in row.iter_mut().zip(self.counts) {
            *tokens = cost::share(counts[expert], self.replicas[expert]);
        }
    }

    /// Adds up a host's tokens and times.
    fn recount(&mut self, host: usize) {
        let sums = &mut self.sums[host * self.steps..][..self.steps];
        sums.fill(0);
        for &piece in &self.held[host] {
            let row = &self.rows[piece * self.steps..][..self.steps];
            for (sum, tokens) in sums.iter_mut().zip(row) {
                *sum += tokens;
            }
        }
        let times = self.times.of(host);
        let finish = &mut self.finish[host * self.steps..][..self.steps];
        for (finish, &sum) in finish.iter_mut().zip(&*sums) {
            *finish = times.ns(sum);
        }
    }

    /// Finds the slowest hosts of each step, and with them the cost.
    fn rank(&mut self) {
        self.slowest.fill(Default::default());
        for (host, finish) in self.finish.chunks(self.steps.max(1)).enumerate() {
            for (slowest, &ns) in self.slowest.iter_mut().zip(finish) {
                let [first, second, third] = *slowest;
                let new = Finish { ns, host };
                *slowest = if ns > first.ns {
                    [new, first, second]
                } else if ns > second.ns {
                    [first, new, second]
                } else if ns > third.ns {
                    [first, second, new]
                } else {
                    continue;
                };
            }
        }
        self.cost = self.slowest.iter().map(|[slowest, ..]| slowest.ns).sum();
    }
}
