//! The programs that the gate needs beside cargo, and how a Debian machine gets them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::root;

/// How to see that something is there → the Debian package that brings it: etcd is the state store
/// of a cluster, promtool judges our metrics, Python's packages are real clients of our APIs, faketime sets clocks, npm has Helm, a
/// browser looks at the console, and a C++ compiler builds the emulated GPU that runs the CUDA kernels.
const PACKAGES: [(&str, &str); 8] = [
    ("command -v etcd", "etcd-server"),
    ("command -v promtool", "prometheus"),
    ("command -v c++", "g++"),
    ("command -v faketime", "faketime"),
    ("command -v npm", "npm"),
    ("command -v chromium", "chromium"),
    ("command -v chromedriver", "chromium-driver"),
    ("python3 -c 'import ensurepip, venv'", "python3-venv"),
];

/// Programs that are crates. Built without optimisation: they run for seconds, and optimising takes minutes.
const CRATES: [&str; 2] = ["cargo-nextest", "cargo-deny"];

/// Installs whatever of the above is not on this machine.
pub fn install_missing() -> Result<()> {
    let packages: Vec<_> = PACKAGES
        .into_iter()
        .filter(|(probe, _)| !succeeds(probe))
        .map(|(_, package)| package)
        .collect();
    if !packages.is_empty() {
        let packages = packages.join(" ");
        apt_get("update -q")
            .and_then(|()| apt_get(&format!("install -qy --no-install-recommends {packages}")))
            .with_context(|| format!("the tests need the Debian packages {packages}"))?;
    }
    for name in CRATES.into_iter().filter(|name| !succeeds(&format!("command -v {name}"))) {
        shell(&format!("cargo install --locked --debug {name}"))?;
    }
    Ok(())
}

fn succeeds(probe: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", probe]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn apt_get(arguments: &str) -> Result<()> {
    let sudo = if succeeds("command -v sudo") { "sudo " } else { "" };
    shell(&format!("{sudo}env DEBIAN_FRONTEND=noninteractive apt-get {arguments}"))
}

fn shell(command: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", command]).current_dir(root()).status()?;
    if !status.success() {
        bail!("`{command}` ended with {status}");
    }
    Ok(())
}
