//! Linear placement: every layer is cut into contiguous shares, one per node in order of node number.

use super::{
    Host,
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
    fill(&mut tables, hosts, spare.collect(), problem.wanted() - problem.needed());
    tables
}

/// One layer whose experts lie on the hosts in order.
pub(super) fn cut(rooms: &[u32]) -> LayerTable {
    let hosts = (0..HostIndex::MAX).zip(rooms);
    hosts.flat_map(|(host, &room)| (0..room).map(move |_| vec![host])).collect()
}

/// Gives every expert one more replica in turn, on the host with the most spare slots that does not
/// hold it yet, until nothing fits or there are `limit` of them.
fn fill(tables: &mut [LayerTable], hosts: &[Host], mut spare: Vec<u64>, limit: u64) {
    let mut left = limit;
    loop {
        let before = left;
        for replicas in tables.iter_mut().flatten() {
            if left == 0 {
                return;
            }
            let Some(host) = roomiest(hosts.len(), &spare, replicas) else {
                continue;
            };
            replicas.push(host);
            spare[usize::from(host)] -= 1;
            left -= 1;
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
