//! What a whole cluster shows to Prometheus is what Prometheus's own checker accepts.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use tests::{Cluster, Layout, checkpoint, sequence};

const MODEL: &str = "../models/demo";
const VOCAB: u32 = 2048;
/// The one complaint that stands: request-level metrics have vLLM's names, and those have a colon.
const ACCEPTED: &str = "metric names should not contain ':'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_has_no_complaint_about_any_role() -> Result<()> {
    let layout = Layout { attention: 2, experts: 2, ..Layout::default() };
    let mut cluster = Cluster::start(&checkpoint(MODEL), &layout).await?;
    cluster.open_gateway(&checkpoint(MODEL)).await?;
    cluster.run(0, sequence(1, VOCAB)).await?;
    cluster.run(1, sequence(2, VOCAB)).await?;
    let text = chassis::metrics::encode(&cluster.process().registry)?;
    cluster.stop().await?;
    for role in ["amoe_attention_", "amoe_expert_", "amoe_coordinator_", "amoe_link_", "vllm:"] {
        assert!(text.contains(role), "{role}* is missing");
    }
    let complaints: Vec<String> =
        check(&text)?.lines().filter(|line| !line.contains(ACCEPTED)).map(str::to_owned).collect();
    assert_eq!(complaints, [""; 0]);
    Ok(())
}

/// What `promtool check metrics` says of a page.
fn check(text: &str) -> Result<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("this test needs promtool (Debian's package prometheus)")?;
    promtool.stdin.take().context("stdin is piped")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?)
}
