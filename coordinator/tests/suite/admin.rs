//! What operators ask over gRPC.

use crate::nodes::{Node, Running, channel, config};
use proto::v1::{
    DiffPlansRequest, ExportPlanRequest, ListPlansRequest, PinPlanRequest, RebalanceRequest,
    ShowPlanRequest, admin_client::AdminClient,
};
use tonic::{Code, Status, transport::Channel};

fn client(coordinator: &Running) -> AdminClient<Channel> {
    AdminClient::new(channel(&coordinator.address))
}

fn refusal<T>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.err().expect("refused");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn plans_are_shown_compared_exported_imported_and_pinned() {
    let coordinator = Running::start(config(2)).await;
    let mut admin = client(&coordinator);
    let (code, why) = refusal(admin.export_plan(ExportPlanRequest { epoch: 0 }).await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "no plan serves yet"));

    let addresses = [coordinator.address.clone()];
    let node = |name| Node::start(&addresses, name);
    let nodes = ["attention-0", "expert-0", "expert-1"].map(node);
    nodes[0].sees_serving(1).await;
    let shown = admin.show_plan(ShowPlanRequest {}).await.unwrap().into_inner();
    assert_eq!((shown.serving_epoch, shown.target_epoch, shown.pinned), (1, 0, false));
    assert_eq!((shown.moe_layers, shown.experts, shown.policy.as_str()), (2, 6, "gem"));
    let held: Vec<_> = shown.nodes.iter().map(|n| (n.name.as_str(), n.serving_replicas)).collect();
    assert_eq!(held, [("expert-0", 6), ("expert-1", 6)]);

    let mut table = admin.export_plan(ExportPlanRequest { epoch: 0 }).await.unwrap().into_inner();
    assert_eq!(table.layers.len(), 2);
    table.layers[0].experts[2].nodes = vec!["expert-9".to_owned()];
    let (code, why) = refusal(admin.import_plan(table.clone()).await);
    let expected = "layer 1, expert 2: no expert node is called expert-9, expected one of \
                    expert-0, expert-1";
    assert_eq!((code, why.as_str()), (Code::InvalidArgument, expected));
    table.layers[0].experts[2].nodes = Vec::new();
    let (code, why) = refusal(admin.import_plan(table.clone()).await);
    let expected = "the checker refuses the plan: nobody holds l1 e2";
    assert_eq!((code, why.as_str()), (Code::InvalidArgument, expected));
    table.layers[0].experts[2].nodes = vec!["expert-0".to_owned(), "expert-1".to_owned()];
    let change = admin.import_plan(table).await.unwrap().into_inner();
    assert_eq!((change.epoch, change.outcome.as_str()), (2, "plan 2 is being prepared"));
    nodes[0].sees_serving(2).await;

    let diff = DiffPlansRequest { from: 1, to: 0 };
    let diff = admin.diff_plans(diff).await.unwrap().into_inner();
    let added = *nodes[2].id.borrow();
    let [change] = &diff.moves[..] else { panic!("{diff:?}") };
    assert_eq!((change.layer, change.expert, &change.added[..]), (1, 2, &[added][..]));
    assert!(change.removed.is_empty());
    let listed = admin.list_plans(ListPlansRequest { limit: 0 }).await.unwrap().into_inner().plans;
    let states: Vec<_> = listed.iter().map(|p| (p.epoch, p.state.as_str(), p.loaded)).collect();
    assert_eq!(states, [(2, "serving", 1), (1, "past", 12)]);
    assert_eq!(listed[0].reason, "an operator gave it");
    let (code, why) = refusal(admin.export_plan(ExportPlanRequest { epoch: 9 }).await);
    let expected = "no plan 9 is remembered, expected one of 1, 2";
    assert_eq!((code, why.as_str()), (Code::NotFound, expected));

    admin.pin_plan(PinPlanRequest { pinned: true }).await.unwrap();
    let (code, _) = refusal(admin.rebalance(RebalanceRequest {}).await);
    assert_eq!(code, Code::FailedPrecondition);
    admin.pin_plan(PinPlanRequest { pinned: false }).await.unwrap();
    let change = admin.rebalance(RebalanceRequest {}).await.unwrap().into_inner();
    assert_eq!(change.epoch, 3, "equal shares again");
    nodes[0].sees_serving(3).await;
    let change = admin.rebalance(RebalanceRequest {}).await.unwrap().into_inner();
    assert_eq!(change.outcome, "the plan would look the same and stays");
    coordinator.stop().await;
}
