//! The exact answer by another way: binary search on the largest load, and a maximum flow for each (METRO, section 3.2).

use std::collections::VecDeque;

use policy::routing::{Hosts, Instance};

/// The smallest largest number of activated experts on a node.
pub(crate) fn fewest_activated(hosts: &Hosts, tokens: &[u32]) -> u32 {
    smallest(tokens.len() as u64, |limit| places_all(hosts, tokens, &vec![limit; hosts.nodes()]))
        as u32
}

/// The smallest largest time where every expert takes `cost[node]` on a node, after its backlog.
pub(crate) fn shortest_time(hosts: &Hosts, tokens: &[u32], cost: &[u64], backlog: &[u64]) -> u64 {
    let active = tokens.iter().filter(|&&tokens| tokens > 0).count() as u64;
    let start = backlog.iter().copied().max().unwrap_or(0);
    let end = start + active * cost.iter().copied().max().unwrap_or(0);
    start.max(smallest(end, |limit| {
        let room = |(cost, backlog): (&u64, &u64)| limit.saturating_sub(*backlog) / cost;
        let rooms: Vec<u64> = cost.iter().zip(backlog).map(room).collect();
        places_all(hosts, tokens, &rooms)
    }))
}

/// The smallest largest time of all ways to give every activated expert one host.
pub(crate) fn shortest_by_trial(instance: &Instance<'_>) -> u64 {
    fn rest(instance: &Instance<'_>, expert: usize, times: &mut [u64], best: &mut u64) {
        let Some(&tokens) = instance.tokens.get(expert) else {
            *best = (*best).min(times.iter().copied().max().unwrap_or(0));
            return;
        };
        if tokens == 0 {
            return rest(instance, expert + 1, times, best);
        }
        for &node in instance.hosts.of(expert) {
            let node = usize::from(node);
            let cost = instance.curves[node].ns(tokens);
            times[node] += cost;
            rest(instance, expert + 1, times, best);
            times[node] -= cost;
        }
    }
    let mut best = u64::MAX;
    rest(instance, 0, &mut vec![0; instance.hosts.nodes()], &mut best);
    best
}

/// The first number up to `high` for which `holds`.
fn smallest(mut high: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let mut low = 0;
    while low < high {
        let middle = u64::midpoint(low, high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Whether all activated experts find a host if each node takes at most `rooms[node]`.
fn places_all(hosts: &Hosts, tokens: &[u32], rooms: &[u64]) -> bool {
    let active: Vec<usize> = (0..tokens.len()).filter(|&expert| tokens[expert] > 0).collect();
    let (source, sink) = (active.len() + rooms.len(), active.len() + rooms.len() + 1);
    let mut network = Network { edges: Vec::new(), of: vec![Vec::new(); sink + 1] };
    for (at, &expert) in active.iter().enumerate() {
        network.join(source, at, 1);
        for &node in hosts.of(expert) {
            network.join(at, active.len() + usize::from(node), 1);
        }
    }
    for (node, &room) in rooms.iter().enumerate() {
        network.join(active.len() + node, sink, room);
    }
    network.flow(source, sink) == active.len() as u64
}

/// Dinic's algorithm, as it is in the books.
struct Network {
    /// (to, capacity left); the edge back is next to it.
    edges: Vec<(usize, u64)>,
    of: Vec<Vec<usize>>,
}

impl Network {
    fn join(&mut self, from: usize, to: usize, capacity: u64) {
        self.of[from].push(self.edges.len());
        self.edges.push((to, capacity));
        self.of[to].push(self.edges.len());
        self.edges.push((from, 0));
    }

    fn flow(&mut self, source: usize, sink: usize) -> u64 {
        let mut total = 0;
        loop {
            let levels = self.levels(source);
            if levels[sink] == usize::MAX {
                return total;
            }
            let mut next = vec![0; self.of.len()];
            loop {
                let pushed = self.push(source, sink, u64::MAX, &levels, &mut next);
                if pushed == 0 {
                    break;
                }
                total += pushed;
            }
        }
    }

    fn levels(&self, source: usize) -> Vec<usize> {
        let mut levels = vec![usize::MAX; self.of.len()];
        levels[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(at) = queue.pop_front() {
            for &edge in &self.of[at] {
                let (to, left) = self.edges[edge];
                if left > 0 && levels[to] == usize::MAX {
                    levels[to] = levels[at] + 1;
                    queue.push_back(to);
                }
            }
        }
        levels
    }

    fn push(
        &mut self,
        at: usize,
        sink: usize,
        amount: u64,
        levels: &[usize],
        next: &mut [usize],
    ) -> u64 {
        if at == sink {
            return amount;
        }
        while let Some(&edge) = self.of[at].get(next[at]) {
            let (to, left) = self.edges[edge];
            if left > 0 && levels[to] == levels[at] + 1 {
                let pushed = self.push(to, sink, amount.min(left), levels, next);
                if pushed > 0 {
                    self.edges[edge].1 -= pushed;
                    self.edges[edge ^ 1].1 += pushed;
                    return pushed;
                }
            }
            next[at] += 1;
        }
        0
    }
}
