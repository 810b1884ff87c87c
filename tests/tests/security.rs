//! With security on nothing answers strangers: every route and every RPC of every process is asked.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use prost_types::{FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};
use serde_json::Value;
use tests::{
    ask, asks,
    client::{Ask, Client, text},
    dial::Dial,
    long_ask,
    processes::Processes,
    security::Security,
};
use tonic::{Code, Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;
use trust::{Party, authority::Authority};

/// Routes that answer everybody, by design: probes have no keys, and learn nothing else.
const PROBES: [&str; 3] = ["/health", "/livez", "/readyz"];
/// The same of the public port.
const PUBLIC_PROBES: [&str; 5] =
    ["/grpc.health.v1.Health/{*method}", "/health", "/livez", "/ping", "/readyz"];
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::PATCH,
    Method::OPTIONS,
];
const HEALTH: &str = "grpc.health.v1.Health";

/// Who may call which service of whom, by certificate alone.
fn may_call(server: Party, service: &str, caller: Party) -> bool {
    use Party::{AttentionNode, Coordinator, ExpertNode, Gateway, Operator};
    match (server, service) {
        (_, HEALTH) => true,
        (Coordinator, "amoe.internal.v1.Control") => {
            matches!(caller, Gateway | AttentionNode | ExpertNode)
        }
        (Coordinator, "amoe.v1.Admin") => caller == Operator,
        (AttentionNode, "amoe.internal.v1.Sequences") => caller == Gateway,
        (ExpertNode, "amoe.internal.v1.ExpertLink") => caller == AttentionNode,
        _ => false,
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    NoConnection,
    Denied,
    NotServed,
    Answered,
}

/// A gRPC method as a path, and its service.
struct Rpc {
    service: String,
    path: String,
}

/// Every RPC that there is: those of all our schemas, and of the services that we take from tonic.
fn rpcs() -> Result<Vec<Rpc>> {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
    let ours = protox::compile(proto_files(&schemas)?, [&schemas])?;
    let decode = |bytes: &[u8]| <FileDescriptorSet as prost::Message>::decode(bytes);
    let sets = [
        ours,
        decode(tonic_health::pb::FILE_DESCRIPTOR_SET)?,
        decode(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)?,
        decode(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)?,
    ];
    let mut rpcs = Vec::new();
    for file in sets.into_iter().flat_map(|set| set.file) {
        let package = file.package().to_owned();
        for ServiceDescriptorProto { name, method, .. } in file.service {
            let service = format!("{package}.{}", name.context("a service has a name")?);
            for MethodDescriptorProto { name, .. } in method {
                let path = format!("/{service}/{}", name.context("a method has a name")?);
                rpcs.push(Rpc { service: service.clone(), path });
            }
        }
    }
    ensure!(rpcs.len() >= 16, "only {} RPCs are known", rpcs.len());
    Ok(rpcs)
}

fn proto_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// Calls an RPC with an empty message.
async fn call(at: SocketAddr, dial: Dial, path: &str, key: Option<&str>) -> Result<Outcome> {
    let endpoint = Endpoint::from_shared(format!("http://{at}"))?.timeout(Duration::from_secs(30));
    let Ok(channel) = endpoint.connect_with_connector(dial).await else {
        return Ok(Outcome::NoConnection);
    };
    let mut grpc = Grpc::new(channel);
    if grpc.ready().await.is_err() {
        return Ok(Outcome::NoConnection);
    }
    let mut request = Request::new(());
    if let Some(key) = key {
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse()?);
    }
    let codec = ProstCodec::<(), ()>::default();
    Ok(match grpc.server_streaming(request, path.parse()?, codec).await {
        Ok(_) => Outcome::Answered,
        // An error of the connection has a source; what a server says has none.
        Err(status) if std::error::Error::source(&status).is_some() => Outcome::NoConnection,
        Err(status) => match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Outcome::Denied,
            Code::Unimplemented => Outcome::NotServed,
            _ => Outcome::Answered,
        },
    })
}

/// The processes of a cluster with one of each kind, and their ports for each other.
fn ports(cluster: &Processes) -> Result<[(Party, SocketAddr); 3]> {
    Ok([
        (Party::Coordinator, cluster.listens("coordinator")?),
        (Party::AttentionNode, cluster.listens("attention-0")?),
        (Party::ExpertNode, cluster.listens("expert-0")?),
    ])
}

/// Asks every route of an HTTP door in every way, without a key and with a wrong one.
async fn walk_door(door: &str, at: SocketAddr, dial: Dial, key: &str, open: &[&str]) -> Result<()> {
    let knows = Client::with(at, dial.clone(), Some(key))?;
    let listed = knows.send(Method::GET, "/routes", String::new()).await?;
    let table: Value = serde_json::from_str(&text(listed).await?)?;
    let rows = table.as_array().context("a list of routes")?;
    let field = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let routes: Vec<_> =
        rows.iter().map(|row| (field(row, "path"), field(row, "audience"))).collect();
    let mut everybodys: Vec<_> = routes
        .iter()
        .filter(|(_, audience)| audience == "everybody")
        .map(|(path, _)| &**path)
        .collect();
    everybodys.sort_unstable();
    assert_eq!(everybodys, open, "routes of {door} that answer everybody");

    let strangers = [
        Client::with(at, dial.clone(), None)?,
        Client::with(at, dial, Some("amoe-0123456789abcdef"))?,
    ];
    let mut paths: Vec<_> = routes.into_iter().map(|(path, _)| path).collect();
    paths.push("/nothing".to_owned());
    for path in paths.iter().filter(|path| !open.contains(&&***path)) {
        let path = path.replace("{*id}", "x").replace("{*method}", "X");
        for method in METHODS {
            for stranger in &strangers {
                let answer = stranger.send(method.clone(), &path, "{}".to_owned()).await?;
                let status = answer.status();
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} of {door}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_answers_without_a_key_but_probes() -> Result<()> {
    let mut cluster = Processes::secured(1, 1).await?;
    let security = cluster.security()?;
    let mut doors = 0;
    for (name, url) in cluster.admin_doors() {
        let at = url.trim_start_matches("http://").parse()?;
        walk_door(name, at, Dial::plain(), &security.metrics, &PROBES).await?;
        doors += 1;
    }
    assert_eq!(doors, 4);
    let public = cluster.address();
    let dial = security.client(public.ip())?;
    walk_door("gateway", public, dial.clone(), &security.metrics, &PUBLIC_PROBES).await?;
    let plain = Client::with(public, Dial::plain(), Some(&security.inference))?;
    assert!(plain.send(Method::GET, "/livez", String::new()).await.is_err(), "HTTP for HTTPS");

    // Keys of other scopes open none of this.
    for (key, path) in [
        (&security.metrics, "/v1/models"),
        (&security.admin, "/v1/models"),
        (&security.inference, "/metrics"),
    ] {
        let client = Client::with(public, dial.clone(), Some(key))?;
        let status = client.send(Method::GET, path, String::new()).await?.status();
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
    cluster.terminate(&[]).await?;
    cluster.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rpc_answers_strangers() -> Result<()> {
    let mut cluster = Processes::secured(1, 1).await?;
    let (security, rpcs) = (cluster.security()?, rpcs()?);
    let (foreign, expired) = (Security::foreign()?, security.others(-1)?);
    for (server, at) in ports(&cluster)? {
        for Rpc { service, path } in &rpcs {
            let mut strangers = vec![Dial::plain(), security.process(server, None)?];
            for party in Party::ALL {
                strangers.push(security.stranger(foreign.path(), server, Some(party))?);
                strangers.push(security.stranger(expired.path(), server, Some(party))?);
            }
            for stranger in strangers {
                // With the best key there is: it does not make up for a certificate.
                let outcome = call(at, stranger, path, Some(&security.admin)).await?;
                assert_eq!(outcome, Outcome::NoConnection, "{path} of {server}");
            }
            for caller in Party::ALL {
                let dial = security.process(server, Some(caller))?;
                let outcome = call(at, dial, path, None).await?;
                let expected: &[Outcome] = match may_call(server, service, caller) {
                    true => &[Outcome::Answered],
                    false => &[Outcome::Denied, Outcome::NotServed],
                };
                assert!(expected.contains(&outcome), "{path} of {server} to {caller}: {outcome:?}");
            }
        }
    }
    walk_public(&cluster, &rpcs).await?;
    keys_at_admin(&cluster).await?;
    // None of all this has troubled anybody.
    cluster.client()?.ask_all(&[ask(0), ask(1)], 1).await?;
    cluster.terminate(&[]).await?;
    cluster.ended().await
}

/// Clients of the gateway have no certificates, so it is keys that count.
async fn walk_public(cluster: &Processes, rpcs: &[Rpc]) -> Result<()> {
    let (security, at) = (cluster.security()?, cluster.address());
    let dial = security.client(at.ip())?;
    for Rpc { service, path } in rpcs {
        for key in [None, Some("amoe-0123456789abcdef")] {
            let outcome = call(at, dial.clone(), path, key).await?;
            let expected = if service == HEALTH { Outcome::Answered } else { Outcome::Denied };
            assert_eq!(outcome, expected, "{path} of the gateway with {key:?}");
        }
        let knows = call(at, dial.clone(), path, Some(&security.inference)).await?;
        let served = ["amoe.v1.Inference", HEALTH].contains(&&**service)
            || service.starts_with("grpc.reflection.");
        let expected = if served { Outcome::Answered } else { Outcome::NotServed };
        assert_eq!(knows, expected, "{path} of the gateway with a key");
    }
    Ok(())
}

/// Admin is for operators, by certificate or by key.
async fn keys_at_admin(cluster: &Processes) -> Result<()> {
    let (security, at) = (cluster.security()?, cluster.listens("coordinator")?);
    let path = "/amoe.v1.Admin/ShowPlan";
    let gateway = security.process(Party::Coordinator, Some(Party::Gateway))?;
    for (key, expected) in [
        (&security.inference, Outcome::Denied),
        (&security.metrics, Outcome::Denied),
        (&security.admin, Outcome::Answered),
    ] {
        assert_eq!(call(at, gateway.clone(), path, Some(key)).await?, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_cluster_answers_as_an_open_one_and_operators_get_in() -> Result<()> {
    let asks = asks(0..30);
    let mut single = Processes::single().await?;
    let expected = single.client()?.ask_all(&asks, 8).await?;
    single.terminate(&[]).await?;
    single.ended().await?;

    let mut cluster = Processes::secured(2, 2).await?;
    assert_eq!(cluster.client()?.ask_all(&asks, 8).await?, expected);
    let (security, at) = (cluster.security()?, cluster.listens("coordinator")?.to_string());
    let path = |name: &str| security.file(name).display().to_string();
    let (authority, admin) = (path("ca.pem"), security.admin.clone());
    let as_party = |party: &str| {
        let (pem, key) = (path(&format!("{party}.pem")), path(&format!("{party}.key")));
        ["--tls-certificate".into(), pem, "--tls-key".into(), key]
    };
    let show = async |more: Vec<String>| {
        let mut args = ["plan", "show", "--coordinator", &at].map(str::to_owned).to_vec();
        args.extend(more);
        Processes::amoe(&args).await
    };
    let with = |party: &str, more: &[&str]| {
        let authority = ["--tls-authority".to_owned(), authority.clone()];
        [&as_party(party)[..], &authority, &more.iter().map(|&s| s.into()).collect::<Vec<_>>()]
            .concat()
    };
    let shown = show(with("operator", &[])).await.context("an operator's certificate")?;
    ensure!(shown.contains("expert-0"), "{shown}");
    show(with("gateway", &["--api-key", &admin])).await.context("an operator's key")?;
    for (stranger, sentence) in [
        (with("expert-node", &[]), "a known key is expected"),
        (vec!["--api-key".to_owned(), admin.clone()], "coordinator at"),
    ] {
        let error = show(stranger).await.expect_err("strangers are shown the plan").to_string();
        ensure!(error.contains(sentence), "{error}");
    }
    cluster.terminate(&[]).await?;
    cluster.ended().await
}

/// Puts a file in the place of another at once, as a secret that is mounted anew.
fn put(at: &Path, bytes: &[u8]) -> Result<()> {
    let beside = at.with_extension("beside");
    fs::write(&beside, bytes)?;
    Ok(fs::rename(beside, at)?)
}

/// The cluster's authority gives way to another under load, the way operators do it: trust both, then
/// renew the certificates, then trust the new one only.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_keys_change_under_load() -> Result<()> {
    let mut cluster = Processes::secured(1, 2).await?;
    let load: Vec<Ask> = (0..4).flat_map(|n| (0..12).map(move |m| long_ask(12 * n + m))).collect();
    let client = cluster.client()?;
    let change = async {
        client.answered(2).await?;
        rotate(&mut cluster).await
    };
    let (replies, ()) = tokio::try_join!(client.ask_all(&load, 6), change)?;
    assert_eq!(replies.len(), load.len());
    let security = cluster.security()?;

    // A key that is struck out opens nothing any more; the others do.
    let keys = fs::read_to_string(security.file("keys.toml"))?;
    let (_, rest) = keys.split_at(keys[1..].find("[[keys]]").context("several keys")? + 1);
    put(&security.file("keys.toml"), rest.as_bytes())?;
    cluster.until("gateway", "amoe_trust_keys", |known| known == 2.0).await?;
    let refused = client.ask(&ask(0)).await.expect_err("a struck key opens").to_string();
    ensure!(refused.contains("401") || refused.contains("known key"), "{refused}");
    cluster.terminate(&[]).await?;
    cluster.ended().await
}

async fn rotate(cluster: &mut Processes) -> Result<()> {
    let names = ["gateway", "coordinator", "attention-0", "expert-0", "expert-1"];
    let reloads = "amoe_trust_reloads_total";
    let next = Security::foreign()?;
    let file =
        |cluster: &Processes, name: &str| Ok::<_, anyhow::Error>(cluster.security()?.file(name));
    let everybody_has = async |cluster: &Processes, count: f64| {
        for name in names {
            cluster.until(name, reloads, |reloads| reloads >= count).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let public = cluster.address().ip().to_string();
    Authority::open(next.path())?.certify_public(&[public], 2)?;
    let old = cluster.security()?.others(2)?;
    let (gone, new) = (fs::read(old.path().join("ca.pem"))?, fs::read(next.path().join("ca.pem"))?);
    put(&file(cluster, "ca.pem")?, &[&gone[..], &new].concat())?;
    everybody_has(cluster, 1.0).await?;
    for party in Party::ALL {
        for end in ["key", "pem"] {
            let name = format!("{}.{end}", party.name());
            put(&file(cluster, &name)?, &fs::read(next.path().join(&name))?)?;
        }
    }
    // A certificate and its key may be seen apart, which is told as a bad change before the good one.
    everybody_has(cluster, 2.0).await?;
    // A node that comes back shows its new certificate and is shown those of the others.
    cluster.kill("expert-1").await?;
    cluster.start("expert-1")?;
    cluster.ready("expert-1").await?;
    put(&file(cluster, "ca.pem")?, &new)?;
    until_refused(cluster, old.path()).await
}

/// Waits until nobody trusts the certificates in `folder` any more.
async fn until_refused(cluster: &Processes, folder: &Path) -> Result<()> {
    let check = format!("/{HEALTH}/Check");
    for (server, at) in ports(cluster)? {
        let dial = cluster.security()?.stranger(folder, server, Some(Party::Operator))?;
        let refused = async {
            while call(at, dial.clone(), &check, None).await? != Outcome::NoConnection {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let refused = tokio::time::timeout(Duration::from_secs(60), refused).await;
        refused.with_context(|| format!("{server} still trusts the old authority"))??;
    }
    Ok(())
}
