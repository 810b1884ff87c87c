//! Leases are renewed and experts are placed: at the start from a trace drawn from the skew, and while serving.

use std::sync::Arc;

use domain::{CostCurve, Digest, Epoch, Plan, Trace};
use policy::{
    batching::pairs_coming,
    placement::{Basis, Facts, Input, Spare, check, place},
};

use super::Engine;
use crate::{
    agenda::Event,
    cluster::Cluster,
    experts::Experts,
    judge::{Violation, Wrong},
    skew::Chooser,
    spec::{Run, ns_of_us},
};

/// Intervals that online placement looks back on.
const RECENT_MAX: usize = 64;

/// Serial numbers from which the sequences of the first plan's trace are counted, so that it is not
/// drawn from what the run then sees.
const DRAWN_FROM: u64 = 1 << 48;

/// The first plan of a run, from a trace that is drawn from its skew.
pub(super) fn first(
    run: &Run,
    cluster: &Cluster,
    chooser: &mut Chooser,
) -> Result<(Arc<Plan>, Basis), String> {
    let trace = drawn(run, cluster, chooser);
    let mut input = Input::new(Cluster::FIRST_EPOCH, &cluster.shape, &cluster.hosts);
    input.spare = Spare::UpTo(cluster.further);
    input.trace = Some(&trace);
    input.curves = &cluster.layer_curves;
    input.seed = run.seed;
    let proposal = place(run.placement.policy, &input).map_err(|error| error.to_string())?;
    checked(&proposal.plan, cluster, None).map_err(|why| format!("placement: {why}"))?;
    Ok((Arc::new(proposal.plan), Basis::of(&input)))
}

fn drawn(run: &Run, cluster: &Cluster, chooser: &mut Chooser) -> Trace {
    let (layers, experts) = (cluster.layers(), cluster.experts_per_layer());
    let mut trace = Trace::new(layers, experts);
    let mut counts = vec![0; layers * experts];
    let mut row = vec![0; cluster.costs.top_k.into()];
    for step in 0..run.placement.trace_steps {
        counts.fill(0);
        for token in 0..u64::from(run.placement.trace_tokens) {
            for layer in 0..cluster.costs.layers {
                chooser.choose(layer, DRAWN_FROM + token, step, &mut row);
                for &expert in &row {
                    counts[usize::from(layer) * experts + usize::from(expert)] += 1;
                }
            }
        }
        trace.push(&counts).expect("the counts are those of the trace's layers and experts");
    }
    trace
}

fn checked(plan: &Plan, cluster: &Cluster, serving: Option<Epoch>) -> Result<(), String> {
    let facts = Facts {
        serving,
        newest: serving.unwrap_or_default(),
        ..Facts::new(&cluster.shape, &cluster.hosts)
    };
    match check(plan, &facts).first() {
        Some(violation) => Err(violation.to_string()),
        None => Ok(()),
    }
}

impl Engine<'_> {
    /// Notes when the lease is renewed next, where there is anything to renew.
    pub(super) fn renew_at(&mut self, now_ns: u64) {
        if self.gathers.is_empty() || self.run.placement.online.is_some() {
            let lease_ns = ns_of_us(self.run.routing.lease_ms * 1e3).max(1);
            self.agenda.note(now_ns + lease_ns, Event::Renew);
        }
    }

    pub(super) fn on_renew(&mut self) -> Result<(), Violation> {
        self.recent
            .push(&self.activations)
            .expect("the counts are those of the trace's layers and experts");
        self.recent.truncate_front(RECENT_MAX);
        let layers = self.cluster.layers() * self.experts.len();
        let runs = u32::try_from(self.launches / layers as u64).unwrap_or(u32::MAX).max(1);
        self.renew(runs)?;
        self.activations.fill(0);
        self.launches = 0;
        self.renew_at(self.agenda.now_ns());
        Ok(())
    }

    fn renew(&mut self, runs: u32) -> Result<(), Violation> {
        let waiting = |(node, curve): (&Experts, &CostCurve)| -> u64 {
            node.queues.tokens_by_queue().map(|tokens| curve.ns(tokens)).sum()
        };
        let backlog_ns: Vec<u64> =
            self.experts.iter().zip(&self.cluster.curves).map(waiting).collect();
        self.routes.renew(&self.activations, runs, &backlog_ns, &self.cluster.curves);
        self.check_lease()
    }

    /// Tells expert nodes what waits in the cluster, as the coordinator does.
    pub(super) fn on_digest(&mut self) {
        let layers = self.cluster.layers();
        let mut digest = Digest { rows: vec![0; layers + 1], pairs: vec![0; layers] };
        for node in &self.attention {
            for (rows, queue) in digest.rows.iter_mut().zip(&node.ready) {
                *rows += queue.rows;
            }
        }
        let own = |node: &Experts, layer: usize| node.queues.layer(layer).tokens;
        for node in &self.experts {
            for (layer, pairs) in digest.pairs.iter_mut().enumerate() {
                *pairs += own(node, layer);
            }
        }
        let now_ns = self.agenda.now_ns();
        let nodes = u32::try_from(self.experts.len()).unwrap_or(u32::MAX);
        let top_k = self.cluster.costs.top_k.into();
        for node in &self.experts {
            let coming = pairs_coming(&digest, |layer| own(node, layer), nodes, top_k);
            self.devices[node.device].hear(coming, now_ns);
        }
        self.digest_at(now_ns);
    }

    /// Notes when what waits is told next, if it is told at all.
    pub(super) fn digest_at(&mut self, now_ns: u64) {
        if let (true, Some(every_ms)) = (self.gathers.is_empty(), self.run.batching.digest_every_ms)
        {
            self.agenda.note(now_ns + ns_of_us(every_ms * 1e3).max(1), Event::Digest);
        }
    }

    /// Every leased node holds its expert.
    fn check_lease(&self) -> Result<(), Violation> {
        match self.routes.astray() {
            Some((layer, expert, node)) => {
                Err(self.judge.wrong(Wrong::NotHeld { layer, expert, node }))
            }
            None => Ok(()),
        }
    }

    /// Thinks placement over; a plan that differs from the serving one is loaded in the background.
    pub(super) fn on_replan(&mut self) -> Result<(), Violation> {
        let Some(online) = self.run.placement.online else { return Ok(()) };
        self.agenda.note(self.agenda.now_ns() + ns_of_us(online.every_ms * 1e3), Event::Replan);
        if self.loading.is_some() || self.recent.steps() == 0 {
            return Ok(());
        }
        let serving = self.routes.plan();
        let epoch = serving.epoch();
        let mut input = Input::new(Epoch(epoch.0 + 1), &self.cluster.shape, &self.cluster.hosts);
        input.serving = Some(serving);
        input.basis = Some(&self.basis);
        input.spare = Spare::UpTo(self.cluster.further);
        input.trace = Some(&self.recent);
        input.curves = &self.cluster.layer_curves;
        input.seed = self.run.seed;
        let proposal = place(online.policy, &input)
            .map_err(|error| self.judge.wrong(Wrong::BadPlan(error.to_string())))?;
        checked(&proposal.plan, &self.cluster, Some(epoch))
            .map_err(|why| self.judge.wrong(Wrong::BadPlan(why)))?;
        let mut gained = vec![0_u64; self.cluster.experts];
        for (old, new) in serving.table().zip(proposal.plan.table()) {
            for node in new.iter().filter(|node| !old.contains(node)) {
                gained[node.0 as usize] += 1;
            }
        }
        let most = gained.iter().copied().max().unwrap_or(0);
        if most > 0 {
            let revision = proposal.explanation.revision.as_ref();
            if !revision.is_some_and(|revision| revision.limited) {
                self.basis = Basis::of(&input);
            }
            self.meter.moved += gained.iter().sum::<u64>();
            self.loading = Some(Arc::new(proposal.plan));
            #[expect(clippy::cast_precision_loss, reason = "a time, not a count")]
            let seconds = (most * self.cluster.costs.expert_bytes) as f64 / online.bytes_per_s;
            self.agenda.note(self.agenda.now_ns() + ns_of_us(seconds * 1e6), Event::Loaded);
        }
        Ok(())
    }

    /// All nodes have loaded the next plan: it serves. What is queued where it was sent is run there.
    pub(super) fn on_loaded(&mut self) -> Result<(), Violation> {
        let Some(plan) = self.loading.take() else { return Ok(()) };
        self.judge.epoch(plan.epoch())?;
        self.meter.plans += 1;
        self.routes.serve(plan);
        self.renew(1)
    }
}
