//! Routing by predicted time: each host's cost curve and backlog instead of a count of experts.

use super::{
    Instance, NS_MAX,
    board::{Board, Measure},
    count,
    cut::Cuts,
    greedy,
    search::Search,
};

/// Rounds of improvement per replica of a layer. Every round takes something off a node that costs
/// most, so this only guards against ever smaller gains.
const ROUNDS_PER_REPLICA: usize = 4;

/// Scratch of the policy. It keeps its room from call to call.
#[derive(Debug, Default)]
pub(super) struct Timed {
    order: Order,
    cuts: Cuts,
    /// What counting would do.
    rival: Board,
}

impl Timed {
    /// Makes the largest time small: a greedy on time, whose fullest node is then relieved by moving
    /// experts and, where tokens rule, by cutting one in two.
    ///
    /// Where an expert costs the same for any of the experts on a node (reading weights rules) the
    /// result is the true minimum, whatever the nodes' speeds and backlogs. In general that is
    /// out of reach (makespan on unrelated machines), but no policy that counts does better.
    pub(super) fn place(
        &mut self,
        board: &mut Board,
        search: &mut Search,
        instance: &Instance<'_>,
    ) {
        board.clear(instance, Measure::Time);
        greedy::place(board, instance, self.order.costliest_first(board, instance));
        self.cuts.begin(instance);
        self.improve(board, search, instance);
        count::metro(&mut self.rival, instance, Measure::Count);
        self.outdo_rival(board, search, instance);
        count::aebs(&mut self.rival, instance, Measure::Count);
        self.outdo_rival(board, search, instance);
        count::relieve(&mut self.rival, search, instance);
        self.outdo_rival(board, search, instance);
    }

    /// Goes on from where counting would end, if that is better than what was found.
    fn outdo_rival(&self, board: &mut Board, search: &mut Search, instance: &Instance<'_>) {
        if board.learn_from(&self.rival, instance) {
            self.improve(board, search, instance);
        }
    }

    fn improve(&self, board: &mut Board, search: &mut Search, instance: &Instance<'_>) {
        let hosts = instance.hosts;
        search.begin(board, hosts);
        for _ in 0..ROUNDS_PER_REPLICA * hosts.replicas_all() {
            let Some(fullest) = board.fullest() else { return };
            if search.relieve(board, hosts, fullest) {
                continue;
            }
            let Some(cut) = self.cuts.best(board, instance, fullest) else { return };
            if board.chosen(cut.expert).is_some() {
                search.leave(hosts, cut.expert, fullest);
            }
            board.cut(hosts, &cut);
        }
    }
}

/// The order of a greedy on time. Its vector keeps its room from call to call.
#[derive(Debug, Default)]
struct Order {
    /// What an expert is sorted by, and which it is, in one number: whether it has a choice (1 bit),
    /// how much less than [`NS_MAX`] it costs where it costs least (47), and its rank (16).
    keys: Vec<u64>,
}

impl Order {
    /// Experts without a choice first, since they stay where they are; then the costliest, since
    /// small ones fill the gaps that large ones leave; then those with the fewest hosts.
    fn costliest_first<'a>(
        &'a mut self,
        board: &Board,
        instance: &Instance<'a>,
    ) -> impl Iterator<Item = usize> + use<'a> {
        let Instance { hosts, tokens, .. } = *instance;
        self.keys.clear();
        self.keys.reserve(hosts.experts());
        for (rank, expert) in (0_u64..).zip(hosts.fewest_first()) {
            if tokens[expert] > 0 {
                let replicas = hosts.replicas(expert);
                let choice = u64::from(replicas.len() > 1);
                let least = replicas.map(|replica| board.cost(replica)).min().unwrap_or(0);
                self.keys.push((choice << 63) | ((NS_MAX - least) << 16) | rank);
            }
        }
        self.keys.sort_unstable();
        #[expect(clippy::cast_possible_truncation, reason = "the rank is what is wanted")]
        self.keys.iter().map(|&key| hosts.ranked(usize::from(key as u16)))
    }
}
