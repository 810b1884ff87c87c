//! The greedy of METRO and AEBS: one expert after the other to the host that is done with it first.

use super::{Instance, board::Board};

/// Places the activated experts in the given order, each as a whole.
///
/// METRO (Algorithm 1) does this in parallel under locks, so that its result depends on who comes
/// first; here the order is an argument, and every node that decides gets the same answer.
pub(super) fn place(
    board: &mut Board,
    instance: &Instance<'_>,
    order: impl Iterator<Item = usize>,
) {
    let hosts = instance.hosts;
    for expert in order {
        let tokens = instance.tokens[expert];
        if tokens == 0 {
            continue;
        }
        if let Some(replica) = board.earliest(hosts, hosts.replicas(expert)) {
            board.put(hosts, expert, replica, tokens);
        }
    }
}
