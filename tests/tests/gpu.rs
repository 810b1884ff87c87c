//! Nodes on GPUs, which are emulated: the same answers whatever is batched, wherever experts lie and whichever GPU fails.

use anyhow::{Result, ensure};
use tests::{
    asks,
    processes::{Processes, refusal},
};

/// Requests that run at a time.
const AT_ONCE: usize = 8;
/// Launches of the GPU that fails: some of what it was asked for.
const LAUNCHES: u32 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn experts_on_gpus_answer_alike_in_any_company() -> Result<()> {
    // Few: an emulated GPU is slow.
    let asks = asks(1..6);
    let alone = Processes::on_gpus(&["expert"], (1, 1)).await?;
    let expected = alone.client()?.ask_all(&asks, 1).await?;

    let mut shared = Processes::on_gpus(&["expert"], (2, 1)).await?;
    shared.add_late("expert", 1)?;
    shared.break_gpu("expert-1", LAUNCHES)?;
    shared.start("expert-1")?;
    shared.ready("expert-1").await?;
    let replies = shared.client()?.ask_all(&asks, AT_ONCE).await?;
    ensure!(replies == expected, "{replies:?}\nwere expected to be\n{expected:?}");
    let code = shared.gives_up("expert-1").await?;
    ensure!(code == 1, "a node without its GPU ended with {code}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_and_experts_on_gpus_answer_alike_in_any_company() -> Result<()> {
    const BOTH: &[&str] = &["attention", "expert"];
    let asks = asks(1..5);
    let alone = Processes::on_gpus(BOTH, (1, 1)).await?;
    let expected = alone.client()?.ask_all(&asks, 1).await?;

    let mut shared = Processes::on_gpus(BOTH, (1, 2)).await?;
    shared.add_late("attention", 1)?;
    shared.break_gpu("attention-1", 8 * LAUNCHES)?;
    shared.start("attention-1")?;
    shared.ready("attention-1").await?;
    let replies = shared.client()?.ask_all(&asks, AT_ONCE).await?;
    ensure!(replies == expected, "{replies:?}\nwere expected to be\n{expected:?}");
    let code = shared.gives_up("attention-1").await?;
    ensure!(code == 1, "a node without its GPU ended with {code}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_by_nccl_and_communicators_that_break_change_no_answer() -> Result<()> {
    // A prompt so long that its rows are worth it.
    let asks = asks(14..15);
    let by_grpc = Processes::between_gpus(&[("AMOE_LINKS__NCCL", "off")]).await?;
    let expected = by_grpc.client()?.ask_all(&asks, 1).await?;
    let count = by_grpc.read("attention-0", "amoe_link_nccl_row_bytes_sent_total").await?;
    ensure!(count == Some(0.0), "{count:?} bytes went by NCCL");

    const BREAKS: &[(&str, &str)] =
        &[("AMOE_LINKS__NCCL", "on"), ("AMOE_EMULATED_NCCL_BREAK", "4")];
    let by_nccl = Processes::between_gpus(BREAKS).await?;
    for node in ["attention-0", "expert-0"] {
        by_nccl.until(node, "amoe_link_nccl_pairs", |pairs| pairs == 1.0).await?;
    }
    let replies = by_nccl.client()?.ask_all(&asks, AT_ONCE).await?;
    ensure!(replies == expected, "{replies:?}\nwere expected to be\n{expected:?}");
    let mut failures = 0.0;
    for node in ["attention-0", "expert-0"] {
        let sent = by_nccl.read(node, "amoe_link_nccl_row_bytes_sent_total").await?;
        ensure!(sent > Some(0.0), "{node} sent nothing by NCCL");
        let failed = by_nccl.read(node, "amoe_link_nccl_pairs_failed_total").await?;
        failures += failed.unwrap_or(0.0);
        by_nccl.until(node, "amoe_link_nccl_pairs", |pairs| pairs == 1.0).await?;
    }
    // Whoever does not notice first hears that the link is down.
    ensure!(failures > 0.0, "no communicator broke");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_have_its_gpu_says_why_in_a_sentence() -> Result<()> {
    let cases = [
        (
            ("LD_LIBRARY_PATH", "/nowhere"),
            "expert-node: device cuda:0: no CUDA driver on this machine: libcuda was not found",
        ),
        (
            ("AMOE_EMULATED_FAULT", "no-device"),
            "expert-node: device cuda:0: no CUDA device 0: no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)",
        ),
        (
            ("AMOE_EMULATED_FAULT", "old-driver"),
            "expert-node: device cuda:0: the CUDA driver is too old: it supports CUDA 12.4, the kernels need 13.0",
        ),
        (
            ("AMOE_EMULATED_CAPABILITY", "75"),
            "expert-node: device cuda:0: emulated GPU has compute capability 7.5; the kernels need 8.0 or newer",
        ),
        (
            ("AMOE_GPU__KERNELS", "/dev/null"),
            "expert-node: device cuda:0: the CUDA kernels were not built: run cargo xtask kernels",
        ),
        (
            ("AMOE_GPU__MEMORY_UTILIZATION", "0.01"),
            "expert-node: experts on the GPU: 10737419 bytes of GPU memory hold no expert of 147456 bytes beside the \
             rows of a launch of 16384 pairs",
        ),
        (
            ("AMOE_NODE__EXPERT_SLOTS", "97"),
            "expert-node: key `node.expert_slots` is 97, expected at most 96: the GPU's memory holds no more",
        ),
        (
            ("AMOE_DEVICE__COMPUTE", "f32"),
            "expert-node: cuda:0 computes in bf16, and f32 is asked for",
        ),
    ];
    for (environment, sentence) in cases {
        let (code, said) = refusal(environment).await?;
        ensure!((code, &*said) == (Some(1), sentence), "{environment:?}: {code:?} {said}");
    }
    Ok(())
}
