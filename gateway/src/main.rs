//! The `gateway` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("gateway", gateway::run)
}
