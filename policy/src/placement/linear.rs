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
            for expert in 0..table.len() {
                if *left == 0 {
                    break;
                }
                let host = roomiest(hosts, &spare, &table[expert]).map(|host| (host, host));
                let Some((host, taken)) = host.or_else(|| trade(table, expert, hosts, &spare))
                else {
                    continue;
                };
                table[expert].push(host);
                spare[usize::from(taken)] -= 1;
                *left -= 1;
            }
        }
        if left == before {
            return;
        }
    }
}

/// Where all hosts with spare slots hold the expert already: a further replica of another expert
/// goes to one of them, `taken`, and leaves its place, `host`, to this one. Otherwise the last experts of a
/// layer would stay with one replica though there is a slot for each.
fn trade(
    table: &mut LayerTable,
    expert: usize,
    hosts: usize,
    spare: &[u64],
) -> Option<(HostIndex, HostIndex)> {
    for other in 0..table.len() {
        let Some(taken) = roomiest(hosts, spare, &table[other]) else { continue };
        let further = table[other].iter().enumerate().skip(1);
        let free =
            further.map(|(at, &host)| (at, host)).find(|(_, host)| !table[expert].contains(host));
        if let Some((at, host)) = free {
            table[other][at] = taken;
            return Some((host, taken));
        }
    }
    None
}

fn roomiest(hosts: usize, spare: &[u64], holders: &[HostIndex]) -> Option<HostIndex> {
    (0..HostIndex::MAX)
        .take(hosts)
        .filter(|host| spare[usize::from(*host)] > 0 && !holders.contains(host))
        .max_by_key(|&host| (spare[usize::from(host)], std::cmp::Reverse(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_slot_for_each_every_expert_has_a_second_replica() {
        for hosts in 2..9 {
            for experts in hosts..3 * hosts {
                let rooms: Vec<u32> = (0..hosts)
                    .map(|host| ((experts * (host + 1)) / hosts - (experts * host) / hosts) as u32)
                    .collect();
                let mut tables = vec![cut(&rooms); 3];
                let slots = (2 * experts * tables.len()).div_ceil(hosts) as u64;
                let spare = rooms.iter().map(|&room| slots - 3 * u64::from(room)).collect();
                fill(&mut tables, hosts, spare, experts as u64);
                for replicas in tables.iter().flatten() {
                    assert_eq!(replicas.len(), 2, "{experts} experts on {hosts}: {tables:?}");
                    assert_ne!(replicas[0], replicas[1]);
                }
            }
        }
    }
}
