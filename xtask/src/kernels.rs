//! `cargo xtask kernels`: compiles the CUDA kernels and holds them to their manifest and lock.

mod manifest;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root;
use manifest::Manifest;

/// The compiler the lock file was written with; another one makes other machine code.
const COMPILER: &str = "V13.0.88";

/// Machine code for Ampere and Hopper, and PTX that a driver compiles for whatever else.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_80,code=compute_80",
    "arch=compute_90a,code=sm_90a",
];

/// Compiles `kernels/cuda` to `amoe.fatbin` and writes what came out to `kernels.lock`.
///
/// # Errors
/// When the compiler is missing or another one, a kernel does not compile, spills, uses more
/// registers than the manifest grants, or lost the instruction it is built around.
pub fn write() -> Result<()> {
    let lock = compile()?;
    std::fs::write(folder().join("kernels.lock"), lock).context("writing kernels.lock")
}

/// Compiles as [`write()`] does and compares with `kernels.lock` instead of writing it.
///
/// # Errors
/// As [`write()`], and when the result is not what the lock file says.
pub fn check() -> Result<()> {
    let path = folder().join("kernels.lock");
    let want = std::fs::read_to_string(&path).context("reading kernels.lock")?;
    let got = compile()?;
    ensure!(
        got == want,
        "the kernels differ from kernels/cuda/kernels.lock; run cargo xtask kernels and commit it.\n\
         locked:\n{want}compiled:\n{got}"
    );
    Ok(())
}

fn folder() -> PathBuf {
    root().join("kernels/cuda")
}

/// Compiles, checks, and returns the text of the lock file.
fn compile() -> Result<String> {
    let tools = tools()?;
    let version = run(Command::new(tools.join("nvcc")).arg("--version"))?;
    ensure!(version.contains(COMPILER), "nvcc is not {COMPILER} but: {version}");
    let fatbin = folder().join("amoe.fatbin");
    let mut nvcc = Command::new(tools.join("nvcc"));
    nvcc.args(["-std=c++17", "-O3", "-fatbin", "-Xfatbin=-compress-all"]);
    nvcc.args(["-Xptxas=-v", "-Werror=all-warnings"]);
    for target in TARGETS {
        nvcc.args(["-gencode", target]);
    }
    let log = run(nvcc.arg("-o").arg(&fatbin).arg(folder().join("amoe.cu")))?;
    // The compiler gives up overlapping warpgroup products where registers are short, and only remarks on it.
    let waits =
        log.lines().find(|line| line.contains("wgmma.mma_async instructions are serialized"));
    ensure!(waits.is_none(), "products wait for one another: {}", waits.unwrap_or_default());
    let code = run(Command::new(tools.join("cuobjdump")).arg("-sass").arg(&fatbin))?;
    let manifest =
        std::fs::read_to_string(folder().join("manifest.toml")).context("reading manifest.toml")?;
    let compiled = report::read(&log, &code)?;
    Manifest::parse(&manifest)?.check(&compiled)?;
    lock(&fatbin, &compiled)
}

fn lock(fatbin: &Path, compiled: &[report::Compiled]) -> Result<String> {
    let bytes = std::fs::read(fatbin).context("reading amoe.fatbin")?;
    let mut text = String::from(
        "# Written by `cargo xtask kernels`: what the pinned compiler makes of this folder.\n",
    );
    text += &format!("fatbin {} bytes, fnv1a {:016x}\n", bytes.len(), fnv1a(&bytes));
    for kernel in compiled {
        text += &format!("{} {} {} registers\n", kernel.entry, kernel.target, kernel.registers);
    }
    Ok(text)
}

/// Detects drift; it guards against nobody.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The compiler's folder: that of `CUDA_HOME`, or of the pinned wheels, which are installed if they are not there.
fn tools() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        return Ok(PathBuf::from(home).join("bin"));
    }
    if let Some(bin) = wheels() {
        return Ok(bin);
    }
    let environment = root().join(".cuda");
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let mut pip = Command::new(environment.join("bin/pip"));
    run(pip.args(["install", "--quiet", "-r"]).arg(folder().join("requirements-cuda.txt")))?;
    wheels().context("the wheels of kernels/cuda/requirements-cuda.txt hold no nvcc")
}

fn wheels() -> Option<PathBuf> {
    let pythons = std::fs::read_dir(root().join(".cuda/lib")).into_iter().flatten().flatten();
    let mut bins = pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin"));
    bins.find(|bin| bin.join("nvcc").exists())
}

/// Runs a command and returns all it printed.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {text}");
    Ok(text.into_owned())
}
