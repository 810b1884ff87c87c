use super::*;

fn hosts(nodes: usize, lists: &[&[u16]]) -> Hosts {
    Hosts::new(nodes, lists).unwrap()
}

fn bare<'a>(hosts: &'a Hosts, tokens: &'a [u32]) -> Instance<'a> {
    Instance { hosts, tokens, curves: &[], backlog_ns: &[] }
}

fn activated(policy: Policy, hosts: &Hosts, tokens: &[u32]) -> Vec<u32> {
    Router::new(policy).route(&bare(hosts, tokens)).unwrap().activated().to_vec()
}

#[test]
fn even_split_activates_every_replica() {
    let hosts = hosts(3, &[&[0, 1, 2], &[2], &[0, 1]]);
    let mut router = Router::new(Policy::EvenSplit);
    let assignment = router.route(&bare(&hosts, &[7, 0, 1])).unwrap();
    let shares = |expert| -> Vec<_> {
        assignment.shares(expert).iter().map(|share| (share.node, share.tokens)).collect()
    };
    assert_eq!(shares(0), [(0, 3), (1, 2), (2, 2)]);
    assert_eq!(shares(1), []);
    assert_eq!(shares(2), [(0, 1)]);
    assert_eq!(assignment.activated(), [2, 1, 1]);
    assert_eq!(assignment.max_activated(), 2);
}

#[test]
fn metro_goes_by_expert_and_aebs_by_what_has_no_choice() {
    // Expert 0 may choose, expert 1 may not: METRO puts both on node 0.
    let hosts = hosts(2, &[&[0, 1], &[0]]);
    assert_eq!(activated(Policy::Metro, &hosts, &[1, 1]), [2, 0]);
    assert_eq!(activated(Policy::Aebs, &hosts, &[1, 1]), [1, 1]);
}

#[test]
fn bad_hosts_are_named() {
    let error = Hosts::new(2, [[0], [2]]).unwrap_err();
    assert_eq!(error.to_string(), "expert 1 is hosted by node 2, expected a node below 2");
    let error = Hosts::new(70_000, [[0]]).unwrap_err();
    assert_eq!(error.to_string(), "found 70000 nodes, expected at most 65535");
    let error = Hosts::new(1, vec![[0]; 65_536]).unwrap_err();
    assert_eq!(error.to_string(), "found 65536 experts, expected at most 65535");
}

#[test]
fn bad_instances_are_named() {
    let hosts = hosts(2, &[&[0, 1], &[]]);
    let curves = [CostCurve::new(vec![(1, 1)]).unwrap()];
    let error = |instance| Router::new(Policy::Metro).route(&instance).unwrap_err().to_string();
    let fine = bare(&hosts, &[1, 0]);
    assert_eq!(
        error(Instance { tokens: &[1], ..fine }),
        "hosts are listed for 2 experts, tokens for 1"
    );
    assert_eq!(error(Instance { tokens: &[1, 5], ..fine }), "expert 1 has 5 tokens and no host");
    assert_eq!(
        error(Instance { curves: &curves, ..fine }),
        "2 nodes need as many cost curves or none, found 1"
    );
    assert_eq!(
        error(Instance { backlog_ns: &[1, 2, 3], ..fine }),
        "2 nodes need as many backlogs or none, found 3"
    );
}

#[test]
fn policies_have_names() {
    for policy in [Policy::EvenSplit, Policy::Metro, Policy::Aebs, Policy::Exact, Policy::Time] {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    assert_eq!(
        "METRO".parse::<Policy>().unwrap_err().to_string(),
        "`METRO` is no routing policy, expected even-split, metro, aebs, exact or time"
    );
}
