//! What comes from observing: leases, digests, and plans that follow the load.

use std::collections::BTreeSet;

use policy::placement::{Limits, adoption::Reason};
use proto::control::{Report, Work};

use super::*;

#[test]
fn what_was_wanted_is_leased_and_silent_nodes_get_nothing() {
    let mut world = World::new();
    let slots = |name: &str| Registration { expert_slots: 4, ..registration(name) };
    world.cluster = Cluster::restore(
        Rules { intent: Intent { spare: Spare::Fill, ..rules().intent }, ..rules() },
        Record::default(),
        Vec::new(),
        world.now,
        1_000,
    );
    for name in ["e1", "e2", "a1"] {
        world.join_with(slots(name));
    }
    world.ready(&["e1", "e2", "a1"], 1);
    assert_eq!(world.epochs(), (1, 0));
    let (e1, e2) = (world.id("e1"), world.id("e2"));
    let leased = |world: &mut World| {
        let lease = world.cluster.advise(world.now).lease.unwrap();
        lease.holders.iter().flatten().map(|holder| holder.node).collect::<Vec<_>>()
    };
    let nodes = leased(&mut world);
    assert_eq!([e1, e2].map(|id| nodes.iter().filter(|&&node| node == id).count()), [2, 2]);
    let (session, id) = world.nodes["a1"];
    let report = Report { queued: vec![1, 2, 3], routed: vec![9, 0, 9, 9], ..Report::default() };
    world.on(Event::Report { session, id, report: report.clone() });
    let stranger = SessionId(99);
    world.on(Event::Report { session: stranger, id, report });
    world.cluster.end_step(world.now);
    let guidance = world.cluster.advise(world.now);
    assert_eq!(guidance.digest.unwrap().rows, [1, 2, 3]);
    let trace = world.cluster.observations().trace();
    assert_eq!((trace.steps(), trace.counts(0, 0)), (1, &[9, 0, 9, 9][..]));
    world.pass(HEARTBEAT * 3, &["e1", "a1"]);
    assert_eq!(leased(&mut world), [e1; 4], "e2 is silent, and no member is lost yet");
    // Whoever leads next has seen nothing and says nothing.
    let mut world = world.take_over();
    assert_eq!(world.cluster.advise(world.now).lease, None);
}

#[test]
fn a_review_is_followed_only_if_it_pays_and_nothing_else_happened() {
    let mut world = World::new();
    let intent = Intent { policy: Policy::Gem, ..rules().intent };
    let rules = Rules { intent, ..rules() };
    world.cluster = Cluster::restore(rules, Record::default(), Vec::new(), world.now, 1_000);
    world.join(&["a1", "e1", "e2"]);
    world.ready(&["e1", "e2", "a1"], 1);
    assert!(world.cluster.review(world.now).is_none(), "nothing was seen");
    let (session, id) = world.nodes["a1"];
    let see = |world: &mut World, routed: [u32; 4]| {
        for _ in 0..8 {
            let queued = vec![0; 3];
            let report = Report { queued, routed: routed.to_vec(), ..Report::default() };
            world.on(Event::Report { session, id, report });
            world.cluster.end_step(world.now);
        }
    };
    let placed = |world: &World| world.cluster.plans().serving().unwrap().clone();
    see(&mut world, [10, 10, 10, 10]);
    let even = world.cluster.review(world.now).unwrap().plan();
    assert_eq!(world.cluster.reviewed(world.now, even), [], "it would save nothing");
    // Both of the wanted experts lie on one node.
    let plan = placed(&world);
    let together: Vec<u32> = plan
        .table()
        .map(|nodes| if nodes == plan.replicas(Layer(1), domain::Expert(0)) { 100 } else { 1 })
        .collect();
    see(&mut world, together.try_into().unwrap());
    let draft = world.cluster.review(world.now).unwrap();
    let stale = world.cluster.review(world.now).unwrap().plan();
    let effects = world.cluster.reviewed(world.now, draft.plan());
    assert!(
        matches!(
            &effects[..],
            [Effect::Plans(Step::Target { reason: Reason::Observed { .. }, .. })]
        ),
        "{effects:?}"
    );
    assert_eq!(world.cluster.reviewed(world.now, stale), [], "there is a target already");
    world.store();
    assert_eq!(world.epochs(), (1, 2));
    world.ready(&["e1", "e2", "a1"], 2);
    assert_eq!(world.epochs(), (2, 0));
}

#[test]
fn wanted_experts_move_away_from_a_node_whose_runs_are_slow() {
    let mut world = World::new();
    let intent = Intent { policy: Policy::Gem, ..rules().intent };
    let rules = Rules { intent, ..rules() };
    world.cluster = Cluster::restore(rules, Record::default(), Vec::new(), world.now, 1_000);
    world.join(&["a1", "e1", "e2"]);
    world.ready(&["e1", "e2", "a1"], 1);
    let plan = world.cluster.plans().serving().unwrap().clone();
    let (e1, e2) = (world.id("e1"), world.id("e2"));
    // As many tokens on both nodes, most of them for one expert each.
    let mut routed = [10; 4];
    for id in [e1, e2] {
        let (_, expert) = plan.resident_on(id).next().unwrap();
        routed[expert.index()] = 1000;
    }
    let ran = |busy_ns| Report {
        queued: vec![0; 2],
        work: Work { runs: 10, tokens: 100, experts: 20, busy_ns, predicted_ns: 0 },
        ..Report::default()
    };
    let see = |world: &mut World, slow_ns: u64| {
        for _ in 0..10 {
            world.now += HEARTBEAT;
            let (queued, routed) = (vec![0; 3], routed.to_vec());
            let wanted = Report { queued, routed, ..Report::default() };
            for (name, report) in [("a1", wanted), ("e1", ran(50_000_000)), ("e2", ran(slow_ns))] {
                let (session, id) = world.nodes[name];
                world.on(Event::Report { session, id, report });
            }
            world.cluster.end_step(world.now);
        }
    };
    see(&mut world, 50_000_000);
    let draft = world.cluster.review(world.now).unwrap();
    assert_eq!(world.cluster.reviewed(world.now, draft.plan()), [], "both are as fast");
    see(&mut world, 250_000_000);
    let draft = world.cluster.review(world.now).unwrap();
    let effects = world.cluster.reviewed(world.now, draft.plan());
    assert!(matches!(&effects[..], [Effect::Plans(Step::Target { .. })]), "{effects:?}");
    let target = world.cluster.plans().target().unwrap().clone();
    let tokens = |id| -> u32 { target.resident_on(id).map(|(_, e)| routed[e.index()]).sum() };
    assert_eq!((tokens(e1), tokens(e2)), (2000, 20));
}

#[test]
fn what_a_lost_node_held_moves_and_little_else() {
    const EXPERTS: u16 = 600;
    let mut world = World::new();
    let intent = Intent { policy: Policy::Gem, hosts_min: 3, ..rules().intent };
    let rules = Rules { intent, ..rules() };
    world.cluster = Cluster::restore(rules, Record::default(), Vec::new(), world.now, 1_000);
    let wide = ModelShape { experts: EXPERTS, ..shape() };
    for name in ["a1", "e1", "e2", "e3"] {
        let expert_slots = u32::from(EXPERTS) * u32::from(name.starts_with('e'));
        let shape = Some(wide.clone());
        world.join_with(Registration { expert_slots, shape, ..registration(name) });
    }
    world.ready(&["a1", "e1", "e2", "e3"], 1);
    let before = world.cluster.plans().serving().unwrap().clone();
    let (session, id) = world.nodes["a1"];
    let routed = (0..u32::from(EXPERTS)).map(|expert| expert * 7919 % 1000).collect();
    let report = Report { queued: vec![0; 3], routed, ..Report::default() };
    world.on(Event::Report { session, id, report });
    world.cluster.end_step(world.now);
    world.pass(LEASE, &["a1", "e1", "e2"]);
    let after = world.cluster.plans().target().unwrap().clone();
    let left = [world.id("e1"), world.id("e2")].map(|id| {
        let given_up = |&(layer, expert): &_| !after.replicas(layer, expert).contains(&id);
        before.resident_on(id).filter(given_up).count()
    });
    let most = Limits::default().swaps_max as usize;
    assert!(left.iter().all(|&count| count <= most), "{left:?} of 200 experts each moved away");
}

/// Three nodes with a little more memory than slots; a fourth joins, for which a whole plan would move more than that.
#[test]
fn a_plan_that_does_not_fit_beside_the_serving_one_is_come_by_in_steps() {
    let mut world = World::new();
    let intent = Intent { policy: Policy::Gem, hosts_min: 3, ..rules().intent };
    let rules = Rules { intent, ..rules() };
    world.cluster = Cluster::restore(rules, Record::default(), Vec::new(), world.now, 1_000);
    let wide = ModelShape { experts: 96, ..shape() };
    let join = |world: &mut World, name: &str| {
        let expert_slots = if name.starts_with('e') { 32 } else { 0 };
        let experts_max = (expert_slots > 0).then_some(36);
        let shape = Some(wide.clone());
        world.join_with(Registration { expert_slots, experts_max, shape, ..registration(name) });
    };
    ["a1", "e1", "e2", "e3"].iter().for_each(|name| join(&mut world, name));
    world.ready(&["a1", "e1", "e2", "e3"], 1);
    let (session, id) = world.nodes["a1"];
    for step in 1..8 {
        let routed = (0..96).map(|expert| 100 + expert * step * 7919 % 1000).collect();
        let report = Report { queued: vec![0; 3], routed, ..Report::default() };
        world.on(Event::Report { session, id, report });
        world.cluster.end_step(world.now);
    }
    join(&mut world, "e4");
    let mut epoch = 1;
    let mut held = Vec::new();
    loop {
        let plans = world.cluster.plans();
        let (serving, target) = (plans.serving().unwrap().clone(), plans.target().cloned());
        let e4 = world.id("e4");
        held.push(serving.resident_on(e4).count());
        let Some(target) = target else { break };
        for name in ["e1", "e2", "e3", "e4"] {
            let id = world.id(name);
            let both: BTreeSet<_> = serving.resident_on(id).chain(target.resident_on(id)).collect();
            assert!(both.len() <= 36, "{name} would hold {} experts at once", both.len());
        }
        epoch += 1;
        world.ready(&["a1", "e1", "e2", "e3", "e4"], epoch);
        if let Some(draft) = world.cluster.review(world.now) {
            world.cluster.reviewed(world.now, draft.plan());
            world.store();
        }
    }
    assert!(held.len() > 3 && held.last() > Some(&12), "experts of the fourth node: {held:?}");
}
