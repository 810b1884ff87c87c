//! Conversions of control traffic: registration, heartbeats and views of the cluster.

use std::sync::Arc;

use domain::{
    ClusterView, Curves, Epoch, Health, Layer, Load, Member, ModelShape, NodeId, Plan, Replicas,
    Role,
};

use crate::{Invalid, internal as wire};

mod guidance;
mod report;

pub use guidance::{guidance, next_guidance};
pub use report::{Drawn, Report, Response, Work};

/// What a process says of itself when it opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Unique in the cluster; the same name gets the same [`NodeId`] again.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where peers reach its data plane.
    pub address: String,
    /// Weights and the precision of rows; equal on all nodes of a cluster. Empty for a gateway.
    pub model_fingerprint: String,
    /// How its device computes; equal on all nodes of one role. Empty for a gateway.
    pub numerics: String,
    /// The model's sizes; none for a gateway.
    pub shape: Option<ModelShape>,
    /// Experts it has room for, over all layers; 0 for other roles.
    pub expert_slots: u32,
    /// Experts it holds at most at once, those of two plans together; none where that has no end of its own.
    pub experts_max: Option<u32>,
    /// The newest epoch it has served, [`Epoch`] 0 if none.
    pub epoch: Epoch,
    /// The number it had so far; a coordinator that has forgotten everything gives it again.
    pub node: Option<NodeId>,
    /// What work costs on an expert node; none if it did not measure, and for other roles.
    pub curves: Option<Curves>,
}

/// What a process says at every heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether it takes work.
    pub health: Health,
    /// How much it has.
    pub load: Load,
    /// The newest plan it is ready to serve by, [`Epoch`] 0 if none.
    pub epoch_ready: Epoch,
}

/// The coordinator's answer to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The process's number.
    pub node_id: NodeId,
    /// Without a heartbeat for this long it is taken for lost.
    pub lease_ms: u32,
    /// How often it should beat.
    pub heartbeat_ms: u32,
    /// How often it should report what it saw; 0: not at all.
    pub report_ms: u32,
}

// === small values ===

impl From<Role> for wire::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Attention => Self::Attention,
            Role::Expert => Self::Expert,
            Role::Gateway => Self::Gateway,
        }
    }
}

fn role(field: &'static str, role: i32) -> Result<Role, Invalid> {
    match wire::Role::try_from(role) {
        Ok(wire::Role::Attention) => Ok(Role::Attention),
        Ok(wire::Role::Expert) => Ok(Role::Expert),
        Ok(wire::Role::Gateway) => Ok(Role::Gateway),
        Ok(wire::Role::Unspecified) | Err(_) => {
            Err(Invalid::new(field, format!("is {role}, expected attention, expert or gateway")))
        }
    }
}

impl From<Health> for wire::Health {
    fn from(health: Health) -> Self {
        match health {
            Health::Joining => Self::Joining,
            Health::Ready => Self::Ready,
            Health::Draining => Self::Draining,
        }
    }
}

fn health(field: &'static str, health: i32) -> Result<Health, Invalid> {
    match wire::Health::try_from(health) {
        Ok(wire::Health::Joining) => Ok(Health::Joining),
        Ok(wire::Health::Ready) => Ok(Health::Ready),
        Ok(wire::Health::Draining) => Ok(Health::Draining),
        Ok(wire::Health::Unspecified) | Err(_) => {
            Err(Invalid::new(field, format!("is {health}, expected joining, ready or draining")))
        }
    }
}

impl From<Load> for wire::Load {
    fn from(load: Load) -> Self {
        Self {
            running: load.running,
            waiting: load.waiting,
            kv_blocks_free: load.kv_blocks_free,
            kv_blocks: load.kv_blocks,
            queued_pairs: load.queued_pairs,
        }
    }
}

impl From<wire::Load> for Load {
    fn from(load: wire::Load) -> Self {
        Self {
            running: load.running,
            waiting: load.waiting,
            kv_blocks_free: load.kv_blocks_free,
            kv_blocks: load.kv_blocks,
            queued_pairs: load.queued_pairs,
        }
    }
}

fn narrow<T: TryFrom<u32>>(field: &'static str, value: u32) -> Result<T, Invalid> {
    T::try_from(value).map_err(|_| Invalid::new(field, format!("is {value}, which is too large")))
}

impl From<ModelShape> for wire::ModelShape {
    fn from(shape: ModelShape) -> Self {
        Self {
            layers: u32::from(shape.layers),
            moe_layers: shape.moe_layers.iter().map(|layer| u32::from(layer.0)).collect(),
            experts: u32::from(shape.experts),
            top_k: u32::from(shape.top_k),
            hidden: shape.hidden,
            expert_bytes: shape.expert_bytes,
            vocab: shape.vocab,
            positions_max: shape.positions_max,
        }
    }
}

impl TryFrom<wire::ModelShape> for ModelShape {
    type Error = Invalid;

    fn try_from(shape: wire::ModelShape) -> Result<Self, Invalid> {
        let layers: u16 = narrow("shape.layers", shape.layers)?;
        let moe_layers = shape
            .moe_layers
            .into_iter()
            .map(|layer| narrow("shape.moe_layers", layer).map(Layer))
            .collect::<Result<Vec<_>, _>>()?;
        let ascending = moe_layers.is_sorted_by(|a, b| a < b);
        if !ascending || moe_layers.last().is_some_and(|last| last.0 >= layers) {
            let problem = format!("expected ascending layers below {layers}");
            return Err(Invalid::new("shape.moe_layers", problem));
        }
        let experts: u16 = narrow("shape.experts", shape.experts)?;
        let top_k: u8 = narrow("shape.top_k", shape.top_k)?;
        if !moe_layers.is_empty() && (top_k == 0 || u16::from(top_k) > experts) {
            let problem = format!("is {top_k}, expected 1 to the {experts} experts of a layer");
            return Err(Invalid::new("shape.top_k", problem));
        }
        Ok(Self {
            layers,
            moe_layers,
            experts,
            top_k,
            hidden: shape.hidden,
            expert_bytes: shape.expert_bytes,
            vocab: shape.vocab,
            positions_max: shape.positions_max,
        })
    }
}

// === node → coordinator ===

impl From<Registration> for wire::Register {
    fn from(registration: Registration) -> Self {
        Self {
            name: registration.name,
            role: wire::Role::from(registration.role).into(),
            address: registration.address,
            model_fingerprint: registration.model_fingerprint,
            numerics: registration.numerics,
            shape: registration.shape.map(Into::into),
            expert_slots: registration.expert_slots,
            experts_max: registration.experts_max,
            epoch: registration.epoch.0,
            node_id: registration.node.map_or(0, |node| node.0),
            curves: registration.curves.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<wire::Register> for Registration {
    type Error = Invalid;

    fn try_from(register: wire::Register) -> Result<Self, Invalid> {
        if register.name.is_empty() {
            return Err(Invalid::new("register.name", "is empty, expected a name"));
        }
        let role = role("register.role", register.role)?;
        if role != Role::Gateway && register.shape.is_none() {
            return Err(Invalid::new("register.shape", format!("is missing for an {role} node")));
        }
        Ok(Self {
            name: register.name,
            role,
            address: register.address,
            model_fingerprint: register.model_fingerprint,
            numerics: register.numerics,
            shape: register.shape.map(TryInto::try_into).transpose()?,
            expert_slots: register.expert_slots,
            experts_max: register.experts_max,
            epoch: Epoch(register.epoch),
            node: (register.node_id != 0).then_some(NodeId(register.node_id)),
            curves: register.curves.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<Beat> for wire::Heartbeat {
    fn from(beat: Beat) -> Self {
        Self {
            health: wire::Health::from(beat.health).into(),
            load: Some(beat.load.into()),
            epoch_ready: beat.epoch_ready.0,
        }
    }
}

impl TryFrom<wire::Heartbeat> for Beat {
    type Error = Invalid;

    fn try_from(beat: wire::Heartbeat) -> Result<Self, Invalid> {
        Ok(Self {
            health: health("heartbeat.health", beat.health)?,
            load: beat.load.unwrap_or_default().into(),
            epoch_ready: Epoch(beat.epoch_ready),
        })
    }
}

// === coordinator → node ===

impl From<Welcome> for wire::Welcome {
    fn from(welcome: Welcome) -> Self {
        Self {
            node_id: welcome.node_id.0,
            lease_ms: welcome.lease_ms,
            heartbeat_ms: welcome.heartbeat_ms,
            report_ms: welcome.report_ms,
        }
    }
}

impl TryFrom<wire::Welcome> for Welcome {
    type Error = Invalid;

    fn try_from(welcome: wire::Welcome) -> Result<Self, Invalid> {
        if welcome.heartbeat_ms == 0 || welcome.heartbeat_ms >= welcome.lease_ms {
            let (beat, lease) = (welcome.heartbeat_ms, welcome.lease_ms);
            let problem = format!("is {beat}, expected 1 to below the lease of {lease}");
            return Err(Invalid::new("welcome.heartbeat_ms", problem));
        }
        Ok(Self {
            node_id: NodeId(welcome.node_id),
            lease_ms: welcome.lease_ms,
            heartbeat_ms: welcome.heartbeat_ms,
            report_ms: welcome.report_ms,
        })
    }
}

impl From<&Member> for wire::Member {
    fn from(member: &Member) -> Self {
        Self {
            id: member.id.0,
            name: member.name.clone(),
            role: wire::Role::from(member.role).into(),
            address: member.address.clone(),
            health: wire::Health::from(member.health).into(),
            load: Some(member.load.into()),
        }
    }
}

impl TryFrom<wire::Member> for Member {
    type Error = Invalid;

    fn try_from(member: wire::Member) -> Result<Self, Invalid> {
        Ok(Self {
            id: NodeId(member.id),
            name: member.name,
            role: role("member.role", member.role)?,
            address: member.address,
            health: health("member.health", member.health)?,
            load: member.load.unwrap_or_default().into(),
        })
    }
}

impl From<&Plan> for wire::Plan {
    fn from(plan: &Plan) -> Self {
        let replicas = plan
            .table()
            .map(|nodes| wire::Replicas { nodes: nodes.iter().map(|node| node.0).collect() });
        Self {
            epoch: plan.epoch().0,
            parent: plan.parent().map_or(0, |epoch| epoch.0),
            replicas: replicas.collect(),
        }
    }
}

/// Reads a plan for a model of `shape`.
///
/// # Errors
/// The table does not fit the shape.
pub fn plan(plan: wire::Plan, shape: &ModelShape) -> Result<Plan, Invalid> {
    let parent = (plan.parent != 0).then_some(Epoch(plan.parent));
    let replicas: Vec<Replicas> = plan
        .replicas
        .into_iter()
        .map(|replicas| replicas.nodes.into_iter().map(NodeId).collect())
        .collect();
    Plan::new(Epoch(plan.epoch), parent, shape, replicas)
        .map_err(|error| Invalid::new("plan.replicas", error.to_string()))
}

impl From<&ClusterView> for wire::ClusterView {
    fn from(view: &ClusterView) -> Self {
        Self {
            version: view.version,
            members: view.members.iter().map(Into::into).collect(),
            shape: view.shape.clone().map(Into::into),
            serving: view.serving.as_deref().map(Into::into),
            target: view.target.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<wire::ClusterView> for ClusterView {
    type Error = Invalid;

    fn try_from(view: wire::ClusterView) -> Result<Self, Invalid> {
        let shape: Option<ModelShape> = view.shape.map(TryInto::try_into).transpose()?;
        let read = |wire: Option<wire::Plan>| -> Result<Option<Arc<Plan>>, Invalid> {
            let Some(wire) = wire else { return Ok(None) };
            let shape = shape.as_ref().ok_or_else(|| Invalid::missing("view.shape"))?;
            Ok(Some(Arc::new(plan(wire, shape)?)))
        };
        let (serving, target) = (read(view.serving)?, read(view.target)?);
        let members =
            view.members.into_iter().map(TryInto::try_into).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { version: view.version, members, shape, serving, target })
    }
}

#[cfg(test)]
mod tests {
    use domain::CostCurve;

    use super::*;

    fn shape() -> ModelShape {
        ModelShape {
            layers: 3,
            moe_layers: vec![Layer(1), Layer(2)],
            experts: 2,
            top_k: 1,
            hidden: 64,
            expert_bytes: 1000,
            vocab: 512,
            positions_max: 128,
        }
    }

    fn view() -> ClusterView {
        let member = |id, role| Member {
            id: NodeId(id),
            name: format!("node-{id}"),
            role,
            address: "127.0.0.1:1".into(),
            health: Health::Ready,
            load: Load { running: 3, kv_blocks_free: 7, ..Load::default() },
        };
        let table = vec![vec![NodeId(2)], vec![NodeId(2), NodeId(3)], vec![NodeId(3)], vec![]];
        let plan = Plan::new(Epoch(4), Some(Epoch(3)), &shape(), table).unwrap();
        ClusterView {
            version: 12,
            members: vec![member(1, Role::Attention), member(2, Role::Expert)],
            shape: Some(shape()),
            serving: Some(Arc::new(plan)),
            target: None,
        }
    }

    #[test]
    fn views_and_registrations_survive_the_wire() {
        assert_eq!(ClusterView::try_from(wire::ClusterView::from(&view())), Ok(view()));
        let registration = Registration {
            name: "expert-0".into(),
            role: Role::Expert,
            address: "127.0.0.1:9".into(),
            model_fingerprint: "f".into(),
            numerics: "amx".into(),
            shape: Some(shape()),
            expert_slots: 4,
            experts_max: Some(5),
            epoch: Epoch(2),
            node: Some(NodeId(3)),
            curves: Some(Curves {
                expert: CostCurve::new(vec![(1, 900), (16, 1000)]).unwrap(),
                layer: CostCurve::new(vec![(8, 4000)]).unwrap(),
            }),
        };
        let wire = wire::Register::from(registration.clone());
        assert_eq!(Registration::try_from(wire), Ok(registration));
        let beat = Beat { health: Health::Draining, load: Load::default(), epoch_ready: Epoch(1) };
        assert_eq!(Beat::try_from(wire::Heartbeat::from(beat.clone())), Ok(beat));
    }

    #[test]
    fn a_bad_message_is_one_sentence() {
        let check = |change: &dyn Fn(&mut wire::ClusterView), expected: &str| {
            let mut wire = wire::ClusterView::from(&view());
            change(&mut wire);
            assert_eq!(ClusterView::try_from(wire).unwrap_err().to_string(), expected);
        };
        check(
            &|view| view.members[0].role = 9,
            "member.role: is 9, expected attention, expert or gateway",
        );
        check(&|view| view.shape = None, "view.shape: is missing");
        check(
            &|view| drop(view.serving.as_mut().unwrap().replicas.pop()),
            "plan.replicas: a plan for 2 MoE layers of 2 experts needs 4 replica lists, found 3",
        );
        check(
            &|view| view.shape.as_mut().unwrap().moe_layers = vec![2, 1],
            "shape.moe_layers: expected ascending layers below 3",
        );
    }
}
