//! Takes work off the fullest node along chains of moves, until that is not possible any more.

use super::{Hosts, board::Board};

/// Scratch of the search for chains. Its vectors keep their room from call to call.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Experts that could leave, by node; a node's part begins where its room does.
    residents: Vec<u16>,
    /// How many experts could leave each node.
    counts: Vec<u32>,
    /// Where each expert is in `residents`.
    places: Vec<u32>,
    /// Per node, how the running search got there.
    steps: Vec<Step>,
    /// Nodes in the order in which they were reached.
    reached: Vec<u16>,
    round: u32,
}

/// How a search reached a node.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// The search it belongs to.
    round: u32,
    /// The expert that would come, and its replica here.
    expert: u16,
    replica: u32,
    /// What it costs here.
    arriving: u64,
    /// What the fullest node gets rid of by this chain.
    freed: u64,
}

// === impl Step ===

impl Step {
    #[expect(clippy::cast_possible_truncation, reason = "experts fit u16, replicas u32")]
    fn new(expert: usize, replica: usize, arriving: u64, freed: u64) -> Self {
        Self { round: 0, expert: expert as u16, replica: replica as u32, arriving, freed }
    }
}

// === impl Search ===

impl Search {
    /// Lists the experts that have another host than the one chosen on the board.
    pub(super) fn begin(&mut self, board: &Board, hosts: &Hosts) {
        self.residents.clear();
        self.residents.resize(hosts.replicas_all(), 0);
        self.counts.clear();
        self.counts.resize(hosts.nodes(), 0);
        self.places.clear();
        self.places.resize(hosts.experts(), 0);
        self.steps.clear();
        self.steps.resize(hosts.nodes(), Step::default());
        self.reached.clear();
        self.reached.reserve(hosts.nodes());
        self.round = 0;
        for expert in hosts.fewest_first() {
            if let Some(replica) = board.chosen(expert)
                && hosts.of(expert).len() > 1
            {
                self.enter(hosts, expert, usize::from(hosts.node(replica)));
            }
        }
    }

    /// Lowers the load of `fullest` by one chain of moves: an expert leaves it for another of its
    /// hosts, from which, if that becomes too full, one goes on, and so forth.
    ///
    /// No other node gets as full as `fullest` was, unless it already is. Where every expert costs
    /// the same on all nodes that have it, a search that fails proves that no assignment has a
    /// smaller largest load: the nodes it reached cannot take one expert more, and nothing on them
    /// has a host elsewhere. Otherwise it is a heuristic, because it enters a node only once.
    pub(super) fn relieve(&mut self, board: &mut Board, hosts: &Hosts, fullest: usize) -> bool {
        let limit = board.load(fullest);
        self.round += 1;
        self.reached.clear();
        self.reach(fullest, Step::default());
        let mut next = 0;
        while let Some(&from) = self.reached.get(next) {
            next += 1;
            let from = usize::from(from);
            let Step { arriving, freed, .. } = self.steps[from];
            let start = hosts.room(from);
            for place in start..start + self.counts[from] as usize {
                let expert = usize::from(self.residents[place]);
                let leaving = board.cost_now(expert);
                let left = board.load(from) + arriving - leaving;
                if left >= limit && left > board.load(from) {
                    continue;
                }
                let freed = if from == fullest { leaving } else { freed };
                for replica in hosts.replicas(expert) {
                    let to = usize::from(hosts.node(replica));
                    let cost = board.cost(replica);
                    let ends = if to == fullest {
                        from != fullest && cost < freed
                    } else {
                        board.load(to) + cost < limit && !self.passed(board, hosts, from, to)
                    };
                    if ends {
                        self.follow(board, hosts, (expert, replica), fullest);
                        return true;
                    }
                    if self.steps[to].round != self.round {
                        self.reach(to, Step::new(expert, replica, cost, freed));
                    }
                }
            }
        }
        false
    }

    fn reach(&mut self, node: usize, step: Step) {
        self.steps[node] = Step { round: self.round, ..step };
        #[expect(clippy::cast_possible_truncation, reason = "nodes fit u16")]
        self.reached.push(node as u16);
    }

    /// Whether the chain that leads to `node` goes through `other`, or ends there.
    fn passed(&self, board: &Board, hosts: &Hosts, mut node: usize, other: usize) -> bool {
        while node != other {
            if usize::from(self.reached[0]) == node {
                return false;
            }
            node = board.node_now(hosts, usize::from(self.steps[node].expert));
        }
        true
    }

    /// Makes the moves of a chain, from its last back to the one that leaves `fullest`.
    fn follow(&mut self, board: &mut Board, hosts: &Hosts, last: (usize, usize), fullest: usize) {
        let (mut expert, mut replica) = last;
        loop {
            let from = board.node_now(hosts, expert);
            self.leave(hosts, expert, from);
            board.shift(hosts, expert, replica);
            self.enter(hosts, expert, usize::from(hosts.node(replica)));
            if from == fullest {
                return;
            }
            let step = self.steps[from];
            (expert, replica) = (usize::from(step.expert), step.replica as usize);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "experts fit u16, replicas u32")]
    fn enter(&mut self, hosts: &Hosts, expert: usize, node: usize) {
        let place = hosts.room(node) + self.counts[node] as usize;
        self.residents[place] = expert as u16;
        self.places[expert] = place as u32;
        self.counts[node] += 1;
    }

    /// Takes an expert off its node's list.
    pub(super) fn leave(&mut self, hosts: &Hosts, expert: usize, node: usize) {
        self.counts[node] -= 1;
        let last = self.residents[hosts.room(node) + self.counts[node] as usize];
        let place = self.places[expert];
        self.residents[place as usize] = last;
        self.places[usize::from(last)] = place;
    }
}
