//! The expert node as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("expert-node", expert_node::run)
}
