//! The programs that the gate needs beside cargo, and how a Debian machine gets them.

use std::{env, process::Command};

use anyhow::{Context, Result, bail};

use crate::root;

/// Program → Debian package: etcd is the state store of a cluster, promtool judges our metrics.
const PACKAGES: [(&str, &str); 2] = [("etcd", "etcd-server"), ("promtool", "prometheus")];

/// Programs that are crates. Built without optimisation: they run for seconds, and optimising takes minutes.
const CRATES: [&str; 2] = ["cargo-nextest", "cargo-deny"];

/// Installs whatever of the above is not on this machine.
pub fn install_missing() -> Result<()> {
    let packages: Vec<_> = PACKAGES
        .into_iter()
        .filter(|(program, _)| !installed(program))
        .map(|(_, package)| package)
        .collect();
    if !packages.is_empty() {
        let packages = packages.join(" ");
        apt_get("update -q")
            .and_then(|()| apt_get(&format!("install -qy --no-install-recommends {packages}")))
            .with_context(|| format!("the tests need the Debian packages {packages}"))?;
    }
    for name in CRATES.into_iter().filter(|name| !installed(name)) {
        shell(&format!("cargo install --locked --debug {name}"))?;
    }
    Ok(())
}

fn installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn apt_get(arguments: &str) -> Result<()> {
    let sudo = if installed("sudo") { "sudo " } else { "" };
    shell(&format!("{sudo}env DEBIAN_FRONTEND=noninteractive apt-get {arguments}"))
}

fn shell(command: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", command]).current_dir(root()).status()?;
    if !status.success() {
        bail!("`{command}` ended with {status}");
    }
    Ok(())
}
