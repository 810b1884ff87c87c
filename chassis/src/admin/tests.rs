//! The admin door over loopback, read with a bare socket.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Admin, AdminConfig, Pages, routes, serve};
use crate::{Readiness, Shutdown, metrics};

struct Door {
    admin: Admin,
    readiness: Readiness,
    shutdown: Shutdown,
    pages: Pages,
}

async fn open() -> Door {
    let config = AdminConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)) };
    let (readiness, pages) = (Readiness::default(), Pages::default());
    let shutdown = Shutdown::new(Duration::from_secs(1));
    let registry = metrics::registry("test").unwrap();
    let routes = routes(registry, readiness.clone(), shutdown.clone());
    let admin = serve(&config, routes, pages.clone()).await.unwrap();
    Door { admin, readiness, shutdown, pages }
}

/// Status and body of `GET path`.
async fn fetch(door: &Door, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(door.admin.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
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
    door.pages.add(Router::new().route("/plan", get(async || "epoch 3")));
    door.pages.add(Router::new().route("/nodes", get(async || "none")));
    assert_eq!(fetch(&door, "/plan").await, (200, "epoch 3".to_owned()));
    assert_eq!(fetch(&door, "/nodes").await, (200, "none".to_owned()));
    assert_eq!(fetch(&door, "/livez").await.0, 200);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let door = open().await;
    let config = AdminConfig { address: door.admin.address() };
    let error = serve(&config, Router::new(), Pages::default()).await.unwrap_err();
    let expected = format!("key `admin.address`: cannot listen on {}: ", config.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
}
