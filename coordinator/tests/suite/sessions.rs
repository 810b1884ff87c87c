//! Nodes and one coordinator over real gRPC sessions.

use std::time::Duration;

use crate::nodes::{Node, PATIENCE, Running, Session, channel, config, registration, serving};
use coordinator::StoreConfig;
use domain::{Epoch, Health, Load, NodeId, Role};
use proto::{
    control::{Beat, Registration},
    internal::{self as wire, control_client},
};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use transport::{
    Hub,
    control::{ControlClient, ControlSettings},
};

const ATTENTION: [&str; 2] = ["attention-0", "attention-1"];
const EXPERTS: [&str; 3] = ["expert-0", "expert-1", "expert-2"];

fn start_nodes(coordinator: &Running, names: &[&str]) -> Vec<Node> {
    let addresses = [coordinator.address.clone()];
    names.iter().map(|name| Node::start(&addresses, name)).collect()
}

#[tokio::test]
async fn a_cluster_comes_up_grows_and_loses_a_node() {
    let coordinator = Running::start(config(2)).await;
    let attention = start_nodes(&coordinator, &ATTENTION);
    let mut experts = start_nodes(&coordinator, &EXPERTS[..2]);
    for node in attention.iter().chain(&experts) {
        let plan = node.sees_serving(1).await;
        assert!(plan.table().all(|replicas| replicas.len() == 1));
    }
    let view = attention[0].sees("four ready members", |view| {
        view.members.iter().filter(|member| member.health == Health::Ready).count() == 4
    });
    assert_eq!(view.await.role(Role::Expert).count(), 2);
    coordinator.metric_reaches("amoe_coordinator_members{", "role=\"expert\"", 2.0).await;
    coordinator.metric_reaches("amoe_coordinator_plan_epoch", "serving", 1.0).await;
    coordinator.metric_reaches("amoe_coordinator_sessions", "", 4.0).await;
    let page = coordinator.page("/plan").await;
    assert_eq!((&page["leads"], &page["view"]["serving"]["epoch"]), (&json!(true), &json!(1)));
    assert_eq!(page["view"]["members"][0]["health"], "ready");

    experts.extend(start_nodes(&coordinator, &EXPERTS[2..]));
    let plan = attention[1].sees_serving(2).await;
    let newcomer = NodeId(*experts[2].id.borrow());
    assert_eq!(plan.resident_on(newcomer).count(), 4, "a third of twelve experts");
    assert_eq!(plan.parent(), Some(Epoch(1)));

    let lost = NodeId(*experts[0].id.borrow());
    experts.remove(0).kill().await;
    let plan = attention[0].sees_serving(3).await;
    assert_eq!(plan.resident_on(lost).count(), 0);
    assert_eq!(attention[0].view().member(lost), None);
    coordinator.metric_reaches("amoe_coordinator_members_lost_total", "expert", 1.0).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_draining_node_is_relieved_and_leaves_at_once() {
    let coordinator = Running::start(config(3)).await;
    let attention = start_nodes(&coordinator, &ATTENTION);
    let mut experts = start_nodes(&coordinator, &EXPERTS);
    attention[0].sees_serving(1).await;
    let leaving = experts.remove(1);
    let id = NodeId(*leaving.id.borrow());
    leaving.health.send_replace(Health::Draining);
    let plan = leaving.sees_serving(2).await;
    assert_eq!(plan.resident_on(id).count(), 0);
    assert!(leaving.view().member(id).is_some(), "it is a member until it goes");
    leaving.kill().await;
    attention[0].sees("it gone", |view| view.member(id).is_none()).await;
    assert_eq!(coordinator.metric("amoe_coordinator_members_lost_total", ""), 0.0);
    coordinator.stop().await;
}

#[tokio::test]
async fn wrong_nodes_are_refused_in_a_sentence_and_disturb_nobody() {
    let coordinator = Running::start(config(1)).await;
    let good = start_nodes(&coordinator, &["expert-0"]);
    good[0].sees_serving(1).await;
    let refuse = async |registration: Registration| {
        let refused = Session::open(&coordinator.address, registration).await;
        refused.err().map(|status| (status.code(), status.message().to_owned()))
    };
    let other = Registration { model_fingerprint: "beef".to_owned(), ..registration("expert-1") };
    let sentence = "expert-1 serves model beef, this cluster serves f00d: all nodes must load the \
                    same weights with rows of the same precision";
    assert_eq!(refuse(other).await, Some((Code::FailedPrecondition, sentence.to_owned())));
    let twin = Registration { address: "elsewhere:7000".to_owned(), ..registration("expert-0") };
    let (code, sentence) = refuse(twin).await.unwrap();
    assert_eq!(code, Code::AlreadyExists, "{sentence}");
    let nameless = Registration { name: String::new(), ..registration("expert-2") };
    let (code, sentence) = refuse(nameless).await.unwrap();
    assert_eq!(code, Code::InvalidArgument, "{sentence}");
    coordinator
        .metric_reaches("amoe_coordinator_registrations_refused_total", "other_model", 1.0)
        .await;
    assert_eq!((serving(&good[0].view()), good[0].view().members.len()), (1, 1));
    coordinator.stop().await;
}

#[tokio::test]
async fn what_is_no_registration_and_no_heartbeat_ends_the_session() {
    let coordinator = Running::start(config(1)).await;
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    sender.send(wire::NodeMessage { kind: None }).await.unwrap();
    let mut client = control_client::ControlClient::new(channel(&coordinator.address));
    let status = client.session(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(status.message(), "the first message of a session must be a registration");

    let mut session = Session::open(&coordinator.address, registration("expert-0")).await.unwrap();
    session.beats.send(wire::NodeMessage { kind: None }).await.unwrap();
    let status = loop {
        if let Err(status) = session.view().await {
            break status;
        }
    };
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "heartbeat: is missing"));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_new_session_of_a_node_replaces_the_old_one_and_keeps_the_number() {
    let coordinator = Running::start(config(1)).await;
    let mut old = Session::open(&coordinator.address, registration("expert-0")).await.unwrap();
    let new = Session::open(&coordinator.address, registration("expert-0")).await.unwrap();
    assert_eq!(old.welcome, new.welcome);
    let status = loop {
        if let Err(status) = old.view().await {
            break status;
        }
    };
    assert_eq!(status.message(), "the node opened another session");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_starts_again_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(3);
    config.store = StoreConfig::Embedded { path: folder.path().join("state.redb") };
    let coordinator = Running::start(config.clone()).await;
    // The second start has to be found at the same place.
    config.control.listen = coordinator.address.clone();
    let attention = start_nodes(&coordinator, &ATTENTION);
    let experts = start_nodes(&coordinator, &EXPERTS);
    let before = attention[0].sees_serving(1).await;
    let numbers: Vec<u32> = experts.iter().map(|node| *node.id.borrow()).collect();
    let old = attention[0].view().version;
    coordinator.kill().await;

    let coordinator = Running::start(config.clone()).await;
    let view = attention[0].sees("a view of the new term", |view| view.version > old + (1 << 31));
    let view = view.await;
    assert_eq!(view.serving, Some(before), "the stored plan serves on");
    assert_eq!(view.members.len(), 5, "nobody is missed who only has to come back");
    coordinator.metric_reaches("amoe_coordinator_sessions", "", 5.0).await;
    let again: Vec<u32> = experts.iter().map(|node| *node.id.borrow()).collect();
    assert_eq!(again, numbers);
    coordinator.stop().await;

    // A node that does not come back is lost, and its epoch follows the stored ones.
    let mut experts = experts;
    experts.remove(2).kill().await;
    let coordinator = Running::start(config).await;
    attention[1].sees_serving(2).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_cluster_whose_store_was_lost_goes_on_with_later_epochs() {
    let coordinator = Running::start(config(1)).await;
    let veteran = Registration { epoch: Epoch(6), ..registration("expert-0") };
    let mut session = Session::open(&coordinator.address, veteran).await.unwrap();
    let serving = loop {
        let view = session.view().await.unwrap();
        if let Some(serving) = view.serving {
            break serving.epoch();
        }
    };
    assert_eq!(serving, Epoch(7));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_nodes_own_client_joins_within_the_process() {
    let (hub, mut config) = (Hub::new(), config(1));
    config.control.listen = "inproc:coordinator".to_owned();
    let coordinator = Running::start_in(config, &hub).await;
    let beat = |epoch_ready| Beat {
        health: Health::Joining,
        load: Load::default(),
        epoch_ready: Epoch(epoch_ready),
    };
    let (beats, watched) = watch::channel(beat(0));
    let settings = ControlSettings::new(vec![coordinator.address.clone()]);
    let (_, reports) = mpsc::channel(1);
    let registration = registration("expert-0");
    let client =
        ControlClient::start(settings, registration, watched, reports, hub.clone()).unwrap();
    let mut view = client.view();
    let target = view.wait_for(|view| view.target.is_some());
    let target = tokio::time::timeout(PATIENCE, target).await.unwrap().unwrap().target.clone();
    beats.send_replace(beat(1));
    let serving = view.wait_for(|view| view.serving.is_some());
    let serving = tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap().serving.clone();
    assert_eq!(serving, target);
    coordinator.stop().await;
}

#[tokio::test]
async fn health_says_who_leads() {
    let coordinator = Running::start(config(1)).await;
    tokio::time::timeout(PATIENCE, coordinator.process.readiness.ready()).await.unwrap();
    let mut health = HealthClient::new(channel(&coordinator.address));
    for service in ["", "amoe.internal.v1.Control"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service:?} is SERVING");
    }
    coordinator.metric_reaches("amoe_coordinator_leader", "", 1.0).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stop_ends_sessions_with_a_reason() {
    let coordinator = Running::start(config(1)).await;
    let mut session = Session::open(&coordinator.address, registration("expert-0")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    coordinator.stop().await;
    let status = loop {
        if let Err(status) = session.view().await {
            break status;
        }
    };
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "this coordinator stops"));
}
