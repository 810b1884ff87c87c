use std::path::Path;

use super::*;

fn costs(device: Device, model: Model) -> Costs {
    let spec = Spec { model, device, top_k: None, experts: None, layers: None };
    spec.costs(Path::new("")).unwrap()
}

#[test]
fn experts_are_the_sizes_that_their_makers_publish() {
    let expected = [
        (Model::Mixtral8x7b, 32, 352_321_536),
        (Model::Qwen3With30B, 48, 9_437_184),
        (Model::Qwen3With235B, 94, 37_748_736),
        (Model::DeepSeekV3, 58, 44_040_192),
    ];
    for (model, layers, bytes) in expected {
        let costs = costs(Device::H200, model);
        assert_eq!((costs.layers, costs.expert_bytes), (layers, bytes), "{model:?}");
    }
}

#[test]
fn an_expert_costs_the_same_until_its_ridge_and_grows_from_there_on() {
    let costs = costs(Device::A100With80G, Model::Mixtral8x7bMqa);
    let [one, half, full, twice] = [1, 64, 128, 512].map(|tokens| costs.expert.ns(tokens));
    assert_eq!(one, half);
    assert!(full < one + one / 4, "an A100 computes about as long as it reads at 128 tokens");
    assert!(twice > 3 * one);
    // 352 MB at four fifths of 2039 GB/s.
    assert_eq!(one / 1000, 215);
}

#[test]
fn context_costs_what_its_cache_takes_to_read() {
    let grouped = costs(Device::H200, Model::Mixtral8x7b);
    let single = costs(Device::H200, Model::Mixtral8x7bMqa);
    let cache = |costs: &Costs| costs.attention(64, 1_000_000) - costs.attention(64, 0);
    assert!(cache(&grouped) > 4 * cache(&single), "8 key/value heads are 8 times the bytes of 1");
    assert_eq!(grouped.attention(0, 0), 0);
}

#[test]
fn the_papers_steps_are_flat_to_128_tokens_and_linear_from_there_on() {
    let costs = costs(Device::AmoePaper, Model::Mixtral8x7bMqa);
    assert_eq!(
        [1, 128, 256].map(|tokens| costs.attention(tokens, 9)),
        [2_700_000, 2_700_000, 5_400_000]
    );
    assert_eq!(costs.launch([128, 1, 0, 256]), 800_000 * 4);
}

#[test]
fn a_layer_curve_follows_the_experts_it_activates() {
    let costs = costs(Device::H200, Model::Qwen3With30B);
    let layer = costs.layer(16);
    let few = layer.ns(16);
    let all = costs.launch([16; 16]);
    assert!(few > costs.launch([1; 8]) && few < all, "16 pairs activate about 10 of 16 experts");
    assert!(layer.ns(16 * 64).abs_diff(costs.launch([64; 16])) < 1000);
}

#[test]
fn overrides_are_checked() {
    let spec = |top_k, layers| Spec {
        model: Model::Mixtral8x7b,
        device: Device::H100,
        top_k,
        experts: Some(16),
        layers,
    };
    let costs = spec(Some(1), Some(4)).costs(Path::new("")).unwrap();
    assert_eq!((costs.layers, costs.experts, costs.top_k), (4, 16, 1));
    assert!(spec(Some(17), None).costs(Path::new("")).unwrap_err().contains("top_k is 17"));
    assert!(spec(None, Some(0)).costs(Path::new("")).unwrap_err().contains("layers is 0"));
}

#[test]
fn a_profile_under_recorded_routing_tells_activations_from_tokens() {
    let costs = costs(Device::H200, Model::Qwen3With30B);
    let mut trace = Trace::new(1, 4);
    // Few pairs on one expert, or the same number on all: 1 or 2 activated on a node of two.
    trace.push(&[8, 0, 8, 0]).unwrap();
    trace.push(&[200, 200, 200, 200]).unwrap();
    let curve = costs.layer_under(&trace, 2, 1).unwrap();
    assert!(curve.ns(8) < costs.launch([8, 8]));
    assert_eq!(curve.ns(400), costs.launch([200, 200]));
    assert_eq!(costs.layer_under(&Trace::new(1, 4), 2, 1), None);
}
