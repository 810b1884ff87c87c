//! Spans that are ready, stage by stage, and which stage runs next: by score, or all together in lockstep.

use std::{collections::VecDeque, time::Duration};

use policy::batching::{self, Batcher, Decision, Tuning};

/// The ready spans of every stage and the rule that picks among them.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Span keys with their rows and since when they are ready.
    stages: Vec<VecDeque<Entry>>,
    rows: Vec<u32>,
    /// Rows that experts have, per stage that they come from.
    away: Vec<u32>,
    schedule: Schedule,
    rows_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    span: usize,
    rows: usize,
    since_ns: u64,
}

#[derive(Debug)]
enum Schedule {
    Async(Box<Batcher>),
    Lockstep(Lockstep),
}

/// Lockstep mode: all spans of a step go through the layers side by side.
#[derive(Debug, Default)]
struct Lockstep {
    /// The running step, or the last one.
    step: u64,
    /// The newest step that another node has begun.
    heard: u64,
    /// Where the batch stands; none between steps.
    stage: Option<usize>,
    /// Spans of the batch that have not left it.
    batch: usize,
}

/// What the engine should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing before something comes.
    Rest,
    /// Wait until then, or until something comes: what is ready is worth more with what is away.
    Hold {
        /// On the clock of [`Ready::pick`].
        until_ns: u64,
    },
    /// Run the spans that were drained from this stage.
    Run(usize),
    /// Lockstep mode: another node runs this step and this one has nothing for it, so its frames
    /// of all layers are empty.
    Empty(u64),
}

// === impl Ready ===

impl Ready {
    /// Empty queues for `stages` stages, run asynchronously.
    pub(crate) fn asynchronous(stages: usize, tuning: Tuning) -> Self {
        let schedule = Schedule::Async(Box::new(Batcher::new(stages, 1, tuning)));
        Self::new(stages, schedule, tuning.drain_max)
    }

    /// Empty queues for `stages` stages, run in lockstep with all other attention nodes.
    pub(crate) fn lockstep(stages: usize) -> Self {
        Self::new(stages, Schedule::Lockstep(Lockstep::default()), usize::MAX)
    }

    fn new(stages: usize, schedule: Schedule, rows_max: usize) -> Self {
        let queues = std::iter::repeat_with(VecDeque::new).take(stages).collect();
        Self { stages: queues, rows: vec![0; stages], away: vec![0; stages], schedule, rows_max }
    }

    /// Lockstep mode's running step; 0 in asynchronous mode.
    pub(crate) fn step(&self) -> u64 {
        match &self.schedule {
            Schedule::Async(_) => 0,
            Schedule::Lockstep(lockstep) => lockstep.step,
        }
    }

    /// Lockstep mode: the running step, or the last one, and the stage that its batch is at; none
    /// when it has passed all stages.
    pub(crate) fn position(&self) -> Option<(u64, Option<usize>)> {
        match &self.schedule {
            Schedule::Lockstep(lockstep) if lockstep.step > 0 => {
                Some((lockstep.step, lockstep.stage))
            }
            Schedule::Lockstep(_) | Schedule::Async(_) => None,
        }
    }

    /// Another node has begun this step.
    pub(crate) fn hear(&mut self, step: u64) {
        if let Schedule::Lockstep(lockstep) = &mut self.schedule {
            lockstep.heard = lockstep.heard.max(step);
        }
    }

    /// A span is ready for `stage`.
    pub(crate) fn push(&mut self, stage: usize, span: usize, rows: usize, now_ns: u64) {
        self.stages[stage].push_back(Entry { span, rows, since_ns: now_ns });
        self.note(stage);
    }

    /// A span is gone: it is cancelled or has to start again.
    pub(crate) fn remove(&mut self, span: usize) {
        for stage in 0..self.stages.len() {
            self.stages[stage].retain(|entry| entry.span != span);
            self.note(stage);
        }
    }

    /// Rows of a stage went to their experts.
    pub(crate) fn leave(&mut self, stage: usize, rows: usize) {
        self.away[stage] += u32::try_from(rows).unwrap_or(u32::MAX);
        self.follow(stage);
    }

    /// Rows that had left this stage are back, or nobody wants them any more.
    pub(crate) fn come_back(&mut self, stage: usize, rows: usize) {
        self.away[stage] -= u32::try_from(rows).unwrap_or(u32::MAX);
        self.follow(stage);
    }

    fn follow(&mut self, stage: usize) {
        if let Schedule::Async(batcher) = &mut self.schedule {
            batcher.follow(stage + 1, self.away[stage].into());
        }
    }

    /// Puts the rows that come to each layer's experts next into `behind`: nothing in lockstep mode,
    /// where nobody can do anything about it.
    pub(crate) fn behind(&self, behind: &mut Vec<u32>) {
        behind.clear();
        if matches!(self.schedule, Schedule::Async(_)) {
            let layers = self.rows.len() - 1;
            let (ready, away) = (self.rows[..layers].iter(), self.away.iter());
            behind.extend(batching::rows_behind(ready.copied(), away.copied()));
        }
    }

    /// A run took so long.
    pub(crate) fn ran(&mut self, time: Duration) {
        if let Schedule::Async(batcher) = &mut self.schedule {
            batcher.ran(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// A span has left the batch that it ran with: at the head, or because it is gone.
    pub(crate) fn left_batch(&mut self) {
        if let Schedule::Lockstep(lockstep) = &mut self.schedule {
            lockstep.batch = lockstep.batch.saturating_sub(1);
            if lockstep.batch == 0 {
                lockstep.stage = None;
            }
        }
    }

    /// Picks a stage and drains its spans into `spans`.
    pub(crate) fn pick(&mut self, now_ns: u64, spans: &mut Vec<usize>) -> Turn {
        spans.clear();
        let turn = match &mut self.schedule {
            Schedule::Async(batcher) => match batcher.decide(now_ns) {
                Decision::Run(pick) => Turn::Run(pick.stage),
                Decision::Hold { until_ns } => Turn::Hold { until_ns },
                Decision::Rest => Turn::Rest,
            },
            Schedule::Lockstep(lockstep) => lockstep.pick(&self.stages).unwrap_or(Turn::Rest),
        };
        let Turn::Run(stage) = turn else { return turn };
        let queue = &mut self.stages[stage];
        let mut rows = 0;
        while let Some(entry) = queue.front().copied() {
            if !spans.is_empty() && rows + entry.rows > self.rows_max {
                break;
            }
            rows += entry.rows;
            spans.push(entry.span);
            queue.pop_front();
        }
        self.note(stage);
        turn
    }

    fn note(&mut self, stage: usize) {
        let queue = &self.stages[stage];
        let rows: usize = queue.iter().map(|entry| entry.rows).sum();
        self.rows[stage] = u32::try_from(rows).unwrap_or(u32::MAX);
        if let Schedule::Async(batcher) = &mut self.schedule {
            let oldest = queue.front().map_or(0, |entry| entry.since_ns);
            batcher.set(stage, 0, self.rows[stage], oldest);
        }
    }

    /// Rows that are ready, per stage.
    pub(crate) fn rows_per_stage(&self) -> &[u32] {
        &self.rows
    }

    /// Rows that are ready, over all stages.
    pub(crate) fn rows(&self) -> u32 {
        self.rows.iter().sum()
    }
}

// === impl Lockstep ===

impl Lockstep {
    fn pick(&mut self, stages: &[VecDeque<Entry>]) -> Option<Turn> {
        let Some(stage) = self.stage else { return self.begin(&stages[0]) };
        // The whole batch has to be back before any of it goes on.
        let next = (stage + 1..stages.len()).find(|&stage| !stages[stage].is_empty())?;
        if stages[next].len() < self.batch {
            return None;
        }
        self.stage = Some(next);
        Some(Turn::Run(next))
    }

    fn begin(&mut self, first: &VecDeque<Entry>) -> Option<Turn> {
        if !first.is_empty() {
            // A node that joins late takes part in the step that the others are in.
            self.step = self.heard.max(self.step + 1);
            self.batch = first.len();
            self.stage = Some(0);
            return Some(Turn::Run(0));
        }
        if self.heard > self.step {
            self.step = self.heard;
            return Some(Turn::Empty(self.step));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(ready: &mut Ready) -> (Turn, Vec<usize>) {
        let mut spans = Vec::new();
        let turn = ready.pick(0, &mut spans);
        (turn, spans)
    }

    #[test]
    fn async_takes_the_best_stage_up_to_the_cap() {
        let tuning = Tuning { drain_max: 4, lookback: 0, ..Tuning::default() };
        let mut ready = Ready::asynchronous(3, tuning);
        ready.push(1, 10, 3, 0);
        ready.push(1, 11, 1, 0);
        ready.push(1, 12, 2, 0);
        ready.push(2, 13, 9, 0);
        assert_eq!(ready.rows(), 15);
        assert_eq!(drained(&mut ready), (Turn::Run(1), vec![10, 11]), "6 + 0.8·9 beats 9 + 0.64·6");
        assert_eq!(drained(&mut ready), (Turn::Run(2), vec![13]), "one span always fits");
        ready.remove(12);
        assert_eq!(drained(&mut ready), (Turn::Rest, vec![]));
    }

    #[test]
    fn lockstep_waits_for_the_whole_batch() {
        let mut ready = Ready::lockstep(3);
        ready.push(0, 1, 1, 0);
        ready.push(0, 2, 4, 0);
        assert_eq!(drained(&mut ready), (Turn::Run(0), vec![1, 2]));
        assert_eq!(ready.step(), 1);
        ready.push(0, 3, 1, 0);
        ready.push(1, 2, 4, 0);
        assert_eq!(drained(&mut ready).0, Turn::Rest, "span 1 is not back, span 3 came too late");
        ready.push(1, 1, 1, 0);
        assert_eq!(drained(&mut ready), (Turn::Run(1), vec![2, 1]));
        ready.push(2, 1, 1, 0);
        ready.left_batch();
        assert_eq!(drained(&mut ready), (Turn::Run(2), vec![1]), "span 2 was cancelled");
        ready.left_batch();
        assert_eq!(drained(&mut ready), (Turn::Run(0), vec![3]));
        assert_eq!(ready.step(), 2);
    }

    #[test]
    fn lockstep_keeps_step_with_nodes_that_have_work() {
        let mut ready = Ready::lockstep(2);
        assert_eq!(drained(&mut ready).0, Turn::Rest);
        ready.hear(5);
        assert_eq!(drained(&mut ready).0, Turn::Empty(5));
        assert_eq!(drained(&mut ready).0, Turn::Rest, "once per step");
        ready.push(0, 1, 1, 0);
        assert_eq!(drained(&mut ready).0, Turn::Run(0));
        assert_eq!(ready.step(), 6);
        ready.hear(7);
        assert_eq!(drained(&mut ready).0, Turn::Rest, "not in the middle of a step");
        ready.left_batch();
        assert_eq!(drained(&mut ready).0, Turn::Empty(7));
        ready.hear(12);
        ready.push(0, 2, 1, 0);
        assert_eq!(drained(&mut ready).0, Turn::Run(0));
        assert_eq!(ready.step(), 12, "behind the others it joins their step");
    }

    #[test]
    fn async_holds_what_is_worth_more_with_what_is_away() {
        let mut ready = Ready::asynchronous(3, Tuning::default());
        (0..20).for_each(|_| ready.ran(Duration::from_micros(100)));
        ready.push(0, 10, 1, 0);
        ready.push(0, 11, 5, 0);
        assert_eq!(drained(&mut ready), (Turn::Run(0), vec![10, 11]));
        ready.leave(0, 6);
        let behind = |ready: &Ready| {
            let mut behind = vec![9];
            ready.behind(&mut behind);
            behind
        };
        assert_eq!(behind(&ready), [0, 6], "the head has no experts");
        ready.come_back(0, 1);
        ready.push(1, 10, 1, 0);
        assert!(matches!(drained(&mut ready).0, Turn::Hold { .. }), "five more are away");
        ready.come_back(0, 5);
        ready.push(1, 11, 5, 0);
        assert_eq!(behind(&ready), [0, 6]);
        assert_eq!(drained(&mut ready), (Turn::Run(1), vec![10, 11]));
        let mut lockstep = Ready::lockstep(3);
        lockstep.leave(0, 6);
        assert_eq!(behind(&lockstep), [0; 0]);
    }
}
