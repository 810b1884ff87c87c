//! Giving a slot to another expert, which swaps cannot do: one more replica for an expert of a slow
//! host, one less for an expert that has several.

use super::{Board, Piece, Scratch, cost};

/// Work of a step of an exchange, in steps of a swap.
const WORK: u64 = 4;

/// A slot that goes to another expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Exchange {
    /// Host and place among its slots.
    pub(in super::super) slot: (usize, usize),
    /// The expert that gets it.
    pub(in super::super) expert: Piece,
}

/// How an exchange touches a host.
#[derive(Clone, Copy, Debug)]
struct Touched {
    host: usize,
    /// It has the slot.
    slot: bool,
    /// It holds the expert that gets one more replica.
    gaining: bool,
    /// It holds, elsewhere than in the slot, the expert that gets one less.
    losing: bool,
}

// === impl Board ===

impl Board<'_> {
    /// The exchange that gives one of `host`'s experts one more replica elsewhere and leaves the least
    /// cost, if that is less than now.
    pub(in super::super) fn best_exchange(
        &self,
        host: usize,
        scratch: &mut Scratch,
    ) -> Option<Exchange> {
        let holders = self.holders();
        let (mut best, mut bound) = (None, self.cost);
        for &gaining in self.held[host].iter().filter(|&&piece| piece != self.experts) {
            for (other, pieces) in self.held.iter().enumerate() {
                for (place, &losing) in pieces.iter().enumerate() {
                    let exchange = Exchange { slot: (other, place), expert: gaining };
                    if !self.may_exchange(exchange) {
                        continue;
                    }
                    let touched = touched(other, &holders[gaining], &holders[losing]);
                    let judged = self.judge_exchange(gaining, losing, &touched, bound);
                    scratch.work += WORK * self.steps as u64;
                    let Some(cost) = judged else { continue };
                    bound = cost;
                    best = Some(exchange);
                }
            }
        }
        best
    }

    /// Whether the slot is free or holds one of several replicas, and its host not the expert.
    pub(in super::super) fn may_exchange(&self, Exchange { slot, expert }: Exchange) -> bool {
        let losing = self.held[slot.0][slot.1];
        (losing == self.experts || self.replicas[losing] > 1)
            && !self.held[slot.0].contains(&expert)
    }

    /// Makes an exchange.
    pub(in super::super) fn exchange(&mut self, exchange: Exchange) {
        let (host, place) = exchange.slot;
        let losing = std::mem::replace(&mut self.held[host][place], exchange.expert);
        self.replicas[exchange.expert] += 1;
        self.share_out(exchange.expert);
        if losing != self.experts {
            self.replicas[losing] -= 1;
            self.share_out(losing);
        }
        for host in 0..self.held.len() {
            self.recount(host);
        }
        self.rank();
    }

    /// The hosts of each piece; none for a free slot.
    fn holders(&self) -> Vec<Vec<usize>> {
        let mut holders = vec![Vec::new(); self.experts + 1];
        for (host, pieces) in self.held.iter().enumerate() {
            for &piece in pieces.iter().filter(|&&piece| piece != self.experts) {
                holders[piece].push(host);
            }
        }
        holders
    }

    /// The cost after an exchange, if it is below `bound`.
    fn judge_exchange(
        &self,
        gaining: Piece,
        losing: Piece,
        touched: &[Touched],
        bound: u64,
    ) -> Option<u64> {
        let (gaining_row, losing_row) = (self.row(gaining), self.row(losing));
        let mut cost = 0;
        for (step, counts) in self.counts.iter().enumerate() {
            let more = cost::share(counts[gaining], self.replicas[gaining] + 1);
            let fewer = match self.replicas[losing] {
                0 | 1 => 0,
                replicas => cost::share(counts[losing], replicas - 1),
            };
            let (gaining_now, losing_now) = (gaining_row[step], losing_row[step]);
            let mut slowest = self.slowest_but(step, touched);
            for touched in touched {
                let mut tokens = self.sums(touched.host)[step];
                if touched.slot {
                    tokens = tokens - losing_now + more;
                }
                if touched.gaining {
                    tokens = tokens - gaining_now + more;
                }
                if touched.losing {
                    tokens = tokens - losing_now + fewer;
                }
                slowest = slowest.max(self.times.of(touched.host).ns(tokens));
            }
            cost += slowest;
            if cost >= bound {
                return None;
            }
        }
        Some(cost)
    }

    /// The time of the slowest host that is not touched.
    fn slowest_but(&self, step: usize, touched: &[Touched]) -> u64 {
        let untouched = |host: usize| !touched.iter().any(|touched| touched.host == host);
        if let Some(known) = self.slowest[step].iter().find(|finish| untouched(finish.host)) {
            return known.ns;
        }
        let others = (0..self.held.len()).filter(|&host| untouched(host));
        others.map(|host| self.finish[host * self.steps + step]).max().unwrap_or(0)
    }
}

fn touched(slot: usize, gaining: &[usize], losing: &[usize]) -> Vec<Touched> {
    let mut touched = vec![Touched { host: slot, slot: true, gaining: false, losing: false }];
    for &host in gaining {
        touched.push(Touched { host, slot: false, gaining: true, losing: losing.contains(&host) });
    }
    for &host in losing.iter().filter(|host| **host != slot && !gaining.contains(host)) {
        touched.push(Touched { host, slot: false, gaining: false, losing: true });
    }
    touched
}
