//! The admin door over loopback, read with a bare socket.

use std::{net::SocketAddr, time::Duration};

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use trust::{Keys, Scope, Trust, TrustConfig};

use super::{Admin, AdminConfig, Pages, routes, serve};
use crate::{
    Readiness, Shutdown, metrics,
    role::Process,
    routes::{Audience, Routes},
    shutdown::ShutdownConfig,
};

struct Door {
    admin: Admin,
    readiness: Readiness,
    shutdown: Shutdown,
    pages: Pages,
}

async fn open() -> Door {
    open_to(&Trust::default()).await
}

async fn open_to(trust: &Trust) -> Door {
    let (readiness, pages) = (Readiness::default(), Pages::new(trust));
    let shutdown = Shutdown::new(Duration::from_secs(1));
    let registry = metrics::registry("test").unwrap();
    pages.add(routes(registry, readiness.clone(), shutdown.clone()));
    let admin = serve(&anywhere(), pages.clone(), trust).await.unwrap();
    Door { admin, readiness, shutdown, pages }
}

fn anywhere() -> AdminConfig {
    AdminConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)), tls: false }
}

/// Status and body of `GET path`.
async fn fetch(door: &Door, path: &str) -> (u16, String) {
    fetch_with(door, path, "").await
}

async fn fetch_with(door: &Door, path: &str, header: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(door.admin.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{header}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn health_follows_the_life_of_a_process() {
    let door = open().await;
    assert_eq!(fetch(&door, "/readyz").await, (503, "starting\n".to_owned()));
    door.readiness.set("weights", false);
    door.readiness.set("plan", false);
    assert_eq!(fetch(&door, "/readyz").await, (503, "waiting for: plan, weights\n".to_owned()));
    door.readiness.set("weights", true);
    door.readiness.set("plan", true);
    assert_eq!(fetch(&door, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(fetch(&door, "/health").await, (200, "ready\n".to_owned()));
    door.shutdown.request();
    assert_eq!(fetch(&door, "/health").await, (503, "draining\n".to_owned()));
    assert_eq!(fetch(&door, "/livez").await, (200, "alive\n".to_owned()));
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let door = open().await;
    let (status, body) = fetch(&door, "/metrics").await;
    assert_eq!(status, 200);
    assert!(body.contains("# TYPE amoe_build_info gauge"), "{body}");
}

#[tokio::test]
async fn a_role_adds_pages_while_the_door_is_open() {
    let door = open().await;
    assert_eq!(fetch(&door, "/plan").await.0, 404);
    let page = |path, text: &'static str| {
        Routes::default().add(path, Audience::KeyHolders, get(async move || text))
    };
    door.pages.add(page("/plan", "epoch 3"));
    door.pages.add(page("/nodes", "none"));
    assert_eq!(fetch(&door, "/plan").await, (200, "epoch 3".to_owned()));
    assert_eq!(fetch(&door, "/nodes").await, (200, "none".to_owned()));
    assert_eq!(fetch(&door, "/livez").await.0, 200);
}

#[tokio::test]
async fn without_a_key_only_probes_are_answered() {
    let trust = Trust::default().with_keys(Keys::plain(&["secret".to_owned()]));
    let door = open_to(&trust).await;
    let admin = Audience::Scope(Scope::Admin);
    door.pages.add(Routes::default().add("/plan", admin, get(async || "epoch 3")));
    for path in ["/metrics", "/plan", "/routes", "/nothing"] {
        let (status, sentence) = fetch(&door, path).await;
        assert_eq!(status, 401, "{path}");
        assert!(sentence.starts_with("a known key is expected"), "{sentence}");
        let wrong = "Authorization: Bearer secrets\r\n";
        assert_eq!(fetch_with(&door, path, wrong).await.0, 401, "{path}");
        let right = "Authorization: Bearer secret\r\n";
        let expected = if path == "/nothing" { 404 } else { 200 };
        assert_eq!(fetch_with(&door, path, right).await.0, expected, "{path}");
        // `alice:secret` and `alice:secrets`, as browsers say it.
        let right = "Authorization: Basic YWxpY2U6c2VjcmV0\r\n";
        assert_eq!(fetch_with(&door, path, right).await.0, expected, "{path}");
        let wrong = "Authorization: Basic YWxpY2U6c2VjcmV0cw==\r\n";
        assert_eq!(fetch_with(&door, path, wrong).await.0, 401, "{path}");
    }
    assert_eq!(fetch(&door, "/livez").await.0, 200);
    assert_eq!(fetch(&door, "/readyz").await.0, 503);
    let right = "Authorization: Bearer secret\r\n";
    let (_, listed) = fetch_with(&door, "/routes", right).await;
    for row in [
        r#"{"path":"/livez","audience":"everybody"}"#,
        r#"{"path":"/metrics","audience":"metrics"}"#,
        r#"{"path":"/plan","audience":"admin"}"#,
        r#"{"path":"/routes","audience":"metrics"}"#,
    ] {
        assert!(listed.contains(row), "{listed}");
    }
}

#[tokio::test]
async fn keys_that_a_process_is_given_hold_at_its_door() {
    let process = Process::new("test", &ShutdownConfig::default(), &TrustConfig::default());
    let process = process.unwrap().with_keys(Keys::plain(&["secret".to_owned()]));
    let admin = process.open_admin(&anywhere()).await.unwrap();
    let Process { readiness, shutdown, pages, .. } = process;
    let door = Door { admin, readiness, shutdown, pages };
    assert_eq!(fetch(&door, "/metrics").await.0, 401);
    assert_eq!(fetch_with(&door, "/metrics", "Authorization: Bearer secret\r\n").await.0, 200);
}

#[tokio::test]
async fn https_wants_a_certificate() {
    let config = AdminConfig { tls: true, ..anywhere() };
    let error = serve(&config, Pages::default(), &Trust::default()).await.unwrap_err();
    assert!(error.to_string().contains("expected only with a section `tls`"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let door = open().await;
    let config = AdminConfig { address: door.admin.address(), tls: false };
    let error = serve(&config, Pages::default(), &Trust::default()).await.unwrap_err();
    let expected = format!("key `admin.address`: cannot listen on {}: ", config.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
}
