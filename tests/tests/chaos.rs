//! `amoe chaos` for as long as a few faults take: whatever is killed or stands still, no request fails and no answer changes.

use anyhow::Result;
use serde_json::Value;
use tests::{checkpoint, processes::Processes};

/// One of each way in which a process can fail, and of each role.
const FAULTS: [&str; 8] = [
    "expert-killed",
    "attention-killed",
    "gateway-killed",
    "coordinator-killed",
    "etcd-quorum-lost",
    "expert-hung",
    "attention-drained",
    "weights-corrupt",
];

#[tokio::test]
async fn faults_fail_no_request_and_change_no_answer() -> Result<()> {
    let (model, faults) = (checkpoint("../models/demo").display().to_string(), FAULTS.join(","));
    let args = ["chaos", "--local", "--json", "--seconds", "8", "--every", "4", "--seed", "1"];
    let args = args.into_iter().chain(["--model", &model, "--faults", &faults]);
    let args: Vec<String> = args.map(ToOwned::to_owned).collect();
    let outcome: Value = serde_json::from_str(&Processes::amoe(&args).await?)?;

    assert_eq!((&outcome["failed"], &outcome["changed"]), (&0.into(), &0.into()), "{outcome}");
    assert!(outcome["requests"].as_u64() > Some(8), "{outcome}");
    let mut struck: Vec<_> =
        outcome["by_fault"].as_array().into_iter().flatten().map(|fault| &fault["kind"]).collect();
    struck.sort_by_key(|kind| kind.to_string());
    let mut wanted = FAULTS;
    wanted.sort_unstable();
    assert_eq!(struck, wanted, "{outcome}");
    Ok(())
}
