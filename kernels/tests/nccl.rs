//! The NCCL wrapper without a GPU: two processes exchange rows through an emulated library.

#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod emulator;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use emulator::text;

/// Both ends, `faults` for the sender and the receiver.
fn ends(faults: [&[(&str, &str)]; 2], transfers: &str) -> [Output; 2] {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id");
    let start = |end: &str, faults: &[(&str, &str)]| -> Child {
        let mut program = Command::new(env!("CARGO_BIN_EXE_nccl-check"));
        program.env("LD_LIBRARY_PATH", emulator::folder()).envs(faults.iter().copied());
        program.arg(end).arg(&file).args(["--transfers", transfers]);
        program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ends = [start("send", faults[0]), start("receive", faults[1])];
    ends.map(|end| end.wait_with_output().unwrap())
}

fn one_end(libraries: &Path, faults: &[(&str, &str)]) -> String {
    let program = Command::new(env!("CARGO_BIN_EXE_nccl-check"))
        .env("LD_LIBRARY_PATH", libraries)
        .envs(faults.iter().copied())
        .args(["send", "/dev/null/nowhere"])
        .output();
    let output = program.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn two_processes_exchange_rows() {
    for end in ends([&[], &[]], "40") {
        assert!(end.status.success(), "{}", text(&end));
        let said = text(&end);
        assert!(said.contains("NCCL 22809: joined in "), "{said}");
        assert!(said.contains("40 transfers of 17900660 bytes in all took "), "{said}");
    }
}

#[test]
fn a_communicator_that_breaks_is_broken_at_both_ends() {
    let sentence = "exchanging rows by NCCL: remote process exited or there was a network error \
                    (NCCL's code 6)";
    for end in ends([&[("AMOE_EMULATED_NCCL_BREAK", "7")], &[]], "40") {
        assert!(!end.status.success());
        assert!(text(&end).contains(sentence), "{}", text(&end));
    }
}

#[test]
fn a_communicator_that_cannot_be_made_says_so_and_is_aborted() {
    let faults = [("AMOE_EMULATED_NCCL", "no-join")];
    let [sender, receiver] = ends([&faults, &faults], "1");
    for end in [sender, receiver] {
        let sentence = "exchanging rows by NCCL: unhandled system error (NCCL's code 2)";
        assert_eq!(text(&end).trim(), format!("nccl-check: {sentence}"));
    }
}

#[test]
fn a_machine_without_the_library_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        emulator::folder().join("libcuda.so.1"),
        folder.path().join("libcuda.so.1"),
    )
    .unwrap();
    let sentence = one_end(folder.path(), &[]);
    // With a real library there is nothing to show.
    if !sentence.contains("/dev/null/nowhere") {
        let want = "nccl-check: no NCCL on this machine: libnccl.so.2: ";
        assert!(sentence.starts_with(want), "{sentence}");
    }
}

#[test]
fn an_old_library_says_so() {
    let sentence = one_end(&emulator::folder(), &[("AMOE_EMULATED_NCCL", "old")]);
    assert_eq!(sentence, "nccl-check: NCCL 2.10 is too old, 2.18 is needed");
}

#[test]
fn a_machine_without_a_device_says_so() {
    let sentence = one_end(&emulator::folder(), &[("AMOE_EMULATED_FAULT", "no-device")]);
    let want =
        "nccl-check: no CUDA device 0: no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)";
    assert_eq!(sentence, want);
}
