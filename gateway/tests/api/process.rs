//! The gateway as a process: metrics, drain, start.

use std::sync::Arc;

use chassis::{Readiness, Shutdown, role::Process};
use gateway::{
    Cluster, Config, Gateway,
    config::{BoundsConfig, PatienceConfig, ServerConfig},
};
use serde_json::json;
use transport::{Hub, KeepAlive, sequences::Sequences};

use crate::{
    gateway::start,
    node::{Act, ids, say, saying},
};

#[tokio::test]
async fn metrics_have_vllm_s_names_and_count_what_happened() {
    let gateway = start(saying(" said unto him")).await;
    let body = json!({"prompt": "And God", "n": 2, "max_tokens": 50});
    gateway.client.post("/v1/completions", body).await.ok();
    gateway.client.get("/v1/nothing").await;
    let metrics = gateway.metrics().await;
    let (prompt, said) = (ids("And God").len(), ids(" said unto him").len() + 1);
    for line in [
        format!("vllm:prompt_tokens_total{{model_name=\"demo\"}} {prompt}"),
        format!("vllm:generation_tokens_total{{model_name=\"demo\"}} {}", 2 * said),
        "vllm:request_success_total{finished_reason=\"stop\",model_name=\"demo\"} 2".into(),
        "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 2".into(),
        format!("vllm:inter_token_latency_seconds_count{{model_name=\"demo\"}} {}", 2 * (said - 1)),
        "vllm:e2e_request_latency_seconds_count{model_name=\"demo\"} 2".into(),
        "vllm:request_time_per_output_token_seconds_count{model_name=\"demo\"} 2".into(),
        "vllm:request_params_n_sum{model_name=\"demo\"} 2".into(),
        "vllm:request_params_max_tokens_sum{model_name=\"demo\"} 50".into(),
        format!("vllm:request_max_num_generation_tokens_sum{{model_name=\"demo\"}} {said}"),
        "vllm:num_requests_running{model_name=\"demo\"} 0".into(),
        "vllm:num_requests_waiting{model_name=\"demo\"} 0".into(),
        "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0".into(),
        "amoe_gateway_attention_nodes_ready{model_name=\"demo\"} 1".into(),
        "amoe_gateway_refused_total{kind=\"unknown_path\",model_name=\"demo\"} 1".into(),
        "amoe_gateway_responses_total{model_name=\"demo\",route=\"other\",status=\"404\"} 1".into(),
        "amoe_gateway_responses_total{model_name=\"demo\",route=\"/v1/completions\",status=\"200\"} 1"
            .into(),
    ] {
        assert!(metrics.contains(&line), "{line}\nis not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let (gate, opened) = tokio::sync::watch::channel(false);
    let script = Arc::new(move |request: &domain::SequenceRequest| {
        let mut acts = say(request, " said unto him");
        acts.insert(1, Act::Gate(opened.clone()));
        acts
    });
    let gateway = start(script).await;
    let body = json!({"prompt": "And God", "stream": true, "max_tokens": 50});
    let mut stream = gateway.client.stream("/v1/completions", body).await;
    let first = stream.next().await.unwrap();
    gateway.process.shutdown.request();
    while tokio::net::TcpStream::connect(gateway.authority()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.send(true).unwrap();
    let rest = stream.chunks().await;
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop", "{first}");
    gateway.serving.await.unwrap();
}

#[tokio::test]
async fn a_start_that_cannot_be_is_one_sentence() {
    let empty = tempfile::tempdir().unwrap();
    let config = |model: &std::path::Path, tries_max: u32| -> Config {
        serde_json::from_value(json!({
            "model": {"path": model},
            "cluster": {"name": "gateway-0", "coordinators": ["127.0.0.1:1"]},
            "server": {"address": "127.0.0.1:0"},
            "patience": {"tries_max": tries_max},
        }))
        .unwrap()
    };
    let mut lost = config(crate::node::demo(), 1);
    lost.cluster.coordinators = vec!["nonsense".into()];
    for (config, sentence) in [
        (lost, "key `cluster.coordinators`: expected at least one address"),
        (config(empty.path(), 6), "tokenizer.json"),
        (config(crate::node::demo(), 0), "key `patience.tries_max`: expected at least 1"),
    ] {
        let (_sender, view) = tokio::sync::watch::channel(Arc::default());
        let process = Process {
            registry: prometheus::Registry::new(),
            readiness: Readiness::default(),
            shutdown: Shutdown::new(std::time::Duration::from_secs(1)),
            pages: chassis::admin::Pages::default(),
            trust: trust::Trust::default(),
            tracer: chassis::traces::Tracer::default(),
        };
        let sequences = Sequences::new(Hub::new(), KeepAlive::default());
        let opened = Gateway::open(config, Cluster { view, sequences }, process).await;
        let message = opened.unwrap_err().to_string();
        assert!(message.contains(sentence), "{message}");
    }
}

#[test]
fn the_documented_configuration_is_the_default_one() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (toml, _) = rest.split_once("```").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), toml).unwrap();
    let documented: Config = chassis::config::load(Some(file.path())).unwrap();
    documented.check().unwrap();
    assert_eq!(documented.server, ServerConfig::default());
    assert_eq!(documented.patience, PatienceConfig::default());
    assert_eq!(documented.bounds, BoundsConfig::default());
}
