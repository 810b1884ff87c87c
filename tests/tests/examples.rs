//! The configurations in `deploy/examples` are ones that the roles accept, and name addresses that fit together.

use std::{collections::BTreeSet, path::PathBuf};

use chassis::role::{self, ProcessConfig, RoleConfig};

fn load<C: RoleConfig>(role: &str) -> (ProcessConfig, C) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    role::load(Some(&folder.join(format!("{role}.toml")))).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn roles_accept_their_examples_which_make_one_cluster() {
    let (coordinator_process, coordinator) = load::<coordinator::Config>("coordinator");
    let (gateway_process, gateway) = load::<gateway::Config>("gateway");
    let (attention_process, attention) = load::<attention_node::Config>("attention-node");
    let (expert_process, expert) = load::<expert_node::Config>("expert-node");

    let control = [coordinator.control.listen];
    assert_eq!(gateway.cluster.coordinators, control);
    assert_eq!(attention.cluster.coordinators, control);
    assert_eq!(expert.cluster.coordinators, control);
    assert_eq!(gateway.model.path, attention.model.path);
    assert_eq!(attention.model.path, expert.model.path);

    let addresses = [
        control[0].clone(),
        attention.node.listen,
        expert.node.listen,
        gateway.server.address.to_string(),
        coordinator_process.admin.address.to_string(),
        gateway_process.admin.address.to_string(),
        attention_process.admin.address.to_string(),
        expert_process.admin.address.to_string(),
    ];
    let different: BTreeSet<_> = addresses.iter().collect();
    assert_eq!(different.len(), addresses.len(), "two listen on one of {addresses:?}");
}
