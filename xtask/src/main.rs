//! Chores of the repository: `cargo xtask gate` checks a change, `cargo xtask kernels` compiles
//! the CUDA kernels, `cargo xtask proto` writes generated code, `cargo xtask sbom` prints the bill of materials.

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a chore talks to the person who ran it")]
            {
                eprintln!("xtask: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    match arguments.next().as_deref() {
        Some("gate") => xtask::gate::run(),
        Some("kernels") => match arguments.next().as_deref() {
            None => xtask::kernels::write(),
            Some("--check") => xtask::kernels::check(),
            Some(other) => bail!("kernels takes --check or nothing, not {other:?}"),
        },
        Some("proto") => xtask::proto::write(),
        Some("protoc") => xtask::protoc::run(arguments),
        Some("sbom") => xtask::sbom::run(),
        Some(other) => {
            bail!("no chore is called {other:?}; there are: gate, kernels, proto, protoc, sbom")
        }
        None => bail!("name a chore: gate, kernels, proto, protoc, sbom"),
    }
}
