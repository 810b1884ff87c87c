//! Bodies of the public API: whatever they hold, the answer is a status and a sentence.

#![no_main]

use std::{path::Path, sync::LazyLock, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use chassis::{Readiness, Shutdown, admin::Pages, role::Process};
use gateway::{Cluster, Config, Gateway};
use libfuzzer_sys::fuzz_target;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};
use tower::ServiceExt;
use transport::{Hub, KeepAlive, sequences::Sequences};
use trust::Trust;

/// The first byte of an input chooses one.
const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];
/// Longer answers than any to inputs of this size.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A gateway without nodes: all of a request but the model is done before one is looked for.
static GATEWAY: LazyLock<(Runtime, Router)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let config: Config = serde_json::from_value(serde_json::json!({
        "model": {"path": model, "served_names": ["demo"], "chat_template": template()},
        "cluster": {"name": "gateway", "coordinators": ["127.0.0.1:1"]},
        "server": {"address": "127.0.0.1:0"},
    }))
    .expect("a configuration");
    let process = Process {
        registry: prometheus::Registry::new(),
        readiness: Readiness::default(),
        shutdown: Shutdown::new(Duration::from_secs(1)),
        pages: Pages::default(),
        trust: Trust::default(),
        tracer: chassis::traces::Tracer::default(),
    };
    let (_, view) = watch::channel(std::sync::Arc::default());
    let sequences = Sequences::new(Hub::new(), KeepAlive::default());
    let opened = Gateway::open(config, Cluster { view, sequences }, process);
    let router = runtime.block_on(opened).expect("a gateway").router();
    (runtime, router)
});

/// The demo model has no template of its own.
fn template() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("amoe-fuzz-{}.jinja", std::process::id()));
    let text = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}{% endfor %}\
                {% for t in tools or [] %}{{ t | tojson }}{% endfor %}";
    std::fs::write(&path, text).expect("a template");
    path
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, body)) = input.split_first() else { return };
    let (runtime, router) = &*GATEWAY;
    let request = Request::post(PATHS[usize::from(choice) % PATHS.len()])
        .body(Body::from(body.to_vec()))
        .expect("a request");
    runtime.block_on(async {
        let answer = router.clone().oneshot(request).await.expect("routers cannot fail");
        let status = answer.status();
        let text = to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await.expect("an answer");
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{}", String::from_utf8_lossy(&text));
        let _: serde_json::Value = serde_json::from_slice(&text).expect("answers are JSON");
    });
});
