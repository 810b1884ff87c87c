//! Splits an expert over its hosts where its tokens, not its weights, are what costs.

use super::{Instance, board::Board};

/// A cut has to lower the largest time by this part of it: less is not worth a further activation.
const GAIN: u64 = 256;

/// Tokens of one expert that move from one of its replicas to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) expert: usize,
    /// Replica that gives.
    pub(super) from: usize,
    /// Replica that takes.
    pub(super) to: usize,
    /// Tokens that move.
    pub(super) tokens: u32,
    /// Load of the giving node afterwards.
    pub(super) load_from: u64,
    /// Load of the taking node afterwards.
    pub(super) load_to: u64,
}

/// Which experts of an instance may be split. Its vectors keep their room from call to call.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    /// Per node, the tokens up to which reading an expert's weights rules.
    ridges: Vec<u32>,
    /// Experts that are past a ridge and have several hosts.
    heavy: Vec<u16>,
}

impl Cuts {
    /// Finds the experts that may be split.
    pub(super) fn begin(&mut self, instance: &Instance<'_>) {
        let hosts = instance.hosts;
        self.ridges.clear();
        self.ridges.extend(instance.curves.iter().map(domain::CostCurve::ridge));
        self.heavy.clear();
        self.heavy.reserve(hosts.experts());
        let Some(&lowest) = self.ridges.iter().min() else { return };
        let several = |expert: &usize| hosts.of(*expert).len() > 1;
        #[expect(clippy::cast_possible_truncation, reason = "experts fit u16")]
        self.heavy.extend(
            (0..hosts.experts())
                .filter(|&expert| instance.tokens[expert] > lowest)
                .filter(several)
                .map(|expert| expert as u16),
        );
    }

    /// The cut that takes most off `fullest`, if one is worth it.
    pub(super) fn best(
        &self,
        board: &Board,
        instance: &Instance<'_>,
        fullest: usize,
    ) -> Option<Cut> {
        let hosts = instance.hosts;
        let limit = board.load(fullest);
        let worth = limit - limit / GAIN;
        let ridge = *self.ridges.get(fullest)?;
        let mut best: Option<Cut> = None;
        for expert in self.heavy.iter().map(|&expert| usize::from(expert)) {
            if instance.tokens[expert] <= ridge {
                continue;
            }
            let here = |&replica: &usize| usize::from(hosts.node(replica)) == fullest;
            let Some(from) = hosts.replicas(expert).find(here) else { continue };
            if board.parts()[from] == 0 {
                continue;
            }
            for to in hosts.replicas(expert).filter(|&to| to != from) {
                let cut = level(
                    board,
                    instance,
                    Cut { expert, from, to, tokens: 0, load_from: 0, load_to: 0 },
                );
                if cut.largest() < best.map_or(worth, |best| best.largest()) {
                    best = Some(cut);
                }
            }
        }
        best
    }
}

impl Cut {
    fn largest(&self) -> u64 {
        self.load_from.max(self.load_to)
    }
}

/// The number of tokens to move that makes the fuller of the two nodes least full; the smallest
/// such number, since tiles that are begun anyway are free.
fn level(board: &Board, instance: &Instance<'_>, cut: Cut) -> Cut {
    let hosts = instance.hosts;
    let (giver, taker) = (hosts.node(cut.from), hosts.node(cut.to));
    let (has, gets) = (board.parts()[cut.from], board.parts()[cut.to]);
    let giver_rest = board.load(usize::from(giver)) - instance.cost_ns(giver, has);
    let taker_rest = board.load(usize::from(taker)) - instance.cost_ns(taker, gets);
    let moving = |tokens: u32| Cut {
        tokens,
        load_from: giver_rest + instance.cost_ns(giver, has - tokens),
        load_to: taker_rest + instance.cost_ns(taker, gets + tokens),
        ..cut
    };
    // The giver's load falls with the tokens that move and the taker's grows: they cross once.
    let crossing = first(1, has, |tokens| {
        let cut = moving(tokens);
        cut.load_to >= cut.load_from
    });
    let after = moving(crossing);
    let before = moving(crossing.max(2) - 1);
    if after.largest() < before.largest() {
        return after;
    }
    let same = first(1, before.tokens, |tokens| moving(tokens).load_from <= before.load_from);
    moving(same)
}

/// The first number in `low..=high` for which `holds`, which stays true once it is; else `high`.
fn first(mut low: u32, mut high: u32, holds: impl Fn(u32) -> bool) -> u32 {
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}
