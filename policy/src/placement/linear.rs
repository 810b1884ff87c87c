//! Linear placement: every layer is cut into contiguous shares, one per node in order of node number.

use domain::{NodeId, Plan, Replicas};

use super::{Explanation, Host, Infeasible, Input, Policy, Proposal, Share, Spare};

pub(super) fn place(input: &Input<'_>, hosts: &[Host]) -> Result<Proposal, Infeasible> {
    let (layers, experts) = (input.shape.moe_layers.len(), input.shape.experts);
    let needed = layers as u64 * u64::from(experts);
    let found = hosts.iter().map(|host| u64::from(host.slots)).sum();
    if found < needed || hosts.is_empty() {
        return Err(Infeasible { needed, found, hosts: hosts.len() });
    }
    let first = quotas(needed, hosts);
    let mut table = Vec::with_capacity(layers * usize::from(experts));
    let mut left = first.clone();
    for layers_left in (1..=layers as u64).rev() {
        let shares = apportion(&left, layers_left, u64::from(experts));
        for ((host, &share), left) in hosts.iter().zip(&shares).zip(&mut left) {
            table.extend((0..share).map(|_| vec![host.id]));
            *left -= share;
        }
    }
    let spare: Vec<u64> =
        hosts.iter().zip(&first).map(|(host, &first)| u64::from(host.slots) - first).collect();
    let further = match input.spare {
        Spare::Leave => vec![0; hosts.len()],
        Spare::Fill => fill(&mut table, hosts, spare),
    };
    let shares = hosts.iter().zip(first.iter().zip(&further));
    let explanation = Explanation {
        policy: Policy::Linear,
        shares: shares
            .map(|(&host, (&first, &further))| Share {
                host,
                first: narrow(first),
                further: narrow(further),
            })
            .collect(),
    };
    let parent = input.serving.map(Plan::epoch);
    let plan = Plan::new(input.epoch, parent, input.shape, table)
        .expect("the shares of a layer add up to its experts");
    Ok(Proposal { plan, explanation })
}

/// How many experts each host gets over all layers: equal shares, cut off at its slots; what does
/// not divide evenly goes to the lowest numbers. `needed` is at most the sum of all slots.
fn quotas(needed: u64, hosts: &[Host]) -> Vec<u64> {
    let mut quotas = vec![0; hosts.len()];
    let mut left = needed;
    while left > 0 {
        let room = |quota: u64, host: &Host| u64::from(host.slots) - quota;
        let open = hosts.iter().zip(&quotas).filter(|(host, quota)| room(**quota, host) > 0);
        let share = (left / open.count() as u64).max(1);
        for (host, quota) in hosts.iter().zip(&mut quotas) {
            let given = share.min(room(*quota, host)).min(left);
            *quota += given;
            left -= given;
        }
    }
    quotas
}

/// Cuts one layer of `experts` by what every host still has to get in `layers_left` layers, by
/// largest remainders (the lower number wins a tie). The sum of `left` is `layers_left * experts`.
fn apportion(left: &[u64], layers_left: u64, experts: u64) -> Vec<u64> {
    let mut shares: Vec<u64> = left.iter().map(|left| left / layers_left).collect();
    let missing = experts - shares.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..left.len()).collect();
    by_remainder.sort_by_key(|&host| std::cmp::Reverse(left[host] % layers_left));
    for &host in by_remainder.iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        shares[host] += 1;
    }
    shares
}

/// Gives every expert one more replica in turn, on the host with the most spare slots that does not
/// hold it yet, until nothing fits. Returns how many each host got.
fn fill(table: &mut [Replicas], hosts: &[Host], mut spare: Vec<u64>) -> Vec<u64> {
    let mut further = vec![0; hosts.len()];
    loop {
        let mut placed = false;
        for replicas in table.iter_mut() {
            let Some(host) = roomiest(hosts, &spare, replicas) else {
                continue;
            };
            replicas.push(hosts[host].id);
            spare[host] -= 1;
            further[host] += 1;
            placed = true;
        }
        if !placed {
            return further;
        }
    }
}

fn roomiest(hosts: &[Host], spare: &[u64], holders: &[NodeId]) -> Option<usize> {
    (0..hosts.len())
        .filter(|&host| spare[host] > 0 && !holders.contains(&hosts[host].id))
        .max_by_key(|&host| (spare[host], std::cmp::Reverse(host)))
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).expect("a share is at most a host's slots, which are a u32")
}
