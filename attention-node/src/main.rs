//! The attention node as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("attention-node", attention_node::run)
}
