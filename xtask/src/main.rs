//! Chores of the repository: `cargo xtask gate` checks a change, `cargo xtask proto` writes generated code.

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
        Some("proto") => xtask::proto::write(),
        Some(other) => bail!("no chore is called {other:?}; there are: gate, proto"),
        None => bail!("name a chore: gate, proto"),
    }
}
