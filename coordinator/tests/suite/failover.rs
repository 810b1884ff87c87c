//! Several coordinators over a real etcd: elections, failover, and an etcd that goes away.

use crate::etcd::Etcd;
use crate::nodes::{Node, Running, Session, config, registration, serving};
use coordinator::{
    StoreConfig,
    store::{Commit, Expect, Outcome, Store, Write, get},
};
use domain::Health;
use tonic::Code;

async fn start_coordinator(etcd: &Etcd, expert_nodes_min: usize) -> Running {
    let mut config = config(expert_nodes_min);
    config.store = StoreConfig::Etcd {
        endpoints: vec![etcd.endpoint()],
        prefix: "amoe/".to_owned(),
        timeout_ms: 1_000,
        tls: None,
    };
    Running::start(config).await
}

fn start_nodes(coordinators: &[String], names: &[&str]) -> Vec<Node> {
    names.iter().map(|name| Node::start(coordinators, name)).collect()
}

#[tokio::test]
async fn followers_name_the_leader_and_take_over_when_it_is_gone() {
    let etcd = Etcd::start().await;
    let leader = start_coordinator(&etcd, 2).await;
    leader.metric_reaches("amoe_coordinator_leader", "", 1.0).await;
    let follower = start_coordinator(&etcd, 2).await;
    follower.process.readiness.ready().await;
    let refused = Session::open(&follower.address, registration("expert-0")).await;
    let status = refused.err().expect("a follower takes no sessions");
    assert_eq!(status.code(), Code::Unavailable);
    let named = status.metadata().get(coordinator::LEADER_METADATA).unwrap();
    assert_eq!(named.to_str().unwrap(), leader.address);

    let both = [follower.address.clone(), leader.address.clone()];
    let attention = start_nodes(&both, &["attention-0", "attention-1"]);
    let mut experts = start_nodes(&both, &["expert-0", "expert-1"]);
    let plan = attention[0].sees_serving(1).await;
    let before = attention[0].view().version;
    leader.kill().await;

    follower.metric_reaches("amoe_coordinator_leader", "", 1.0).await;
    let view =
        attention[0].sees("a view of the new leader", |view| view.version > before + (1 << 31));
    assert_eq!(view.await.serving, Some(plan), "the plan is the old leader's");
    follower.metric_reaches("amoe_coordinator_sessions", "", 4.0).await;
    // The new leader's plans follow the old one's.
    experts.extend(start_nodes(&both, &["expert-2"]));
    attention[1].sees_serving(2).await;
    follower.stop().await;
}

#[tokio::test]
async fn a_leader_that_stops_hands_over_at_once_and_the_next_one_may_be_new() {
    let etcd = Etcd::start().await;
    let first = start_coordinator(&etcd, 1).await;
    first.metric_reaches("amoe_coordinator_leader", "", 1.0).await;
    let second = start_coordinator(&etcd, 1).await;
    second.process.readiness.ready().await;
    first.stop().await;
    second.metric_reaches("amoe_coordinator_leader", "", 1.0).await;
    second.stop().await;
}

#[tokio::test]
async fn a_deposed_leader_can_write_nothing_any_more() {
    let etcd = Etcd::start().await;
    let store = etcd.store("amoe/").await;
    let zombie = start_coordinator(&etcd, 1).await;
    let nodes = start_nodes(std::slice::from_ref(&zombie.address), &["expert-0"]);
    nodes[0].sees_serving(1).await;
    // Somebody else's hand takes its leadership away without it knowing, and writes.
    let leaders = store.range("leader/").await.unwrap().entries;
    let record = get(&store, "cluster").await.unwrap().unwrap();
    let theft = Commit {
        when: vec![Expect { key: leaders[0].key.clone(), modified: leaders[0].modified }],
        then: vec![
            Write::Delete { key: leaders[0].key.clone() },
            Write::Put { key: "leader/0".to_owned(), value: b"thief:1".to_vec(), lease: None },
        ],
    };
    assert!(matches!(store.commit(theft).await.unwrap(), Outcome::Done(_)));
    // A change of health is worth a write, which must fail and depose it.
    nodes[0].health.send_replace(Health::Draining);
    zombie.metric_reaches("amoe_coordinator_leader", "", 0.0).await;
    let after = get(&store, "cluster").await.unwrap().unwrap();
    assert_eq!(after, record, "the fence held");
    let refused = Session::open(&zombie.address, registration("expert-1")).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn sessions_go_on_while_etcd_is_away_and_say_so() {
    let mut etcd = Etcd::start().await;
    let coordinator = start_coordinator(&etcd, 2).await;
    let addresses = [coordinator.address.clone()];
    let attention = start_nodes(&addresses, &["attention-0"]);
    let mut experts = start_nodes(&addresses, &["expert-0", "expert-1"]);
    attention[0].sees_serving(1).await;
    coordinator.metric_reaches("amoe_coordinator_sessions", "", 3.0).await;
    let term = attention[0].view().version >> 32;
    etcd.stop();

    // A health change cannot be stored, yet everybody hears of it: views need no store.
    coordinator.metric_reaches("amoe_coordinator_store_up", "", 0.0).await;
    let id = *experts[0].id.borrow();
    experts[0].health.send_replace(Health::Joining);
    let view = attention[0].sees("a change of health", |view| {
        view.members.iter().any(|member| member.id.0 == id && member.health == Health::Joining)
    });
    let view = view.await;
    assert_eq!((serving(&view), view.version >> 32), (1, term), "the last plan serves on");
    // A new node has to wait for its number; no plan is made for it.
    experts.extend(start_nodes(&addresses, &["expert-2"]));
    coordinator.metric_reaches("amoe_coordinator_plans_total", "target", 2.0).await;
    assert_eq!(attention[0].view().target, None, "what is not stored is not published");
    assert_eq!(coordinator.metric("amoe_coordinator_sessions", ""), 3.0);

    etcd.start_again().await;
    coordinator.metric_reaches("amoe_coordinator_store_up", "", 1.0).await;
    attention[0].sees_serving(2).await;
    coordinator.stop().await;
}
