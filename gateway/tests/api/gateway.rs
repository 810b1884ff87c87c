//! A gateway on a port, its model's folder, and the view it gets.

use std::{path::Path, sync::Arc, time::Duration};

use chassis::{Readiness, Shutdown, role::Process};
use domain::{ClusterView, Health, Load, Member, NodeId, Role};
use gateway::{Cluster, Config, Gateway};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use transport::{Hub, KeepAlive, sequences::Sequences};
use trust::{KeysConfig, Scope, Trust, TrustConfig};

use crate::{
    client::Client,
    node::{Node, Script, demo},
};

/// A template that shows what it was given.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// A running gateway with its nodes.
pub(crate) struct Started {
    pub(crate) client: Client,
    pub(crate) nodes: Vec<Node>,
    pub(crate) view: watch::Sender<Arc<ClusterView>>,
    pub(crate) process: Process,
    pub(crate) serving: JoinHandle<()>,
    _folder: TempDir,
}

/// A gateway in front of one node.
pub(crate) async fn start(script: Script) -> Started {
    start_with(vec![script], |_| {}).await
}

/// A gateway in front of several nodes, its configuration changed by `change`.
pub(crate) async fn start_with(scripts: Vec<Script>, change: impl FnOnce(&mut Config)) -> Started {
    start_trusting(Trust::default(), scripts, change).await
}

/// The same with keys.
pub(crate) async fn start_trusting(
    trust: Trust,
    scripts: Vec<Script>,
    change: impl FnOnce(&mut Config),
) -> Started {
    let folder = model_folder();
    let mut config = config(folder.path());
    change(&mut config);
    let nodes: Vec<_> = scripts.into_iter().map(Node::start).collect();
    let addresses: Vec<_> = nodes.iter().map(|node| node.address.clone()).collect();
    let (view, views) = watch::channel(Arc::new(view_of(&addresses)));
    let process = Process {
        registry: prometheus::Registry::new(),
        readiness: Readiness::default(),
        shutdown: Shutdown::new(Duration::from_secs(30)),
        pages: chassis::admin::Pages::default(),
        trust,
        tracer: chassis::traces::Tracer::default(),
    };
    let sequences = Sequences::new(Hub::new(), KeepAlive::default());
    let cluster = Cluster { view: views, sequences };
    let gateway = Gateway::open(config, cluster, process.clone()).await.unwrap();
    let client = Client::new(gateway.address());
    Started {
        client,
        nodes,
        view,
        process,
        serving: tokio::spawn(gateway.serve()),
        _folder: folder,
    }
}

/// Keys from a file, and one for each scope that a gateway knows.
pub(crate) struct Keyed {
    pub(crate) trust: Trust,
    pub(crate) inference: String,
    pub(crate) metrics: String,
}

/// Must be called within a tokio runtime.
pub(crate) fn keyed() -> Keyed {
    let made = |name, scope| trust::new_key(name, &[scope]).unwrap();
    let (asks, scrapes) = (made("alice", Scope::Inference), made("prometheus", Scope::Metrics));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, format!("{}{}", asks.entry, scrapes.entry)).unwrap();
    let config = TrustConfig { tls: None, keys: Some(KeysConfig { file }) };
    let trust = Trust::open(None, &config, &prometheus::Registry::new()).unwrap();
    Keyed { trust, inference: asks.secret, metrics: scrapes.secret }
}

impl Started {
    /// The port where the gateway listens, as `host:port`.
    pub(crate) fn authority(&self) -> String {
        self.client.authority()
    }

    pub(crate) async fn metrics(&self) -> String {
        self.client.get("/metrics").await.text
    }
}

/// The demo model's text files with a chat template.
fn model_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "config.json", "tokenizer_config.json"] {
        std::fs::copy(demo().join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

fn config(model: &Path) -> Config {
    serde_json::from_value(serde_json::json!({
        "model": {"path": model, "served_names": ["demo", "demo-2"]},
        "cluster": {"name": "gateway-0", "coordinators": ["127.0.0.1:1"]},
        "server": {"address": "127.0.0.1:0"},
    }))
    .unwrap()
}

/// A view with one attention node per address; later ones have fewer KV blocks.
pub(crate) fn view_of(addresses: &[String]) -> ClusterView {
    let member = |(nth, address): (u32, &String)| Member {
        id: NodeId(nth),
        name: format!("attention-{nth}"),
        role: Role::Attention,
        address: address.clone(),
        health: Health::Ready,
        load: Load { kv_blocks: 1000 - nth, kv_blocks_free: 1000 - nth, ..Load::default() },
    };
    ClusterView {
        version: 1,
        members: (0..).zip(addresses).map(member).collect(),
        ..ClusterView::default()
    }
}
