//! Clients that others wrote talk to amoe unchanged: the openai package and grpcurl.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Result, ensure};
use tests::processes::Processes;
use tokio::process::Command;

/// Runs a program; what it printed.
async fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{printed}{errors}", output.status);
    Ok(printed.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_and_grpcurl_are_served() -> Result<()> {
    let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients");
    let python = run(Command::new("sh").arg(clients.join("setup.sh"))).await?;

    let mut server = Processes::single().await?;
    let (url, authority) = (format!("http://{}", server.address()), server.address().to_string());
    for (script, address, expected) in [
        ("openai_client.py", url, "models, completions, chat, constraints, errors are right"),
        ("grpc_client.py", authority, "errors are right"),
    ] {
        let said = run(Command::new(&python).arg(clients.join(script)).arg(address)).await?;
        assert!(said.ends_with(expected), "{said}");
    }
    server.terminate(&[]).await?;
    server.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_is_served_by_a_secured_cluster() -> Result<()> {
    let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients");
    let python = run(Command::new("sh").arg(clients.join("setup.sh"))).await?;

    let mut cluster = Processes::secured(1, 1).await?;
    let (security, url) = (cluster.security()?, format!("https://{}", cluster.address()));
    let mut script = Command::new(&python);
    script.arg(clients.join("openai_client.py")).arg(url).arg(&security.inference);
    let said = run(script.env("SSL_CERT_FILE", security.file("ca.pem"))).await?;
    assert!(said.ends_with("are right"), "{said}");
    cluster.terminate(&[]).await?;
    cluster.ended().await
}
