//! EPLB, the expert-parallel load balancer that DeepSeek published: replicate, then pack.
//!
//! 1. *Replicate*: until the slots of a layer are used up, the expert with most tokens per replica
//!    gets one more.
//! 2. *Pack*: replicas in descending order of their tokens go to the node with the least tokens that
//!    has a free slot.
//! 3. *Hierarchical form*: groups of experts are packed to machines first, then steps 1 and 2 are
//!    done within each machine. If groups do not divide by machines, or machines have too few slots or too many, the
//!    global form is used.
//!
//! One rule is stricter here: the published code may put two replicas of an expert on one node, where
//! the second one is of no use. Here an expert gets at most as many replicas as there are nodes, and
//! a node that holds it already is passed over.

use std::cmp::Reverse;

use super::{
    Grouping,
    problem::{HostIndex, LayerTable, Problem},
    rooms,
};

pub(super) fn place(problem: &Problem<'_>) -> Vec<LayerTable> {
    let rooms = rooms::all(problem);
    let place = |(layer, rooms): (usize, &rooms::Rooms)| {
        place_layer(&problem.loads(layer), rooms, problem.input.grouping)
    };
    rooms.iter().enumerate().map(place).collect()
}

/// Places one layer: `loads` are tokens per expert, `rooms` the slots to fill per host, at least
/// as many as there are experts.
pub(super) fn place_layer(loads: &[u64], rooms: &[u32], grouping: Grouping) -> LayerTable {
    let Some(machines) = machines(loads, rooms, grouping) else {
        return pack(loads, &replicate(loads, rooms), rooms);
    };
    let width = rooms.len() / machines.len();
    let mut table = vec![Vec::new(); loads.len()];
    for ((experts, rooms), first) in
        machines.iter().zip(rooms.chunks(width)).zip((0..).step_by(width))
    {
        let loads: Vec<u64> = experts.iter().map(|&expert| loads[expert]).collect();
        let within = pack(&loads, &replicate(&loads, rooms), rooms);
        for (&expert, hosts) in experts.iter().zip(within) {
            table[expert] = hosts.into_iter().map(|host| host + first).collect();
        }
    }
    table
}

/// The experts of each machine, or none where only the global form will do.
fn machines(loads: &[u64], rooms: &[u32], grouping: Grouping) -> Option<Vec<Vec<usize>>> {
    let (groups, machines) = (usize::from(grouping.groups), usize::from(grouping.machines));
    let divides = |whole: usize, parts: usize| parts > 0 && whole.is_multiple_of(parts);
    let regular = machines > 1
        && divides(loads.len(), groups)
        && divides(groups, machines)
        && divides(rooms.len(), machines);
    if !regular {
        return None;
    }
    // A machine needs slots for its experts, and its hosts need experts for their slots.
    let share = loads.len() / machines;
    let slots = |rooms: &[u32]| rooms.iter().map(|&room| room as usize).sum::<usize>();
    if rooms.chunks(rooms.len() / machines).any(|rooms| slots(rooms) < share)
        || rooms.iter().any(|&room| room as usize > share)
    {
        return None;
    }
    let size = loads.len() / groups;
    let of_groups: Vec<u64> = loads.chunks(size).map(|group| group.iter().sum()).collect();
    let slots = vec![u32::try_from(groups / machines).ok()?; machines];
    let mut experts = vec![Vec::new(); machines];
    for (group, machine) in pack(&of_groups, &vec![1; groups], &slots).iter().enumerate() {
        experts[usize::from(machine[0])].extend(group * size..(group + 1) * size);
    }
    Some(experts)
}

/// Replicas per expert: one each, and one more for the expert with most tokens per replica while
/// there are slots. No expert gets more than there are hosts with room.
fn replicate(loads: &[u64], rooms: &[u32]) -> Vec<u32> {
    let mut counts = vec![1_u32; loads.len()];
    let slots: usize = rooms.iter().map(|&room| room as usize).sum();
    let hosts = rooms.iter().filter(|&&room| room > 0).count();
    for _ in loads.len()..slots {
        let heavier = |&a: &usize, &b: &usize| {
            let of = |one: usize, other: usize| u128::from(loads[one]) * u128::from(counts[other]);
            of(a, b).cmp(&of(b, a)).then(b.cmp(&a))
        };
        let open = (0..loads.len()).filter(|&expert| (counts[expert] as usize) < hosts);
        let Some(expert) = open.max_by(heavier) else { break };
        counts[expert] += 1;
    }
    counts
}

/// Puts `counts` replicas of every expert on hosts: heaviest first, each to the host with the
/// fewest tokens that has a free slot and does not hold it. Further replicas for which there is no
/// such host, nor one that can be made by moving another replica, are given up and their slots go
/// to whichever expert has most tokens per replica; that needs hosts of very different room.
fn pack(loads: &[u64], counts: &[u32], rooms: &[u32]) -> LayerTable {
    let weights = loads.iter().zip(counts).map(|(&load, &count)| weight(load, count as usize));
    let mut packing = Packing {
        weights: weights.collect(),
        free: rooms.to_vec(),
        tokens: vec![0; rooms.len()],
        table: vec![Vec::new(); loads.len()],
    };
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|&expert| Reverse(packing.weights[expert]));
    for &expert in &order {
        for _ in 0..counts[expert] {
            match packing.open(expert) {
                Some(host) => packing.put(expert, host),
                None => packing.make_way(expert),
            }
        }
    }
    packing.use_up(loads);
    packing.table
}

/// Tokens of one replica, in thousandths so that shares differ where their expert's loads do.
fn weight(load: u64, replicas: usize) -> u64 {
    load.saturating_mul(1000) / replicas as u64
}

/// A layer that is being packed.
#[derive(Debug)]
struct Packing {
    /// Of one replica of each expert.
    weights: Vec<u64>,
    /// Slots left per host.
    free: Vec<u32>,
    /// Sum of weights per host.
    tokens: Vec<u64>,
    table: LayerTable,
}

// === impl Packing ===

impl Packing {
    /// The host with the fewest tokens that can take `expert`.
    fn open(&self, expert: usize) -> Option<HostIndex> {
        self.hosts()
            .filter(|&host| self.free[usize::from(host)] > 0 && !self.holds(host, expert))
            .min_by_key(|&host| self.tokens[usize::from(host)])
    }

    fn put(&mut self, expert: usize, host: HostIndex) {
        self.table[expert].push(host);
        self.free[usize::from(host)] -= 1;
        self.tokens[usize::from(host)] += self.weights[expert];
    }

    /// Puts `expert` on a full host after another replica has moved from there to a host with a free
    /// slot. Does nothing if no replica can move.
    fn make_way(&mut self, expert: usize) {
        let Some((other, from, to)) = self.way(expert) else { return };
        self.table[other].retain(|&host| host != from);
        self.free[usize::from(from)] += 1;
        self.tokens[usize::from(from)] -= self.weights[other];
        self.put(other, to);
        self.put(expert, from);
    }

    /// The replica (expert, from, to) whose moving leaves the fullest of both hosts least full.
    fn way(&self, expert: usize) -> Option<(usize, HostIndex, HostIndex)> {
        let full = self.hosts().filter(|&host| !self.holds(host, expert));
        let leaving = full.flat_map(|from| {
            let here = (0..self.table.len()).filter(move |&other| self.holds(from, other));
            here.map(move |other| (other, from))
        });
        let moves = leaving.filter_map(|(other, from)| {
            let to = self.open(other)?;
            let tokens = |host: HostIndex| self.tokens[usize::from(host)];
            let filled = (tokens(from) + self.weights[expert] - self.weights[other])
                .max(tokens(to) + self.weights[other]);
            Some((filled, other, from, to))
        });
        moves.min().map(|(_, other, from, to)| (other, from, to))
    }

    /// Fills slots that were given up.
    fn use_up(&mut self, loads: &[u64]) {
        while let Some((_, Reverse(expert), Reverse(host))) = self
            .hosts()
            .filter(|&host| self.free[usize::from(host)] > 0)
            .flat_map(|host| (0..loads.len()).map(move |expert| (expert, host)))
            .filter(|&(expert, host)| !self.holds(host, expert))
            .map(|(expert, host)| {
                (weight(loads[expert], self.table[expert].len()), Reverse(expert), Reverse(host))
            })
            .max()
        {
            self.put(expert, host);
        }
    }

    fn hosts(&self) -> impl Iterator<Item = HostIndex> + use<> {
        (0..HostIndex::MAX).take(self.free.len())
    }

    fn holds(&self, host: HostIndex, expert: usize) -> bool {
        self.table[expert].contains(&host)
    }
}
