//! The `gateway` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::role::main("gateway", |config, process| {
        gateway::run(config, transport::Hub::new(), process)
    })
}
