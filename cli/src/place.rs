//! `amoe place`: one placement of experts, from a trace and cost curves to a plan, its cost and a picture.

mod answer;
mod picture;
mod trace;

use std::{
    fs,
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use domain::{CostCurve, Epoch, Expert, Layer, ModelShape, NodeId, Plan, Profile, Trace};
use policy::placement::{
    Facts, Grouping, Host, Input, Limits, Policy, Proposal, Spare, check, place,
};

use crate::{plan::table, route, stdout};
use answer::Answer;

/// What the plan is compared with.
const RIVALS: [Policy; 3] = [Policy::Linear, Policy::Eplb, Policy::Gem];

/// Flags of `amoe place`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// How the plan is made: linear, eplb, gem or incremental.
    #[arg(long, default_value = "gem", value_name = "NAME")]
    policy: Policy,
    /// Lines of `{"step": 0, "layer": 0, "tokens": [tokens of expert 0, of expert 1, ...]}`.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Cost curves of one node that all are like, or of each, as `amoe profile` writes them. Without
    /// them all nodes are equal and time is in proportion to tokens.
    #[arg(long, value_name = "FILE")]
    curves: Option<PathBuf>,
    /// Nodes.
    #[arg(long, value_name = "N")]
    nodes: NonZeroU16,
    /// Slots of each node per layer: a node holds at most this many times the layers.
    #[arg(long, value_name = "S")]
    slots: NonZeroU32,
    /// Further replicas per layer, in slots that the first ones leave.
    #[arg(long, default_value_t = 0, value_name = "R")]
    replicas: u32,
    /// For `incremental`: the plan that serves, as `amoe plan export` writes it.
    #[arg(long, value_name = "FILE", required_if_eq("policy", "incremental"))]
    from: Option<PathBuf>,
    /// For `incremental`: swaps at most.
    #[arg(long, default_value_t = Limits::default().swaps_max, value_name = "N")]
    swaps: u32,
    /// For `eplb`: groups of experts that stay on one machine, for its hierarchical form.
    #[arg(long, default_value_t = Grouping::default().groups, value_name = "N")]
    groups: u16,
    /// For `eplb`: machines, each with equally many nodes in a row.
    #[arg(long, default_value_t = Grouping::default().machines, value_name = "N")]
    machines: u16,
    /// For `gem`: seed of random changes. Equal seeds give equal plans.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Draw which node holds which expert, and when nodes finish.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// What is placed where.
#[derive(Debug)]
struct Cluster {
    shape: ModelShape,
    trace: Trace,
    names: Vec<String>,
    hosts: Vec<Host>,
    curves: Vec<CostCurve>,
}

/// Prints the plan.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let cluster = Cluster::read(flags)?;
    let serving = match &flags.from {
        Some(file) => Some(cluster.plan(file)?),
        None => None,
    };
    let input = Input {
        serving: serving.as_ref(),
        spare: Spare::UpTo(flags.replicas),
        trace: Some(&cluster.trace),
        curves: &cluster.curves,
        grouping: Grouping { groups: flags.groups, machines: flags.machines },
        seed: flags.seed,
        ..Input::new(Epoch(2), &cluster.shape, &cluster.hosts)
    };
    let policy = match flags.policy {
        Policy::Incremental(limits) => {
            Policy::Incremental(Limits { swaps_max: flags.swaps, ..limits })
        }
        policy => policy,
    };
    let proposal = propose(policy, &input)?;
    let mut rivals = Vec::new();
    for rival in RIVALS.into_iter().filter(|rival| *rival != policy) {
        rivals.push(propose(rival, &input)?);
    }
    let answer = Answer::new(&cluster, &proposal, &rivals);
    if let Some(file) = &flags.plot {
        let picture = picture::draw(&cluster, &proposal.plan, &answer.headline());
        fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let text = if flags.json { serde_json::to_string(&answer)? + "\n" } else { answer.to_string() };
    stdout::print(text)
}

fn propose(policy: Policy, input: &Input<'_>) -> Result<Proposal> {
    let proposal = place(policy, input).map_err(|why| anyhow::anyhow!("{policy}: {why}"))?;
    let facts = Facts {
        serving: input.serving.map(Plan::epoch),
        newest: Epoch(1),
        equal_slots: policy.equal_slots(),
        ..Facts::new(input.shape, input.hosts)
    };
    if let Some(violation) = check(&proposal.plan, &facts).first() {
        bail!("the checker refuses {policy}'s plan: {violation}");
    }
    Ok(proposal)
}

// === impl Cluster ===

impl Cluster {
    fn read(flags: &Flags) -> Result<Self> {
        let trace::Read { layers, experts, trace } = trace::read(&flags.trace)?;
        let (nodes, slots) = (u32::from(flags.nodes.get()), flags.slots.get());
        let per_layer = u64::from(nodes) * u64::from(slots);
        let needed = u64::from(experts) + u64::from(flags.replicas);
        ensure!(
            per_layer >= needed,
            "flag `--slots` is {slots}: {nodes} nodes have {per_layer} slots per layer, expected at \
             least {needed} for {experts} experts and {} further replicas",
            flags.replicas
        );
        let room =
            slots.checked_mul(u32::try_from(layers.len())?).context("flag `--slots`: too large")?;
        let (names, curves) = profiles(flags.curves.as_deref(), flags.nodes.get().into())?;
        Ok(Self {
            shape: ModelShape {
                layers: layers.last().map_or(0, |layer| layer.0) + 1,
                moe_layers: layers,
                experts,
                top_k: 1,
                hidden: 1,
                expert_bytes: 1,
                vocab: 1,
                positions_max: 1,
            },
            trace,
            names,
            hosts: (0..nodes).map(|id| Host { id: NodeId(id), slots: room }).collect(),
            curves,
        })
    }

    /// A plan of this cluster's nodes from a file.
    fn plan(&self, file: &Path) -> Result<Plan> {
        let table = route::parse(&read(file)?);
        let table = table.with_context(|| format!("{} is no plan", file.display()))?;
        let plan = self.of_names(&table);
        plan.with_context(|| format!("{} is no plan of these nodes", file.display()))
    }

    fn of_names(&self, table: &table::Plan) -> Result<Plan> {
        let layers: Vec<u32> = table.layers.iter().map(|layer| layer.layer).collect();
        let expected: Vec<u32> = self.shape.moe_layers.iter().map(|layer| layer.0.into()).collect();
        ensure!(layers == expected, "it has layers {layers:?}, the trace {expected:?}");
        let mut rows = Vec::new();
        for (layer, names) in table
            .layers
            .iter()
            .flat_map(|layer| layer.experts.iter().map(move |names| (layer.layer, names)))
        {
            let id = |name: &String| {
                let at = self.names.iter().position(|known| known == name);
                let at = at.with_context(|| {
                    format!("layer {layer} names node `{name}`, which is unknown")
                })?;
                Ok(self.hosts[at].id)
            };
            rows.push(names.iter().map(id).collect::<Result<_>>()?);
        }
        Ok(Plan::new(Epoch(1), None, &self.shape, rows)?)
    }

    /// The table of a plan, by the names of nodes.
    fn table(&self, plan: &Plan) -> table::Plan {
        let names = |layer: Layer, expert| {
            let nodes = plan.replicas(layer, Expert(expert)).iter();
            nodes.map(|node| self.names[node.0 as usize].clone()).collect()
        };
        let layer = |&layer: &Layer| table::Layer {
            layer: layer.0.into(),
            experts: (0..plan.experts()).map(|expert| names(layer, expert)).collect(),
        };
        table::Plan { epoch: 0, layers: plan.moe_layers().iter().map(layer).collect() }
    }
}

/// Names and layer curves of `nodes` nodes; no curves without a file.
fn profiles(file: Option<&Path>, nodes: usize) -> Result<(Vec<String>, Vec<CostCurve>)> {
    let numbers = || (0..nodes).map(|node| node.to_string()).collect();
    let Some(file) = file else { return Ok((numbers(), vec![])) };
    let profile = route::parse(&read(file)?);
    let Profile { nodes: profiles } =
        profile.with_context(|| format!("{} is no curve file", file.display()))?;
    if let [only] = &profiles[..] {
        return Ok((numbers(), vec![only.layer.clone(); nodes]));
    }
    let found = profiles.len();
    ensure!(
        found == nodes,
        "{} has curves of {found} nodes, expected 1 or {nodes}",
        file.display()
    );
    let (names, curves): (Vec<String>, Vec<CostCurve>) =
        profiles.into_iter().map(|profile| (profile.name, profile.layer)).unzip();
    let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    if let Some((_, name)) = twice {
        bail!("{} names node `{name}` twice", file.display());
    }
    Ok((names, curves))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_goes_out_by_names_and_comes_back() {
        let shape = ModelShape {
            layers: 3,
            moe_layers: vec![Layer(0), Layer(2)],
            experts: 2,
            top_k: 1,
            hidden: 1,
            expert_bytes: 1,
            vocab: 1,
            positions_max: 1,
        };
        let cluster = Cluster {
            trace: Trace::new(2, 2),
            names: vec!["a".to_owned(), "b".to_owned()],
            hosts: [0, 1].map(|id| Host { id: NodeId(id), slots: 4 }).to_vec(),
            curves: vec![],
            shape: shape.clone(),
        };
        let rows = [&[0][..], &[0, 1], &[1], &[0]];
        let rows = rows.map(|row| row.iter().map(|&id| NodeId(id)).collect()).to_vec();
        let plan = Plan::new(Epoch(1), None, &shape, rows).unwrap();
        let mut table = cluster.table(&plan);
        assert_eq!(table.layers[0].experts[1], ["a", "b"]);
        assert_eq!(cluster.of_names(&table).unwrap(), plan);
        table.layers[1].experts[0] = vec!["c".to_owned()];
        let error = cluster.of_names(&table).unwrap_err().to_string();
        assert_eq!(error, "layer 2 names node `c`, which is unknown");
        table.layers.pop();
        let error = cluster.of_names(&table).unwrap_err().to_string();
        assert_eq!(error, "it has layers [0], the trace [0, 2]");
    }
}
