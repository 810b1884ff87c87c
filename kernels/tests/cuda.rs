//! The CUDA path without a GPU: the driver is an emulator that runs the kernels' own source on the CPU.
//!
//! What this shows: indexing, barriers and asynchronous copies of the kernels, the launch code, and
//! the sentence for each thing that can be missing. It needs a C++ compiler and shows no speed.

#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod emulator;

use std::process::{Command, Output};

use emulator::text;

fn gpu_check(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
    program
        .env("LD_LIBRARY_PATH", emulator::folder())
        .envs(environment.iter().copied())
        .args(arguments);
    program.output().unwrap()
}

/// The emulated driver takes any image: it has the kernels compiled in.
const IMAGE: [&str; 2] = ["--image", concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/amoe.cu")];

#[test]
fn every_check_holds_on_the_emulated_gpu_and_a_measurement_is_reported() {
    let folder = emulator::folder().join("report");
    let path = folder.to_str().unwrap();
    let rest = ["--seed", "7", "--report", path, "--shapes", "tiny", "--notes", "a \"rehearsal\""];
    let output = gpu_check(&[], &[&IMAGE[..], &rest].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("Hopper"), "{}", text(&output));
    let json = std::fs::read_to_string(folder.join("report.json")).unwrap();
    assert!(json.contains(r#""notes": "a \"rehearsal\"", "failed_checks": 0"#), "{json}");
    assert!(json.contains(r#""tokens_per_expert": 2, "ms": "#), "{json}");
    let markdown = std::fs::read_to_string(folder.join("report.md")).unwrap();
    assert!(markdown.contains("| tiny | 3 | 1 | "), "{markdown}");
}

#[test]
fn an_older_gpu_runs_the_portable_kernels() {
    let environment = [("AMOE_EMULATED_CAPABILITY", "80"), ("AMOE_EMULATED_SEED", "5")];
    let output = gpu_check(&environment, &[IMAGE[0], IMAGE[1], "--seed", "8"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("Hopper"), "{}", text(&output));
}

/// What a start says when `fault` is so; the exit code is 2.
fn refusal(environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let output = gpu_check(environment, arguments);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(output.stdout.is_empty() || environment[0].1 == "out-of-memory");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn a_machine_without_a_device_says_so() {
    let sentence = refusal(&[("AMOE_EMULATED_FAULT", "no-device")], &IMAGE);
    let want =
        "gpu-check: no CUDA device 0: no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)";
    assert_eq!(sentence, want);
}

#[test]
fn an_old_driver_says_so_before_any_symbol_is_missed() {
    let sentence = refusal(&[("AMOE_EMULATED_FAULT", "old-driver")], &IMAGE);
    let want =
        "gpu-check: the CUDA driver is too old: it supports CUDA 12.4, the kernels need 13.0";
    assert_eq!(sentence, want);
}

#[test]
fn an_old_device_says_so() {
    let sentence = refusal(&[("AMOE_EMULATED_CAPABILITY", "75")], &IMAGE);
    let want = "gpu-check: emulated GPU has compute capability 7.5; the kernels need 8.0 or newer";
    assert_eq!(sentence, want);
}

#[test]
fn too_little_shared_memory_says_for_which_kernel() {
    let output = gpu_check(&[("AMOE_EMULATED_CAPABILITY", "86")], &IMAGE);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let want = "gpu-check: emulated GPU does not run attend_latent_512: it has no 164096 bytes of shared memory for a \
                thread block";
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), want);
}

#[test]
fn too_little_memory_says_how_much_was_wanted() {
    let sentence = refusal(&[("AMOE_EMULATED_FAULT", "out-of-memory")], &IMAGE);
    assert!(sentence.starts_with("gpu-check: out of device memory: "), "{sentence}");
    assert!(sentence.ends_with("1073741824 of 1073741824 are free"), "{sentence}");
}

#[test]
fn an_image_without_kernels_says_how_to_build_them() {
    let empty = emulator::folder().join("empty.fatbin");
    std::fs::write(&empty, []).unwrap();
    let sentence = refusal(&[("AMOE_EMULATED_SEED", "1")], &["--image", empty.to_str().unwrap()]);
    assert_eq!(sentence, "gpu-check: the CUDA kernels were not built: run cargo xtask kernels");
}

#[test]
fn a_machine_without_a_driver_says_so() {
    let program = Command::new(env!("CARGO_BIN_EXE_gpu-check"))
        .args(IMAGE)
        .env_remove("LD_LIBRARY_PATH")
        .output();
    let output = program.unwrap();
    // With a real driver there is nothing to show, and another test's business begins.
    if output.stdout.is_empty() {
        assert_eq!(
            text(&output).trim(),
            "gpu-check: no CUDA driver on this machine: libcuda was not found"
        );
        assert_eq!(output.status.code(), Some(2));
    }
}
