//! Linear placement: every layer is cut into contiguous shares, one per node in order of node number.

use super::{
    problem::{HostIndex, LayerTable, Problem},
    rooms,
};

pub(super) fn place(problem: &Problem<'_>) -> Vec<LayerTable> {
    let Problem { hosts, experts, .. } = problem;
    let rooms = rooms::first(problem);
    let mut tables: Vec<LayerTable> = rooms.iter().map(|rooms| cut(rooms)).collect();
    debug_assert!(tables.iter().all(|table| table.len() == *experts));
    let spare = hosts.iter().enumerate().map(|(at, host)| {
        let first: u64 = rooms.iter().map(|rooms| u64::from(rooms[at])).sum();
        u64::from(host.slots) - first
    });
    let further = (problem.wanted() - problem.needed()) / problem.layers.max(1) as u64;
    fill(&mut tables, hosts.len(), spare.collect(), further);
    tables
}

/// One layer whose experts lie on the hosts in order.
pub(super) fn cut(rooms: &[u32]) -> LayerTable {
    let hosts = (0..HostIndex::MAX).zip(rooms);
    hosts.flat_map(|(host, &room)| (0..room).map(move |_| vec![host])).collect()
}

/// Gives every expert one more replica in turn, on the host with the most spare slots that does not
/// hold it yet, until nothing fits or every layer has `further` of them.
fn fill(tables: &mut [LayerTable], hosts: usize, mut spare: Vec<u64>, further: u64) {
    let mut left = vec![further; tables.len()];
    loop {
        let before = left.clone();
        for (table, left) in tables.iter_mut().zip(&mut left) {
            for replicas in table {
                let host = roomiest(hosts, &spare, replicas).filter(|_| *left > 0);
                let Some(host) = host else { continue };
                replicas.push(host);
                spare[usize::from(host)] -= 1;
                *left -= 1;
            }
        }
        if left == before {
            return;
        }
    }
}

fn roomiest(hosts: usize, spare: &[u64], holders: &[HostIndex]) -> Option<HostIndex> {
    (0..HostIndex::MAX)
        .take(hosts)
        .filter(|host| spare[usize::from(*host)] > 0 && !holders.contains(host))
        .max_by_key(|&host| (spare[usize::from(host)], std::cmp::Reverse(host)))
}
