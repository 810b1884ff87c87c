use std::{collections::BTreeMap, time::Duration};

use domain::{Epoch, Health, Layer, Load, ModelShape, NodeId, Plan, Role};
use policy::{
    liveness::Terms,
    placement::{Policy, Spare},
};
use proto::control::{Beat, Registration};

use super::{Cluster, Effect, Event, Made, Published, Rules, Save, Stale};
use crate::{
    nodes::{Refusal, SessionId},
    reconcile::{Intent, Step},
    record::Record,
};

mod advice;
mod overview;

const HEARTBEAT: Duration = Duration::from_millis(100);
const LEASE: Duration = Duration::from_millis(500);

fn rules() -> Rules {
    Rules {
        terms: Terms { heartbeat: HEARTBEAT, lease: LEASE },
        members_max: 8,
        intent: Intent {
            policy: Policy::Linear,
            spare: Spare::Leave,
            hosts_min: 2,
            gain_percent: 5,
            history_max: 4,
        },
        routing: policy::routing::Policy::default(),
        advice: Some(HEARTBEAT),
        review: None,
        trace_steps: 8,
    }
}

fn shape() -> ModelShape {
    ModelShape {
        layers: 2,
        moe_layers: vec![Layer(1)],
        experts: 4,
        top_k: 1,
        hidden: 64,
        expert_bytes: 1,
        vocab: 512,
        positions_max: 128,
    }
}

fn registration(name: &str) -> Registration {
    let role = match &name[..1] {
        "a" => Role::Attention,
        "e" => Role::Expert,
        _ => Role::Gateway,
    };
    let has_weights = role != Role::Gateway;
    Registration {
        name: name.to_owned(),
        role,
        address: format!("{name}:7000"),
        model_fingerprint: if has_weights { "m1".into() } else { String::new() },
        numerics: if has_weights { "amx".into() } else { String::new() },
        shape: has_weights.then(shape),
        expert_slots: if role == Role::Expert { 4 } else { 0 },
        experts_max: None,
        epoch: Epoch(0),
        node: None,
        curves: None,
    }
}

/// A cluster whose store answers at once, unless it is away.
struct World {
    cluster: Cluster,
    now: Duration,
    /// Sessions and numbers by name, as their nodes know them.
    nodes: BTreeMap<String, (SessionId, NodeId)>,
    opened: u64,
    store_away: bool,
    stored: Record,
    stored_plans: Vec<Made>,
}

impl World {
    fn new() -> Self {
        Self::restored(Record::default(), Vec::new())
    }

    fn restored(stored: Record, stored_plans: Vec<Made>) -> Self {
        let now = Duration::from_secs(50);
        Self {
            cluster: Cluster::restore(rules(), stored.clone(), stored_plans.clone(), now, 1_000),
            now,
            nodes: BTreeMap::new(),
            opened: 0,
            store_away: false,
            stored,
            stored_plans,
        }
    }

    /// Another coordinator takes over from what is stored.
    fn take_over(self) -> Self {
        Self { opened: self.opened, ..Self::restored(self.stored, self.stored_plans) }
    }

    fn store(&mut self) -> Vec<Effect> {
        let Some(save) = self.cluster.pending_save() else {
            return Vec::new();
        };
        if self.store_away {
            self.cluster.not_saved();
            return Vec::new();
        }
        self.stored = save.record.clone();
        let effects = self.cluster.saved(save);
        self.stored_plans = self.cluster.plans().history().iter().cloned().collect();
        effects
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.cluster.on(self.now, event);
        effects.extend(self.store());
        effects
    }

    fn join_with(&mut self, registration: Registration) -> Vec<Effect> {
        self.opened += 1;
        let session = SessionId(self.opened);
        let name = registration.name.clone();
        let effects = self.on(Event::Registered { session, registration });
        for effect in &effects {
            if let Effect::Admit { session: admitted, id } = effect
                && *admitted == session
            {
                self.nodes.insert(name.clone(), (session, *id));
            }
        }
        effects
    }

    fn join(&mut self, names: &[&str]) {
        for name in names {
            self.join_with(registration(name));
        }
    }

    fn id(&self, name: &str) -> NodeId {
        self.nodes[name].1
    }

    fn beat(&mut self, name: &str, health: Health, epoch_ready: u64) -> Vec<Effect> {
        let (session, id) = self.nodes[name];
        let beat = Beat { health, load: Load::default(), epoch_ready: Epoch(epoch_ready) };
        self.on(Event::Beat { session, id, beat })
    }

    fn ready(&mut self, names: &[&str], epoch: u64) {
        for name in names {
            self.beat(name, Health::Ready, epoch);
        }
    }

    fn leave(&mut self, name: &str) -> Vec<Effect> {
        let (session, id) = self.nodes[name];
        self.on(Event::Left { session, id })
    }

    /// Lets time pass in which only `alive` beat, as they did last.
    fn pass(&mut self, time: Duration, alive: &[&str]) -> Vec<Effect> {
        let (end, mut effects) = (self.now + time, Vec::new());
        while self.now < end {
            self.now += HEARTBEAT;
            for name in alive {
                let member = self.cluster.registry().snapshot();
                let member = member.iter().find(|member| member.name == *name).unwrap().clone();
                let observed = self.cluster.registry().observed();
                let ready = observed.iter().find(|node| node.id == member.id).unwrap().epoch_ready;
                effects.extend(self.beat(name, member.health, ready.0));
            }
            effects.extend(self.cluster.tick(self.now));
            effects.extend(self.store());
        }
        effects
    }

    fn epochs(&self) -> (u64, u64) {
        let epoch =
            |plan: &Option<std::sync::Arc<Plan>>| plan.as_ref().map_or(0, |plan| plan.epoch().0);
        let Published { serving, target } = self.cluster.published();
        (epoch(serving), epoch(target))
    }

    fn holders(&self) -> Vec<NodeId> {
        let serving = self.cluster.published().serving.clone().unwrap();
        serving.table().flatten().copied().collect()
    }
}

fn cluster_that_serves() -> World {
    let mut world = World::new();
    world.join(&["a1", "a2", "e1", "e2"]);
    world.ready(&["e1", "e2"], 1);
    world.ready(&["a1", "a2"], 1);
    assert_eq!(world.epochs(), (1, 0));
    world
}

#[test]
fn the_first_plan_is_made_when_enough_expert_nodes_are_here_and_serves_when_they_are_ready() {
    let mut world = World::new();
    world.join(&["a1", "e1"]);
    assert_eq!(world.epochs(), (0, 0));
    world.join(&["e2"]);
    assert_eq!(world.epochs(), (0, 1));
    world.ready(&["e1"], 1);
    assert_eq!(world.epochs(), (0, 1));
    world.ready(&["e2"], 1);
    assert_eq!(world.epochs(), (1, 0));
    let (e1, e2) = (world.id("e1"), world.id("e2"));
    assert_eq!(world.holders(), [e1, e1, e2, e2]);
}

#[test]
fn a_node_that_joins_later_gets_experts_when_everybody_has_acknowledged() {
    let mut world = cluster_that_serves();
    world.join(&["e3"]);
    assert_eq!(world.epochs(), (1, 2));
    world.ready(&["e1", "e2", "e3", "a1"], 2);
    assert_eq!(world.epochs(), (1, 2), "one attention node has not acknowledged");
    world.ready(&["a2"], 2);
    assert_eq!(world.epochs(), (2, 0));
    assert!(world.holders().contains(&world.id("e3")));
}

#[test]
fn a_lost_node_is_replaced_as_soon_as_the_others_hold_its_experts() {
    let mut world = cluster_that_serves();
    let effects = world.pass(LEASE, &["a1", "a2", "e1"]);
    let lost = |effect: &&Effect| matches!(effect, Effect::Lost(lost) if lost.name == "e2");
    assert_eq!(effects.iter().filter(lost).count(), 1);
    assert_eq!(world.epochs(), (1, 2));
    world.ready(&["e1"], 2);
    assert_eq!(world.epochs(), (2, 0), "nobody waits for attention nodes while tokens stand still");
    assert_eq!(world.holders(), [world.id("e1"); 4]);
}

#[test]
fn a_lost_node_whose_experts_fit_nowhere_is_waited_for() {
    let mut world = World::new();
    let small = |name: &str| Registration { expert_slots: 2, ..registration(name) };
    world.join_with(small("e1"));
    world.join_with(small("e2"));
    world.ready(&["e1", "e2"], 1);
    let effects = world.pass(LEASE, &["e1"]);
    let infeasible = |effect: &&Effect| matches!(effect, Effect::Plans(Step::Infeasible { .. }));
    assert_eq!(effects.iter().filter(infeasible).count(), 1, "it is said once");
    assert_eq!(world.epochs(), (1, 0));
    let number = world.id("e2");
    let effects = world.join_with(small("e2"));
    assert_eq!(world.id("e2"), number);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Plans(Step::Kept { .. }))));
    assert_eq!(world.epochs(), (1, 0));
}

#[test]
fn a_draining_node_keeps_its_place_until_its_experts_have_moved() {
    let mut world = cluster_that_serves();
    world.beat("e2", Health::Draining, 1);
    assert_eq!(world.epochs(), (1, 2));
    world.ready(&["e1", "a1"], 2);
    assert_eq!(world.epochs(), (1, 2), "its experts still answer, so nothing is rushed");
    world.ready(&["a2"], 2);
    assert_eq!(world.epochs(), (2, 0));
    world.leave("e2");
    let view = world.cluster.view(1);
    assert!(view.members.iter().all(|member| member.name != "e2"), "it has left at once");
}

#[test]
fn a_broken_session_is_not_the_nodes_end() {
    let mut world = cluster_that_serves();
    let number = world.id("e2");
    world.leave("e2");
    world.pass(LEASE - HEARTBEAT, &["a1", "a2", "e1"]);
    let again = Registration { epoch: Epoch(1), ..registration("e2") };
    world.join_with(again);
    assert_eq!((world.epochs(), world.id("e2")), ((1, 0), number));
    let view = world.cluster.view(1);
    let member = view.member(number).unwrap();
    assert_eq!(member.health, Health::Ready, "what it last said still holds");
}

#[test]
fn a_process_that_starts_anew_under_its_name_has_to_load_first() {
    let mut world = cluster_that_serves();
    world.leave("e2");
    world.join(&["e2"]);
    let member = world.cluster.view(1).member(world.id("e2")).unwrap().clone();
    assert_eq!((member.health, world.epochs()), (Health::Joining, (1, 0)));
}

#[test]
fn a_node_of_another_model_is_refused_naming_both() {
    let mut world = cluster_that_serves();
    let other = Registration { model_fingerprint: "m2".into(), ..registration("e3") };
    let effects = world.join_with(other);
    let [Effect::Refuse { refusal, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(
        refusal.to_string(),
        "e3 serves model m2, this cluster serves m1: all nodes must load the same weights with rows of the same precision"
    );
}

#[test]
fn a_node_that_gives_other_bits_than_its_role_is_refused() {
    let mut world = cluster_that_serves();
    let on_gpu = |name: &str| Registration { numerics: "cuda-9.0".into(), ..registration(name) };
    let effects = world.join_with(on_gpu("e3"));
    let [Effect::Refuse { refusal, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(
        refusal.to_string(),
        "e3 computes as cuda-9.0, the expert nodes of this cluster as amx: answers would depend on who computed them"
    );
    // Other roles compute something else.
    world.leave("a1");
    world.pass(LEASE, &["e1", "e2"]);
    let effects = world.join_with(on_gpu("a2"));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. })), "{effects:?}");
}

#[test]
fn another_model_takes_over_when_nobody_serves_the_old_one() {
    let mut world = cluster_that_serves();
    world.join(&["g1"]);
    world.pass(LEASE, &["g1"]);
    let other = |name: &str| Registration { model_fingerprint: "m2".into(), ..registration(name) };
    world.join_with(other("e1"));
    assert_eq!(world.epochs(), (0, 0), "the old plan is gone");
    world.join_with(other("e2"));
    let (serving, target) = world.epochs();
    assert!(serving == 0 && target > 1, "epochs go on: {target}");
}

#[test]
fn two_living_processes_cannot_share_a_name() {
    let mut world = cluster_that_serves();
    let twin = Registration { address: "elsewhere:7000".into(), ..registration("e1") };
    let effects = world.join_with(twin.clone());
    let taken = |effect: &Effect| matches!(effect, Effect::Refuse { refusal: Refusal::NameTaken { address, .. }, .. } if address == "e1:7000");
    assert!(effects.iter().any(taken), "{effects:?}");
    // Once the first one is silent the other is its successor, at a new address.
    world.pass(HEARTBEAT * 3, &["a1", "a2", "e2"]);
    let old = world.nodes["e1"];
    let effects = world.join_with(twin);
    assert!(effects.contains(&Effect::Replace { session: old.0 }));
    let member = world.cluster.view(1).member(old.1).unwrap().clone();
    assert_eq!(member.address, "elsewhere:7000");
}

#[test]
fn another_coordinator_goes_on_with_plan_numbers_and_members() {
    let mut world = cluster_that_serves();
    let (number, holders) = (world.id("e1"), world.holders());
    world = world.take_over();
    assert_eq!((world.epochs(), world.holders()), ((1, 0), holders));
    world.pass(LEASE - HEARTBEAT, &[]);
    let view = world.cluster.view(1);
    assert_eq!(view.members.len(), 4, "members have their whole lease to come back");
    for name in ["e1", "e2", "a1", "a2"] {
        let again = Registration { epoch: Epoch(1), ..registration(name) };
        world.join_with(again);
    }
    assert_eq!(
        (world.epochs(), world.id("e1")),
        ((1, 0), number),
        "nothing changed, so nothing is planned"
    );
    world.pass(LEASE, &["a1", "a2", "e1"]);
    assert_eq!(world.epochs(), (1, 2));
}

#[test]
fn epochs_never_go_below_what_a_node_has_served() {
    let mut world = World::new();
    let veteran = Registration { epoch: Epoch(41), ..registration("e1") };
    world.join_with(veteran);
    world.join(&["e2"]);
    assert_eq!(world.epochs(), (42, 0), "it follows no view that serves an older plan");
    let impossible = Registration { epoch: Epoch(u64::MAX), ..registration("e3") };
    let effects = world.join_with(impossible);
    assert!(matches!(&effects[..], [Effect::Refuse { refusal: Refusal::Epoch { .. }, .. }]));
}

#[test]
fn a_coordinator_that_lost_its_store_numbers_nodes_as_before() {
    let mut world = World::new();
    let claim = |name: &str, node| Registration { node: Some(NodeId(node)), ..registration(name) };
    world.join_with(claim("e2", 9));
    world.join_with(claim("e1", 9));
    world.join(&["a1"]);
    let numbers = ["e2", "e1", "a1"].map(|name| world.id(name));
    assert_eq!(numbers, [NodeId(9), NodeId(10), NodeId(11)], "a number has one owner");
}

#[test]
fn while_the_store_is_away_nothing_new_is_seen_and_nothing_is_forgotten() {
    let mut world = cluster_that_serves();
    world.store_away = true;
    let effects = world.join_with(registration("e3"));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Admit { .. })));
    assert_eq!(world.epochs(), (1, 0), "the target is not stored, so nobody sees it");
    let view = world.cluster.view(7);
    assert_eq!((view.members.len(), view.serving.is_some()), (4, true));
    assert_eq!(view.target, None);
    // A known node may come back meanwhile.
    world.leave("a1");
    let effects = world.join_with(registration("a1"));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Admit { .. })));
    world.store_away = false;
    let effects = world.store();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Admit { .. })), "e3 is let in");
    assert_eq!(world.epochs(), (1, 2));
}

#[test]
fn a_coordinator_that_was_stopped_itself_blames_nobody() {
    let mut world = cluster_that_serves();
    world.now += LEASE * 10;
    assert_eq!(world.cluster.tick(world.now), []);
    assert_eq!(world.cluster.view(1).members.len(), 4);
}

#[test]
fn loads_are_not_stored_and_can_wait() {
    let mut world = cluster_that_serves();
    world.cluster.view(1);
    let (session, id) = world.nodes["a1"];
    let beat = Beat {
        health: Health::Ready,
        load: Load { running: 3, ..Load::default() },
        epoch_ready: Epoch(1),
    };
    world.cluster.on(world.now, Event::Beat { session, id, beat });
    assert_eq!(world.cluster.stale(), Stale::Loads);
    assert_eq!(world.cluster.pending_save(), None::<Save>);
    assert_eq!(world.cluster.view(2).member(id).unwrap().load.running, 3);
}

#[test]
fn a_full_cluster_takes_nobody_and_forgets_old_names() {
    let mut world = World::new();
    for name in 0..8 {
        world.join_with(registration(&format!("g{name}")));
    }
    let effects = world.join_with(registration("g8"));
    assert!(matches!(&effects[..], [Effect::Refuse { refusal: Refusal::Full { max: 8 }, .. }]));
    // Thousands of names that come and go do not fill the store.
    for name in 0..100 {
        world.pass(LEASE, &[]);
        world.join_with(registration(&format!("g{name}")));
    }
    assert_eq!(world.stored.nodes.len(), 8 * 4);
}

#[test]
fn a_pinned_plan_stays_until_experts_are_lost() {
    let mut world = cluster_that_serves();
    world.cluster.pin(true);
    world.store();
    assert!(world.stored.pinned);
    world = world.take_over();
    world.pass(LEASE - HEARTBEAT, &[]);
    for name in ["e1", "e2", "a1", "a2"] {
        world.join_with(Registration { epoch: Epoch(1), ..registration(name) });
    }
    world.join(&["e3"]);
    assert_eq!(world.epochs(), (1, 0), "a node more is no reason");
    world.pass(LEASE, &["a1", "a2", "e1", "e3"]);
    assert_eq!(world.epochs(), (1, 2), "lost experts are");
}

#[test]
fn plans_of_the_past_are_kept_up_to_a_number_and_survive_the_leader() {
    let mut world = cluster_that_serves();
    for round in 0..6 {
        let (joins, leaves) = if round % 2 == 0 { ("e3", "e2") } else { ("e2", "e3") };
        world.leave(leaves);
        world.join(&[joins]);
        world.pass(LEASE, &["a1", "a2", "e1", joins]);
        let target = world.epochs().1;
        world.ready(&["a1", "a2", "e1", joins], target);
        assert_eq!(world.epochs().1, 0, "plan {target} serves");
    }
    let kept = |world: &World| {
        let history = world.cluster.plans().history().iter();
        history.map(|made| (made.plan.epoch().0, made.at)).collect::<Vec<_>>()
    };
    let before = kept(&world);
    assert_eq!(before.len(), 4);
    assert_eq!(before.last().map(|made| made.0), Some(world.epochs().0));
    assert!(before.iter().all(|made| made.1 >= 1_050), "{before:?}");
    assert_eq!(world.cluster.kept.len(), 4, "no more are stored");
    let mut world = world.take_over();
    assert_eq!(kept(&world), before);
    assert_eq!(world.cluster.pending_save(), None::<Save>);
}
